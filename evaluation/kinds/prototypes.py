"""Nearest class mean: what a backbone makes of a few labelled images a class, without training anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.base.errors import UserError
from saccade.evaluation.accuracy import Accuracy, accuracy, named
from saccade.evaluation.protocol import Measure, Protocol, Row

if TYPE_CHECKING:
    from saccade.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class Prototypes(Measure):
    """The nearest of the classes' mean features, centred by the training images' mean and of unit length (CL2N).

    shots: training images a class, drawn anew `draws` times, over which accuracy is averaged; None: all, once.
    Source: Wang et al. 2019, SimpleShot (arXiv 1911.04623).
    """

    shots: int | None = None
    draws: int = 1

    def measure(self, on: Evaluation) -> dict[str, Any]:
        train, test = on.train_features, on.test_features
        least = int(train.labels.unique(return_counts=True)[1].min())
        if self.shots and least < self.shots:
            raise UserError(
                f"--protocol {on.protocol.name} needs {self.shots} labelled training images of every class, and one "
                f"has {least}; use --protocol prototypes, which takes all there are."
            )
        random = torch.Generator().manual_seed(on.settings.seed)
        found = []
        for _ in range(self.draws):
            rows = few_of_each(train.labels, self.shots, random)
            scores = class_mean_scores(train.features[rows].float(), train.labels[rows], test.features, on.classes)
            found.append(accuracy(scores, test.labels))
        every = torch.tensor(found, dtype=torch.float64)
        spread = {"top1_std": round(every[:, 0].std().item(), 3)} if self.draws > 1 else {}
        return {**named(Accuracy(*every.mean(0).tolist())), **spread, "shots": self.shots, "draws": self.draws}

    def rows(self, found: Mapping[str, Any]) -> list[Row]:
        few = f", {self.shots} a class (+- {found['top1_std']:.2f})" if self.shots else ""
        return [(f"nearest class mean{few}", found["top1"], found["top5"])]


def few_of_each(labels: Tensor, shots: int | None, random: torch.Generator) -> Tensor:
    """Rows of `shots` images of each class of (N,) labels, without replacement; None: of all."""
    if shots is None:
        return torch.arange(len(labels))
    rows = torch.randperm(len(labels), generator=random)
    return torch.cat([rows[labels[rows] == label][:shots] for label in labels.unique()])


def class_mean_scores(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
    """(M, classes): minus the squared distance of (M, D) test features to the mean of each class of (N, D) train.

    A class without training images has -inf.
    """
    centre = train.mean(0)
    train, test = (F.normalize(features - centre, dim=1) for features in (train, test))
    known = labels.unique()
    means = torch.stack([train[labels == label].mean(0) for label in known])
    scores = test.new_full((len(test), classes), -torch.inf)
    scores[:, known] = -torch.cdist(test, means).square()
    return scores


PROTOCOLS = (
    Protocol(
        "prototypes",
        "nearest class mean of all training images, centred, unit length",
        "Wang et al. 2019 (SimpleShot)",
        (Prototypes(),),
    ),
    *(
        Protocol(
            f"{shots}-shot",
            f"nearest class mean of {shots} labelled image{'s' * (shots > 1)} a class, mean of 100 draws",
            "Wang et al. 2019 (SimpleShot)",
            (Prototypes(shots, 100),),
        )
        for shots in (1, 5)
    ),
)
