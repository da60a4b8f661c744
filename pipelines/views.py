"""What may happen to an image: frozen, declarative, readable. `draw` decides, `render` executes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from saccade.base.errors import UserError


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
class Jitter:
    """Colour jitter with the meaning of torchvision's ColorJitter, applied with probability `p`, in drawn order."""

    brightness: float
    contrast: float
    saturation: float
    hue: float  # fraction of the colour circle, at most 0.5
    p: float = 0.8


@dataclass(frozen=True)
class Blur:
    """Gaussian blur; sigma in pixels of the view, uniform in `sigma`; the kernel is cut at `kernel_size` (odd) taps."""

    p: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    kernel_size: int = 13  # 3 sigma at sigma 2; S-TEC's own rule is stec_blur(size)


@dataclass(frozen=True)
class View:
    """One view of an image. A view with a `parent` shares the parent's crop and flip and only adds colour and blur.

    Examples:
        >>> [view.name for view in View("local", 96, crop=Crop(scale=(0.05, 0.4))).times(2)]
        ['local_0', 'local_1']
        >>> View("weak", 224, flip=1.5)
        Traceback (most recent call last):
        saccade.base.errors.UserError: view 'weak': flip = 1.5 is no probability; give a value from 0 to 1.
    """

    name: str
    size: int  # pixels, square
    crop: Crop | CentreCrop = Crop()
    flip: float = 0.5
    jitter: Jitter | None = None
    grey: float = 0.0
    blur: Blur | None = None
    solarise: float = 0.0
    parent: str | None = None

    def __post_init__(self) -> None:
        for what, p in (
            ("flip", self.flip),
            ("grey", self.grey),
            ("solarise", self.solarise),
            ("jitter.p", self.jitter.p if self.jitter else 0.0),
            ("blur.p", self.blur.p if self.blur else 0.0),
        ):
            if not 0.0 <= p <= 1.0:
                raise UserError(f"view {self.name!r}: {what} = {p} is no probability; give a value from 0 to 1.")
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
        if self.jitter and not 0.0 <= self.jitter.hue <= 0.5:
            raise UserError(f"view {self.name!r}: hue = {self.jitter.hue}; give a value from 0 to 0.5.")
        if self.blur:
            (low, high), taps = self.blur.sigma, self.blur.kernel_size
            if not 0.0 < low <= high or taps % 2 == 0 or not 0 < taps // 2 < self.size:
                raise UserError(
                    f"view {self.name!r}: blur sigma {self.blur.sigma} with {taps} taps does not fit a "
                    f"{self.size}-pixel view; sigma must be positive, the taps odd and under twice the size."
                )

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
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

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

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(view.name for view in self.views)

    def geometry_of(self, view: View) -> View:
        """The view whose crop and flip this one shows: its parent, or itself."""
        return self[view.parent] if view.parent else view


def stec_blur(size: int) -> Blur:
    """S-TEC's blur for a view of `size` pixels: kernel side int(size/10) made odd (>= 3), sigma scaled from 224."""
    taps = int(0.1 * size)
    return Blur(p=0.5, sigma=(0.1 * size / 224, 2.0 * size / 224), kernel_size=max(3, taps + 1 - taps % 2))


def evaluation_views(
    size: int, mean: tuple[float, float, float], std: tuple[float, float, float], fraction: float = 1.0
) -> Views:
    """One view, `eval`, without any chance: the centre crop of `fraction` of the short side, at `size` pixels."""
    return Views((View("eval", size, crop=CentreCrop(fraction), flip=0.0),), mean, std)
