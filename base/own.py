"""Code of the user's own, by path/to/file.py or package.module. It is executed: take the place from the user alone."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from saccade.base.errors import UserError

FILE_MODULE = "saccade_file_"  # how the names of modules made from files begin


def names_code(name: str) -> bool:
    """Whether a name is written as a place of code instead: path/to/file.py, package.module, either with :NAME."""
    return any(mark in name for mark in (".", "/", ":"))


def absolute(name: str) -> str:
    """The same place from any folder; what is no path as it is."""
    place, colon, wanted = split(name)
    return f"{os.path.abspath(os.path.expanduser(place))}{colon}{wanted}" if place.endswith(".py") else name


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


def place_of(thing: type) -> str:
    """Where a class of the user's own was found, as place:NAME."""
    module = thing.__module__
    return f"{sys.modules[module].__file__ if module.startswith(FILE_MODULE) else module}:{thing.__name__}"


def _from_file(path: Path) -> ModuleType:
    """One module for each file, however often it is named: its classes stay the same objects."""
    name = f"{FILE_MODULE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
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
