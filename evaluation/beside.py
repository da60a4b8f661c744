"""What a number is to be read beside: chance, raw pixels and the same network untrained, all by kNN on one test set."""

from __future__ import annotations

from typing import Any

import numpy as np

from saccade.evaluation.evaluate import Evaluation
from saccade.evaluation.features import Features, at_most, raw_pixels, spread_rows
from saccade.evaluation.intervals import wilson
from saccade.evaluation.knn import NEIGHBOURS, TEMPERATURE, fitting_k, knn_accuracy
from saccade.evaluation.subject import untrained

MAX_IMAGES = 10_000  # of each set, evenly spread
ROWS = ("raw pixels", "untrained", "this backbone")


def beside(on: Evaluation) -> dict[str, Any]:
    """Top-1 in percent, each with its 95 % interval: of the commonest class and, by kNN (k = 20, cosine), of ROWS."""
    alone, found = on.train is on.test, {}
    plain = untrained(on.subject)
    plain = plain and plain.to(on.settings.device)
    workers, ranks = on.settings.workers, on.settings.ranks
    by_name = {
        "raw pixels": lambda source: raw_pixels(at_most(source, MAX_IMAGES), workers=workers, ranks=ranks),
        "untrained": lambda source: on.extract(at_most(source, MAX_IMAGES), backbone=plain),
        "this backbone": lambda source: some(on.train_features if source is on.train else on.test_features),
    }
    for name in ROWS:
        if name == "untrained" and plain is None:
            continue
        train = by_name[name](on.train)
        test = train if alone else by_name[name](on.test)
        k = fitting_k(train.labels, NEIGHBOURS, alone)
        images = (train.features, train.labels, test.features, test.labels)
        top1 = knn_accuracy(*images, (k,), TEMPERATURE, "cosine", on.settings.device, alone)[k].top1
        found[name] = spread(top1, len(test))
    labels = np.asarray(on.test.labels)
    return {"chance": round(100 * float(np.bincount(labels).max()) / len(labels), 2), "knn": found}


def spread(top1: float, images: int) -> dict[str, Any]:
    """A percentage with its interval and the number of images it is of."""
    value, low, high = wilson(round(top1 * images / 100), images)
    return {"top1": round(value, 2), "interval": [round(low, 2), round(high, 2)], "images": images}


def some(features: Features) -> Features:
    """Of as many images as the others are measured on, and of the same ones."""
    if len(features) <= MAX_IMAGES:
        return features
    rows = spread_rows(len(features), MAX_IMAGES)
    return Features(features.features[rows].float(), features.labels[rows])
