"""What a protocol is: a row of data, which says what is measured, on which network, with which test crop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from saccade.models.backbone import shown_share

if TYPE_CHECKING:
    from saccade.evaluation.evaluate import Evaluation
    from saccade.evaluation.subject import Subject

Row = tuple[str, float, float]  # of the printed table: what it is, top-1 and top-5 in percent


class Measure(ABC):
    """A kind of measurement. A subclass is a frozen dataclass of its numbers, and gives `measure`."""

    title: ClassVar[str] = ""  # of its row in the printed table; by default the class's name
    alone: ClassVar[bool] = False  # whether the same images may be training and test images, each left out once
    interpolation: str = "bilinear"  # of the resize before the centre crop

    def takes(self) -> tuple[str, ...]:
        """Which of epochs, lr, k and batch_norm_drift, the fields of Settings, change it."""
        return ()

    def lacks(self, subject: Subject) -> str:
        """What it needs of a backbone's file and that is not there; "" where it can measure."""
        return ""

    @abstractmethod
    def measure(self, on: Evaluation) -> dict[str, Any]:
        """Plain values, `top1` and `top5` in percent among them, from `on.train_features` and `on.test_features`.

        What departs from the numbers of this class goes to `on.deviations`, what a reader must know to `on.notes`.
        """

    def rows(self, found: Mapping[str, Any]) -> list[Row]:
        """What it found, as rows of the table."""
        return [(self.title or type(self).__name__.lower(), found["top1"], found["top5"])]


@dataclass(frozen=True)
class Protocol:
    """A row. `top1` of the result is that of the last of `measures`.

    encoder: "method" (the one the run exported), "student" or "teacher"; fractions: data set -> share of the short side
    the test crop shows, where it is not 1 (small images) or 224/256.
    """

    name: str
    summary: str
    source: str
    measures: tuple[Measure, ...]
    encoder: str = "method"
    fractions: Mapping[str, float] = field(default_factory=dict)
    large: str | None = None  # the protocol that takes its place for images of 160 pixels or more
    notes: tuple[str, ...] = ()

    @property
    def alone(self) -> bool:
        """Whether the same images may be training images and, one at a time, the test."""
        return all(measure.alone for measure in self.measures)

    def fraction(self, data: str, image_size: int) -> float:
        """Share of an image's short side that the test crop shows."""
        return self.fractions.get(data, shown_share(image_size))
