"""k nearest neighbours among the training features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from saccade.evaluation.accuracy import named
from saccade.evaluation.knn import fitting_k, knn_accuracy
from saccade.evaluation.protocol import Measure, Row

if TYPE_CHECKING:
    from saccade.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class KNN(Measure):
    """k nearest neighbours; the first of `ks` is reported as the protocol's number."""

    alone: ClassVar = True
    ks: tuple[int, ...] = (20,)
    temperature: float | None = 0.07  # None: one vote each
    metric: str = "cosine"
    interpolation: str = "bilinear"

    def takes(self) -> tuple[str, ...]:
        return ("k",)

    def measure(self, on: Evaluation) -> dict[str, Any]:
        if self.interpolation == "bilinear":
            train, test = on.train_features, on.test_features
        else:
            train, test = (on.extract(source, self.interpolation) for source in (on.train, on.test))
        ks = (on.settings.k,) if on.settings.k is not None else self.ks
        alone = on.train is on.test
        if alone and on.settings.k is None and max(ks) >= len(train):
            ks = (fitting_k(train.labels, max(ks), True),)
            on.deviations.append(f"k = {ks[0]}, one less than the smallest class has images")
        images = (train.features, train.labels, test.features, test.labels)
        found = knn_accuracy(*images, ks, self.temperature, self.metric, on.settings.device, alone)
        return {**named(found[ks[0]]), "knn": {str(k): named(accuracy) for k, accuracy in found.items()}}

    def rows(self, found: Mapping[str, Any]) -> list[Row]:
        return [(f"kNN, k = {k}", one["top1"], one["top5"]) for k, one in found["knn"].items()]
