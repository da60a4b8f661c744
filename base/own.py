"""Code of the user's own, by path/to/file.py or package.module. It is executed: take the place from the user alone."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

from saccade.base.errors import UserError
from saccade.base.text import printable

FILE_MODULE = "saccade_file_"  # how the names of modules made from files begin


class Named(Protocol):
    """A method, a protocol."""

    @property
    def name(self) -> str: ...


Kind = TypeVar("Kind", bound=Named)
Found = TypeVar("Found")


def names_code(name: str) -> bool:
    """Whether a name is written as a place of code instead: path/to/file.py, package.module, either with :NAME."""
    return any(mark in name for mark in (".", "/", ":"))


def absolute(name: str) -> str:
    """The same place from any folder; what is no path as it is."""
    place, colon, wanted = split(name)
    return f"{os.path.abspath(os.path.expanduser(place))}{colon}{wanted}" if place.endswith(".py") else name


def moved(name: object, before: object) -> bool:
    """Whether both name a file of code that is called the same, in another folder."""
    texts = isinstance(name, str) and isinstance(before, str) and names_code(name)
    return texts and os.path.basename(str(name)) == os.path.basename(str(before))


def split(name: str) -> tuple[str, str, str]:
    """(place, ":", NAME) of place:NAME; (place, "", "") without one."""
    place, colon, wanted = name.rpartition(":")
    return (place, colon, wanted) if colon else (name, "", "")


def load_code(place: str, what: str) -> ModuleType:
    """The module at path/to/file.py or package.module; a UserError that begins with `what` if it cannot be imported."""
    path = Path(place).expanduser().resolve()
    if place.endswith(".py") and not path.is_file():
        raise UserError(f"{what}: there is no file {path}.")
    try:
        return _from_file(path) if place.endswith(".py") else _from_module(place)
    except Exception as error:
        raise UserError(f"{what}: {place} cannot be imported: {type(error).__name__}: {error}.") from error


def chosen(written: str, variable: str, kind: type[Kind], flag: str) -> Kind:
    """Of the `kind`s that `variable` lists in the file or module `written`, the one called as :NAME says, or the only
    one."""
    place, _, wanted = split(written)
    there = {each.name: each for each in listed(variable, kind, load_code(place, f"{flag} {written}"), place)}
    if wanted and wanted not in there:
        raise UserError(f"{flag} {written}: {place} has no {wanted}; it has {', '.join(there)}.")
    if not wanted and len(there) > 1:
        raise UserError(f"{flag} {written}: {place} has {', '.join(there)}; say which: {place}:{next(iter(there))}.")
    return there[wanted] if wanted else next(iter(there.values()))


def listed(variable: str, kind: type[Kind], module: object, place: str) -> tuple[Kind, ...]:
    """What `variable` lists; UserError unless it is a tuple of `kind`."""
    found = getattr(module, variable, ())
    if not isinstance(found, tuple | list) or not found or not all(isinstance(each, kind) for each in found):
        raise UserError(f"{place} defines no {variable}, a tuple of {kind.__module__}.{kind.__name__}.")
    return tuple(found)


def offered(group: str, check: Callable[[Any, str], Found]) -> Iterator[tuple[str, Found]]:
    """What installed packages offer under an entry point group: name, and what `check(value, place)` makes of it.

    One that cannot be imported, or that the check refuses, is left out, and said.
    """
    for entry in entry_points(group=group):
        try:
            yield entry.name, check(entry.load(), f"the entry point {entry.name} = {entry.value}")
        except Exception as error:
            why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            print(printable(f"note: {group} {entry.name} = {entry.value} is left out: {why}"), file=sys.stderr)


def place_of(thing: type) -> str:
    """Where a class of the user's own was found, as place:NAME."""
    module = thing.__module__
    return f"{sys.modules[module].__file__ if module.startswith(FILE_MODULE) else module}:{thing.__name__}"


def _from_file(path: Path) -> ModuleType:
    """One module for each file, however often it is named: its classes stay the same objects until it is edited."""
    content = hashlib.sha256(f"{path}\n".encode() + path.read_bytes()).hexdigest()[:12]
    name = f"{FILE_MODULE}{path.stem}_{content}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _from_module(place: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's own module lies where the command was started
    return importlib.import_module(place)
