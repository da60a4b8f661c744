"""What tools.parity compares: a recipe an operation, those of every method, and how far each executor may be off."""

from __future__ import annotations

from dataclasses import dataclass, replace

from saccade.losses.registry import methods
from saccade.pipelines.views import Blur, CentreCrop, Crop, Jitter, View, Views

_CROP = Crop((0.2, 1.0))
_JITTER = Jitter(0.4, 0.4, 0.4, 0.1, p=1.0)


@dataclass(frozen=True)
class Tolerance:
    """Mean and largest absolute difference allowed, on the scale of 0 to 255, and why it is not zero."""

    mean: float
    largest: float
    reason: str


def operations(size: int) -> dict[str, Views]:
    """Every operation alone on a view of `size` pixels; colours on a crop, as in use."""
    plain = View("view", size, crop=_CROP, flip=0.0)
    views = {
        "crop bilinear": plain,
        "crop bicubic": replace(plain, crop=Crop((0.2, 1.0), interpolation="bicubic")),
        "small crop enlarged": replace(plain, crop=Crop((0.02, 0.05))),
        "centre crop": replace(plain, crop=CentreCrop(0.875)),
        "flip": replace(plain, flip=1.0),
        "brightness": replace(plain, jitter=Jitter(0.4, 0, 0, 0, p=1.0)),
        "contrast": replace(plain, jitter=Jitter(0, 0.4, 0, 0, p=1.0)),
        "saturation": replace(plain, jitter=Jitter(0, 0, 0.4, 0, p=1.0)),
        "hue": replace(plain, jitter=Jitter(0, 0, 0, 0.1, p=1.0)),
        "jitter, any order": replace(plain, jitter=_JITTER),
        "grey": replace(plain, grey=1.0),
        "blur": replace(plain, blur=Blur(p=1.0, sigma=(0.1, 2.0), kernel_size=2 * max(1, size // 20) + 1)),
        "solarise": replace(plain, solarise=1.0),
    }
    derived = replace(plain, name="derived", parent="view", jitter=_JITTER)
    return {**{name: Views((view,)) for name, view in views.items()}, "derived view": Views((plain, derived))}


def method_recipes(smallest: int, largest: int) -> dict[str, Views]:
    """`method/data set` -> the published views, one name for equal ones, of methods whose size is in the range."""
    found: dict[Views, str] = {}
    for name, method in methods().items():
        for data in method.published:
            recipe = method.recipe(data, None)
            if smallest <= recipe.image_size <= largest:
                found.setdefault(recipe.views, f"{name}/{data}")
    return {name: recipe for recipe, name in found.items()}


_FLOAT = "the same operations in float32, summed in another order"
_BYTES = "views are cut to whole numbers (at most 0.5, 0.25 on average), and DALI weighs a crop's edge differently"
_PIL = "PIL rounds to whole numbers after every operation"
_COLOUR = {"jitter, any order", "derived view", "brightness", "contrast", "saturation", "hue", "solarise"}


def tolerance(executor: str, operation: str) -> Tolerance:
    """How far `executor` may be from `reference` in `operation`; a method's recipe is called method/data set."""
    colour = operation in _COLOUR or "/" in operation
    if executor == "pil":
        if operation == "blur" or "/" in operation:
            return Tolerance(2.5, 120, _PIL + "; its Gaussian blur is three box filters and has no kernel size")
        if operation in ("hue", "jitter, any order", "derived view"):
            return Tolerance(2.0, 40, _PIL + "; its HSV has 256 hues")
        if operation == "crop bicubic":
            return Tolerance(1.0, 60, _PIL + " and between the two directions of a resize, where overshoot is cut off")
        return Tolerance(1.0, 8, _PIL)
    if executor.endswith("cuda"):
        if "dali" in executor:
            return Tolerance(
                1.5 if colour else 1.2, 90, _BYTES + "; nvJPEG's inverse DCT and upsampling are not libjpeg's"
            )
        return Tolerance(0.02, 1.0, _FLOAT)
    if executor == "dali cuts":
        return Tolerance(
            0.8 if colour else 0.4, 40 if colour else 25, _BYTES + ("; colours multiply that" if colour else "")
        )
    return Tolerance(0.005, 0.5 if colour else 0.05, _FLOAT)
