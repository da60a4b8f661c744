"""What an operation is: a frozen dataclass of numbers, what it draws for each sample, and what it does to an image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

Columns = Mapping[str, Tensor]  # what was drawn: name -> (N, ...), and always "chosen", (N,) bool


class Operation(ABC):
    """Something done to a view that is cut already, with probability `p`. A subclass is a frozen dataclass of its
    numbers, each with a default, and gives `apply`; `draw`, where it draws more than whether it happens; and `fault`,
    where numbers can be wrong.

    The rest is for the tools: what pictures say, and what parity compares with and how closely.
    """

    name: ClassVar[str]  # by default the class's name in small letters
    numbers: ClassVar[int] = 0  # how many random numbers `draw` is given for each sample
    position: ClassVar[int | None] = None  # in the view's own stream; None: a stream keyed by name and occurrence
    identity: ClassVar[Mapping[str, float]] = {}  # what a column holds where the operation was not chosen
    gain: ClassVar[float] = 2.0  # how many times a small difference between two images may grow
    p: float
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """The name becomes a field, so that a recipe written as plain values says which operation it means."""
        super().__init_subclass__(**kwargs)
        name = vars(cls).get("name", cls.__name__.lower())
        cls.__annotations__ = {"name": "str", **vars(cls).get("__annotations__", {})}
        cls.name = field(default=name, init=False, repr=False)  # the dataclass decorator makes it the name again

    def fault(self, size: int) -> str:
        """What is wrong with the numbers on a view of `size` pixels, as "bits = 9; give 1 to 8."; "" if nothing is."""
        return ""

    def of_colour(self) -> dict[str, str]:
        """What needs red, green and blue: the setting that takes it away, as "saturation" -> "0" or "" -> "none"."""
        return {}

    def draw(self, u: Tensor) -> dict[str, Tensor]:
        """u: (N, numbers) float64, uniform in [0, 1) -> columns (N, ...), from nothing else."""
        return {}

    @abstractmethod
    def apply(self, image: Tensor, drawn: Columns) -> Tensor:
        """The meaning: image float (N, 3, H, W) in [0, 1] -> the same, new. It draws nothing.

        On a CPU it is given the chosen samples alone; on a GPU all of them, where the others' outcome is not used.
        """

    def reference(self, image: Tensor, drawn: Mapping[str, Any]) -> Tensor | None:
        """What torchvision makes of one image (3, H, W), `drawn` as plain values; None: `apply` is the meaning."""
        return None

    def with_pil(self, image: Image.Image, drawn: Mapping[str, Any]) -> Image.Image:
        """What PIL makes of one image of 8 bits, `drawn` as plain values. Override it where PIL has the operation."""
        raise NotImplementedError

    def jump(self) -> float:
        """How far apart two pixels may end that were nearly equal, on the scale of 0 to 255."""
        return 0.0

    def pil_differs(self) -> tuple[float, float, str]:
        """Mean and largest difference from PIL that tools.parity allows, on the scale of 0 to 255, and why."""
        return 1.0, 8.0 + self.jump(), ""

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Columns of one number a sample that a model may predict (S-TEC), and between what values they lie."""
        return {}

    def caption(self, drawn: Mapping[str, Any]) -> str:
        """A few words for pictures, `drawn` as plain values."""
        values = [v for name, v in drawn.items() if name != "chosen" and isinstance(v, int | float)]
        return " ".join([self.name, *(f"{v:.2f}" if isinstance(v, float) else str(v) for v in values)])

    def cases(self, size: int) -> dict[str, Operation]:
        """What tools.parity compares on views of `size` pixels: name -> the operation, as a rule with p = 1."""
        return {self.name: replace(self, p=1.0)}


def on_chosen(apply: Callable[[Tensor, Columns], Tensor], image: Tensor, drawn: Columns) -> Tensor:
    """(N, 3, H, W): an operation's `apply` where it was chosen; the image given is not changed."""
    chosen = drawn["chosen"]
    if image.device.type != "cpu":  # picking rows would make the host wait for the device
        return torch.where(chosen[:, None, None, None], apply(image, drawn), image)
    rows = chosen.nonzero().squeeze(1)
    if len(rows) == len(image):
        return apply(image, drawn)
    if len(rows) == 0:
        return image
    image = image.clone()
    image[rows] = apply(image[rows], {name: column[rows] for name, column in drawn.items()})
    return image
