"""What tools.parity compares: a recipe an operation, those of every method, and how far each executor may be off."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from saccade.losses.registry import methods
from saccade.pipelines.operations import Jitter, Operation
from saccade.pipelines.operations.registry import known_operations
from saccade.pipelines.views import CentreCrop, Crop, View, Views

_CROP = Crop((0.2, 1.0))


@dataclass(frozen=True)
class Tolerance:
    """Mean and largest absolute difference allowed, on the scale of 0 to 255, and why it is not zero."""

    mean: float
    largest: float
    reason: str


def operations(size: int) -> dict[str, Views]:
    """Every operation alone on a view of `size` pixels; colours on a crop, as in use."""
    plain = _plain(size)
    views = {
        "crop bilinear": plain,
        "crop bicubic": replace(plain, crop=Crop((0.2, 1.0), interpolation="bicubic")),
        "small crop enlarged": replace(plain, crop=Crop((0.02, 0.05))),
        "centre crop": replace(plain, crop=CentreCrop(0.875)),
        "flip": replace(plain, flip=1.0),
    }
    derived = replace(plain, name="derived", parent="view", operations=(Jitter(p=1.0),))
    return {
        **{name: Views((view,)) for name, view in views.items()},
        **cases_of(known_operations().values(), size),
        "derived view": Views((plain, derived)),
    }


def cases_of(kinds: Iterable[type[Operation]], size: int) -> dict[str, Views]:
    """The cases of these operations, each alone on a view of `size` pixels."""
    cases = {name: operation for kind in kinds for name, operation in kind().cases(size).items()}
    return {name: Views((replace(_plain(size), operations=(o,)),)) for name, o in cases.items()}


def _plain(size: int) -> View:
    return View("view", size, crop=_CROP, flip=0.0)


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


def pil_has(operation: Operation) -> bool:
    """Whether PIL has a meaning of its own for it."""
    return type(operation).with_pil is not Operation.with_pil


def tolerance(executor: str, case: str, recipe: Iterable[View] = ()) -> Tolerance:
    """How far `executor` may be from `reference` in a case of `operations`, or in a recipe called method/data set."""
    used = [operation for view in recipe for operation in view.operations]
    colour = "/" in case or any(operation.gain > 1 for operation in used)
    steep = max([1.0, *(operation.gain / 2 for operation in used)])
    jump = max((operation.jump() for operation in used), default=0.0)
    if executor == "pil":
        return _pil_tolerance(case, used)
    if executor.endswith("cuda"):
        if "dali" in executor:
            mean, reason = 1.5 if colour else 1.2, _BYTES + "; nvJPEG's inverse DCT and upsampling are not libjpeg's"
            return Tolerance(mean * steep, 90 * steep + jump, reason)
        return Tolerance(0.02 * steep, steep + jump, _FLOAT)
    if executor == "dali cuts":
        mean, largest = (0.8, 40) if colour else (0.4, 25)
        reason = _BYTES + ("; colours multiply that" if colour else "")
        return Tolerance(mean * steep, largest * steep + jump, reason)
    return Tolerance(0.005 * steep, (0.5 if colour else 0.05) * steep + jump, _FLOAT)


def _pil_tolerance(case: str, used: list[Operation]) -> Tolerance:
    if case == "crop bicubic":
        return Tolerance(1.0, 60, _PIL + " and between the two directions of a resize, where overshoot is cut off")
    if "/" in case:
        return Tolerance(2.5, 120, _PIL + "; its Gaussian blur is three box filters and has no kernel size")
    worst = max((operation.pil_differs() for operation in used), default=(1.0, 8.0, ""))
    return Tolerance(worst[0], worst[1], _PIL + (f"; {worst[2]}" if worst[2] else ""))
