"""The classifier that was trained beside the backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from saccade.evaluation.accuracy import accuracy, named
from saccade.evaluation.protocol import Measure
from saccade.evaluation.subject import Subject, classifier_weights, online_classifier

if TYPE_CHECKING:
    from saccade.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class Online(Measure):
    """The classifier as the checkpoint, or a foreign file, holds it."""

    title: ClassVar = "online classifier"

    def lacks(self, subject: Subject) -> str:
        return "" if classifier_weights(subject) else "an online classifier in a checkpoint"

    def measure(self, on: Evaluation) -> dict[str, Any]:
        head = online_classifier(on.subject)
        with torch.no_grad():
            return named(accuracy(head(on.test_features.features), on.test_features.labels))
