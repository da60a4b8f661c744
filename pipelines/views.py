"""What may happen to an image: frozen, declarative, readable. `draw` decides, `render` executes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from saccade.base.errors import UserError
from saccade.pipelines.operations import Operation

Kind = TypeVar("Kind", bound=Operation)
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of the channels
PLAIN: Normalisation = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # changes nothing


@dataclass(frozen=True)
class Crop:
    """Random resized crop with the meaning of torchvision's RandomResizedCrop (up to 10 tries, integer box)."""

    scale: tuple[float, float] = (0.08, 1.0)  # fraction of the source's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    interpolation: str = "bilinear"  # or "bicubic"; always antialiased


@dataclass(frozen=True)
class CentreCrop:
    """The evaluation crop: a centred square, `fraction` of the short side (224/256 = 0.875 is the usual one)."""

    fraction: float = 1.0
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class View:
    """One view of an image: a cut, and what is done to it, in order. A view with a `parent` shares the parent's crop
    and flip and has operations of its own.

    Examples:
        >>> [view.name for view in View("local", 96, crop=Crop(scale=(0.05, 0.4))).times(2)]
        ['local_0', 'local_1']
        >>> from saccade.pipelines.operations import Blur, Grey
        >>> View("strong", 96, operations=(Grey(0.2), Blur(0.5)))["blur"].p
        0.5
        >>> View("weak", 224, flip=1.5)
        Traceback (most recent call last):
        saccade.base.errors.UserError: view 'weak': flip = 1.5 is no probability; give a value from 0 to 1.
    """

    name: str
    size: int  # pixels, square
    crop: Crop | CentreCrop = Crop()
    flip: float = 0.5
    operations: tuple[Operation, ...] = ()
    parent: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.flip <= 1.0:
            raise UserError(f"view {self.name!r}: flip = {self.flip} is no probability; give a value from 0 to 1.")
        if self.size < 1:
            raise UserError(f"view {self.name!r}: size = {self.size}; a view is at least 1 pixel wide.")
        if isinstance(self.crop, Crop):
            (low, high), (thin, wide) = self.crop.scale, self.crop.ratio
            if not 0.0 < low <= high <= 1.0 or not 0.0 < thin <= wide:
                raise UserError(
                    f"view {self.name!r}: crop scale {self.crop.scale} and ratio {self.crop.ratio} must be "
                    "increasing and positive, the scale at most 1."
                )
        if self.crop.interpolation not in ("bilinear", "bicubic"):
            raise UserError(
                f"view {self.name!r}: interpolation {self.crop.interpolation!r} is unknown; "
                "use 'bilinear' or 'bicubic'."
            )
        for key, operation in self.keyed.items():
            p = operation.p
            wrong = "" if 0.0 <= p <= 1.0 else f"p = {p} is no probability; give a value from 0 to 1."
            if wrong := wrong or operation.fault(self.size):
                raise UserError(f"view {self.name!r}: {key} {wrong}")

    @cached_property
    def keyed(self) -> dict[str, Operation]:
        """The operations in order, each under its name; a second one of that name is name_2."""
        keyed: dict[str, Operation] = {}
        for operation in self.operations:
            occurrence = 1 + sum(other.name == operation.name for other in keyed.values())
            keyed[operation.name if occurrence == 1 else f"{operation.name}_{occurrence}"] = operation
        return keyed

    def __getitem__(self, key: str) -> Operation:
        return self.keyed[key]

    def __contains__(self, key: str) -> bool:
        return key in self.keyed

    def get(self, kind: type[Kind]) -> Kind | None:
        """The first operation of this class, None where the view has none."""
        return next((o for o in self.operations if isinstance(o, kind)), None)

    def replaced(self, key: str, operation: Operation | None) -> View:
        """With another operation in the place of `key`, or without it; the same view where it has none of that key."""
        changed = [operation if k == key else o for k, o in self.keyed.items()]
        return replace(self, operations=tuple(o for o in changed if o is not None))

    def times(self, count: int) -> tuple[View, ...]:
        """`count` copies, drawn independently, named name_0 .. name_{count-1}."""
        return tuple(replace(self, name=f"{self.name}_{i}") for i in range(count))


@dataclass(frozen=True)
class Views:
    """The views made of every image, and the normalisation they share. Parents stand before their children.

    Examples:
        >>> views = Views((View("weak", 224), View("strong", 224, parent="weak")))
        >>> views.names, views.geometry_of(views["strong"]).name
        (('weak', 'strong'), 'weak')
    """

    views: tuple[View, ...]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        known: dict[str, View] = {}
        for view in self.views:
            if view.name in known:
                raise UserError(f"the recipe has two views called {view.name!r}; give each its own name.")
            if view.parent is not None:
                parent = known.get(view.parent)
                if parent is None or parent.parent is not None:
                    raise UserError(
                        f"view {view.name!r} is derived from {view.parent!r}, which must be an earlier view "
                        "with a crop of its own."
                    )
                if parent.size != view.size:
                    raise UserError(
                        f"view {view.name!r} ({view.size} px) is derived from {view.parent!r} "
                        f"({parent.size} px); a derived view keeps its parent's size."
                    )
            known[view.name] = view
        if not self.views:
            raise UserError("the recipe has no views; give at least one.")

    def __len__(self) -> int:
        return len(self.views)

    def __iter__(self) -> Iterator[View]:
        return iter(self.views)

    def __getitem__(self, name: str) -> View:
        for view in self.views:
            if view.name == name:
                return view
        raise KeyError(name)

    def __repr__(self) -> str:
        each = (
            f"{v.name} {v.size} px ({', '.join(type(o).__name__ for o in v.operations) or 'cut'})" for v in self.views
        )
        return f"Views({'; '.join(each)})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(view.name for view in self.views)

    @property
    def normalisation(self) -> Normalisation:
        return self.mean, self.std

    def geometry_of(self, view: View) -> View:
        """The view whose crop and flip this one shows: its parent, or itself."""
        return self[view.parent] if view.parent else view


def evaluation_views(size: int, mean: tuple[float, ...], std: tuple[float, ...], fraction: float = 1.0) -> Views:
    """One view, `eval`, without any chance: the centre crop of `fraction` of the short side, at `size` pixels."""
    return Views((View("eval", size, crop=CentreCrop(fraction), flip=0.0),), mean, std)


def check_channels(views: Views, channels: int, key: str = "views") -> None:
    """UserError unless the views can be made of images of that many channels. key: of the recipe, for --set."""
    if channels != 3:
        found = [(v.name, key, o.of_colour()) for v in views for key, o in v.keyed.items() if o.of_colour()]
        if found:
            needs = dict.fromkeys(" ".join((key, *(f"({n})" for n in of if n))) for _, key, of in found)
            keys = [(".".join(filter(None, (view, key, n))), to) for view, key, of in found for n, to in of.items()]
            raise UserError(
                f"images of {channels} channels have no red, green and blue, which the recipe's "
                f"{', '.join(needs)} need; "
                f"give {' '.join(f'--set {key}.{place}={to}' for place, to in keys)}."
            )
    if len(views.mean) != channels or len(views.std) != channels:
        raise UserError(
            f"the views are normalised by {len(views.mean)} means and {len(views.std)} standard deviations, and the "
            f"images have {channels} channels; give one for each."
        )
