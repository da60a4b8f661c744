"""Finds the methods: every file in losses/ that defines METHODS, of installed packages, files of the user's own."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType

from saccade import losses
from saccade.base import own
from saccade.base.errors import UserError
from saccade.losses import recipes
from saccade.losses.objective import Method

ENTRY_POINTS = "saccade.methods"  # NAME = "package.module", a module that defines METHODS
_OWN: dict[str, Method] = {}  # those that the user named by their place


@cache
def methods() -> dict[str, Method]:
    """name -> Method, in alphabetical order: ours, and those that installed packages offer.

    Examples:
        >>> methods()["resa"].recipe("cifar10", None).epochs
        1000
    """
    found = {}
    for room in (losses, recipes):
        for info in pkgutil.iter_modules(room.__path__):
            for method in getattr(importlib.import_module(f"{room.__name__}.{info.name}"), "METHODS", ()):
                found[method.name] = method
    for entry in entry_points(group=ENTRY_POINTS):
        found |= {m.name: m for m in _methods_of(entry.load(), f"the entry point {entry.name}") if m.name not in found}
    return dict(sorted(found.items()))


def find_method(name: str) -> Method:
    """The method called `name`, or at path/to/file.py[:NAME] or package.module[:NAME]; UserError, with the nearest.

    A file or module given so is executed: take it from the user alone, never from something received.
    """
    if own.names_code(name):
        return _of_ones_own(name)
    known = {**methods(), **_OWN}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise UserError(
            f"--method {name} is unknown; use one of {', '.join(known)}"
            + (f" (did you mean {near[0]}?)" if near else "")
            + ", or one of your own as path/to/file.py or package.module."
        )
    return known[name]


def _of_ones_own(written: str) -> Method:
    place, _, wanted = own.split(written)
    there = {m.name: m for m in _methods_of(own.load_code(place, f"--method {written}"), place)}
    if wanted and wanted not in there:
        raise UserError(f"--method {written}: {place} has no {wanted}; it has {', '.join(there)}.")
    if not wanted and len(there) > 1:
        raise UserError(f"--method {written}: {place} has {', '.join(there)}; say which: {place}:{next(iter(there))}.")
    method = there[wanted] if wanted else next(iter(there.values()))
    if method.name in methods():
        raise UserError(f"--method {written} calls itself {method.name}, as one of ours; give it another name.")
    _OWN[method.name] = method
    return method


def _methods_of(module: ModuleType, place: str) -> tuple[Method, ...]:
    found = getattr(module, "METHODS", ())
    if not found or not all(isinstance(method, Method) for method in found):
        raise UserError(
            f"{place} defines no METHODS, a tuple of saccade.losses.objective.Method (docs/add_a_method.md has one)."
        )
    return tuple(found)
