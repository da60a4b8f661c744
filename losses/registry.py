"""Finds the methods: every file in losses/ that defines METHODS. Adding one is adding a file."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache

from saccade import losses
from saccade.base.errors import UserError
from saccade.losses.objective import Method


@cache
def methods() -> dict[str, Method]:
    """name -> Method, in alphabetical order.

    Examples:
        >>> methods()["resa"].recipe("cifar10", None).epochs
        1000
    """
    found = {}
    for info in pkgutil.iter_modules(losses.__path__):
        for method in getattr(importlib.import_module(f"saccade.losses.{info.name}"), "METHODS", ()):
            found[method.name] = method
    return dict(sorted(found.items()))


def find_method(name: str) -> Method:
    """The method, or a UserError that names the nearest."""
    known = methods()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise UserError(
            f"--method {name} is unknown; use one of {', '.join(known)}"
            + (f" (did you mean {near[0]}?)." if near else ".")
        )
    return known[name]
