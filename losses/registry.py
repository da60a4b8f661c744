"""Finds the methods: every file in losses/ that defines METHODS, of installed packages, files of the user's own."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache, partial

from saccade import losses
from saccade.base import own
from saccade.base.errors import UserError
from saccade.base.text import did_you_mean
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
    for _, there in own.offered(ENTRY_POINTS, partial(own.listed, "METHODS", Method)):
        found |= {method.name: method for method in there if method.name not in found}
    return dict(sorted(found.items()))


def find_method(name: str) -> Method:
    """The method called `name`, or at path/to/file.py[:NAME] or package.module[:NAME]; UserError, with the nearest.

    A file or module given so is executed: take it from the user alone, never from something received.
    """
    if own.names_code(name):
        method = own.chosen(name, "METHODS", Method, "--method")
        if method.name in methods():
            raise UserError(f"--method {name} calls itself {method.name}, as one of ours; give it another name.")
        _OWN[method.name] = method
        return method
    known = {**methods(), **_OWN}
    if name not in known:
        raise UserError(
            f"--method {name} is unknown; use one of {', '.join(known)}{did_you_mean(name, known)}, "
            "or one of your own as path/to/file.py or package.module."
        )
    return known[name]
