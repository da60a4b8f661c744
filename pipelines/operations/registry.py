"""Finds operations: every file of this folder, entry points, and files and modules of the user's own."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from saccade.base import own
from saccade.base.errors import UserError
from saccade.base.text import did_you_mean
from saccade.pipelines import operations
from saccade.pipelines.operations.operation import Operation

ENTRY_POINTS = "saccade.operations"


@cache
def known_operations() -> dict[str, type[Operation]]:
    """name -> class, in alphabetical order: those of this folder and those that installed packages offer."""
    found = {}
    for info in pkgutil.iter_modules(operations.__path__):
        module = importlib.import_module(f"{operations.__name__}.{info.name}")
        for value in vars(module).values():
            if _is_operation(value) and value.__module__ == module.__name__:
                found[value.name] = value
    return dict(sorted({**found, **dict(own.offered(ENTRY_POINTS, _checked))}.items()))


def find_operation(name: str) -> type[Operation]:
    """The class called `name`, or at path/to/file.py:Class or package.module:Class; a UserError where there is none.

    A file or module given so is executed: take it from the user alone, never from something received.
    """
    place, colon, wanted = own.split(name)
    if colon:
        return _of(own.load_code(place, f"the operation {name}"), wanted, place)
    known = known_operations()
    if name not in known:
        raise UserError(
            f"the operation {name} is unknown; use one of {', '.join(known)}{did_you_mean(name, known)}, "
            "or one of your own as path/to/file.py:Class or package.module:Class."
        )
    return known[name]


def place_of(kind: type[Operation]) -> str | None:
    """Where a class that no name stands for was found, as `find_operation` takes it; None for one that has a name."""
    if known_operations().get(kind.name) is kind:
        return None
    return own.place_of(kind)


def _of(module: object, wanted: str, place: str) -> type[Operation]:
    classes = [name for name, value in vars(module).items() if _is_operation(value)]
    if not hasattr(module, wanted):
        raise UserError(f"{place} has no {wanted}; it has the operations {', '.join(classes) or 'none'}.")
    return _checked(getattr(module, wanted), f"{place}:{wanted}")


def _checked(value: object, place: str) -> type[Operation]:
    if not _is_operation(value):
        raise UserError(
            f"{place} is no operation; derive a frozen dataclass from saccade.pipelines.operations.Operation."
        )
    return value  # type: ignore[return-value]


def _is_operation(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Operation) and not inspect.isabstract(value)
