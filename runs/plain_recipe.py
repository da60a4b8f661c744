"""A recipe as plain values, as TOML has them, and back, each checked by the type of its field.

Views and operations go by name, in order: views.weak.blur.p. What is not there (None) is the word "none". Nothing is
executed here: an operation of somebody's own is used where its class was given, and else refused.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from saccade.base.errors import UserError
from saccade.base.text import did_you_mean, printable
from saccade.losses.recipe import ScheduleSpec, TrainingRecipe
from saccade.models.schedules import schedule_options
from saccade.pipelines.operations.operation import Operation
from saccade.pipelines.operations.registry import known_operations, place_of
from saccade.pipelines.views import View, Views

Path = tuple[str, ...]
Own = Mapping[str, type[Operation]]  # operations of the user's own: where each was found -> its class
VIEW_FIELDS = tuple(f.name for f in dataclasses.fields(View) if f.name not in ("name", "operations"))
SHARED = ("mean", "std")  # what all views have in common
LARGEST = 2**53  # whole numbers beyond are no counts, and no float holds them
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class Fault(UserError):
    """A value that cannot be: where in the recipe, and what is wrong and allowed there."""

    def __init__(self, path: Iterable[str], message: str, value: Any = None) -> None:
        self.path, self.message = tuple(path), message if message.endswith(".") else f"{message}."
        super().__init__(f"{printable('.'.join(self.path))}{'' if value is None else f' = {value}'}: {self.message}")


def unknown(path: Path, known: Iterable[str], more: str = "") -> Fault:
    """The fault of a key that is not there: with those that are, and the nearest."""
    known = list(known)
    hint = did_you_mean(path[-1], known)
    return Fault(path, f"there is no {path[-1]!r} here; use one of {', '.join(known) or 'none'}{more}{hint}.")


def to_plain(recipe: TrainingRecipe) -> dict[str, Any]:
    """The recipe as tables, lists and plain values; an operation that no installed package has says whence it is."""
    plain = plain_record(asdict(recipe))
    for group in ("views", "companion"):
        for view in getattr(recipe, group) or ():
            for key, operation in view.keyed.items():
                if place := place_of(type(operation)):
                    plain[group][view.name][key] = {"from": place, **plain[group][view.name][key]}
    return plain


def plain_record(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same from the fields as they are nested in Python, which is how config.json has them."""
    plain = {name: _plain(value) for name, value in values.items()}
    for group in ("views", "companion"):
        if values[group] is not None:
            plain[group] = {name: _plain(values[group][name]) for name in SHARED}
            plain[group] |= {view["name"]: _plain_view(view) for view in values[group]["views"]}
    return plain


def _plain_view(view: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: _plain(view[name]) for name in VIEW_FIELDS}
    for operation in view["operations"]:
        numbers = {name: _plain(value) for name, value in operation.items() if name != "name"}
        plain[free_key(plain, operation["name"])] = numbers
    return plain


def free_key(view: Mapping[str, Any], name: str) -> str:
    """`name`, or name_2, name_3 where the view has an operation of that name."""
    keys = (name if k == 1 else f"{name}_{k}" for k in range(1, len(view) + 2))
    return next(key for key in keys if key not in view)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return "none" if value is None else value


def from_plain(values: Any, options: type, own: Own | None = None) -> TrainingRecipe:
    """The recipe that the plain `values` say; options: the class of the method's hyper-parameters. Raises Fault."""
    return _Reader(options, own or {}).read(values, TrainingRecipe, ())


def leaves(plain: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value, with its path; of an empty table itself."""
    for name, value in plain.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def is_none(value: Any) -> bool:
    return isinstance(value, str) and value.lower() == "none"


class _Reader:
    """Plain values by the types of the fields they are for."""

    def __init__(self, options: type, own: Own) -> None:
        self._options, self._own = options, own

    def read(self, value: Any, hint: Any, path: Path) -> Any:
        kinds = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
        if type(None) in kinds and is_none(value):
            return None
        kind = _fitting([k for k in kinds if k is not type(None)], value)
        if special := {Views: self._views, ScheduleSpec: self._schedule}.get(kind):
            return special(value, path)
        if dataclasses.is_dataclass(kind):
            return self._group(value, kind, path)
        origin, inside = get_origin(kind), get_args(kind)
        if origin is tuple:
            return self._tuple(value, inside, path)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return self._table(value, inside[1], path)
        if origin is Literal:
            return value if value in inside else _refuse(path, f"give one of {', '.join(map(str, inside))}.")
        return _scalar(value, kind, path) if kind in _WORDS else _free(value, path)

    def _group(self, value: Any, kind: Any, path: Path) -> Any:
        fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
        if not isinstance(value, Mapping):
            names = ", ".join(".".join((*path, name)) for name in fields)
            raise Fault(path, f"that is a group of values; give a table, or set one of {names}.")
        for key in value:
            if key not in fields:
                raise unknown((*path, key), fields)
        required = [
            name
            for name, f in fields.items()
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        if lacking := [name for name in required if name not in value]:
            raise Fault(path, f"{', '.join(lacking)} must be given too.")
        hints = {**get_type_hints(kind), **({"options": self._options} if kind is TrainingRecipe else {})}
        return _made(kind, {key: self.read(v, hints[key], (*path, key)) for key, v in value.items()}, path, value)

    def _tuple(self, value: Any, inside: tuple[Any, ...], path: Path) -> tuple[Any, ...]:
        any_number = len(inside) == 2 and inside[1] is Ellipsis
        if any_number and not isinstance(value, list | tuple | Mapping):
            value = [value]
        if not isinstance(value, list | tuple):
            raise Fault(path, "give a list, [..., ...].")
        if not any_number and len(value) != len(inside):
            raise Fault(path, f"give {len(inside)} values.")
        kinds = [inside[0]] * len(value) if any_number else inside
        return tuple(self.read(v, kind, path) for v, kind in zip(value, kinds, strict=True))

    def _table(self, value: Any, kind: Any, path: Path) -> dict[str, Any]:
        if is_none(value):
            return {}
        if not isinstance(value, Mapping):
            raise Fault(path, "give a table, {NAME = VALUE, ...}, or none.")
        return {_scalar(key, str, path): self.read(v, kind, (*path, str(key))) for key, v in value.items()}

    def _schedule(self, value: Any, path: Path) -> ScheduleSpec:
        spec = self._group(value, ScheduleSpec, path)
        try:
            hints = schedule_options(spec.kind)
        except UserError as error:
            raise Fault((*path, "kind"), f"{error}.") from error
        path = (*path, "options")
        for name in spec.options:
            if name not in hints:
                raise Fault((*path, name), f"{spec.kind} has no such option; it takes {', '.join(hints) or 'none'}.")
        if lacking := [name for name, (_, default) in hints.items() if default is None and name not in spec.options]:
            raise Fault(path, f"{spec.kind} needs {', '.join(lacking)} too.")
        read = {name: self.read(v, hints[name][0], (*path, name)) for name, v in spec.options.items()}
        return ScheduleSpec(spec.kind, read)

    def _views(self, value: Any, path: Path) -> Views:
        if not isinstance(value, Mapping):
            raise Fault(path, "that is a group: mean, std and a table for each view.")
        if "views" in value:
            raise Fault((*path, "views"), "a view cannot be called views, mean or std.")
        hints = get_type_hints(Views)
        shared = {name: self.read(value[name], hints[name], (*path, name)) for name in SHARED if name in value}
        views = {k: self._view(k, v, (*path, k)) for k, v in value.items() if k not in SHARED and not is_none(v)}
        return _made(Views, {"views": tuple(views.values()), **shared}, path, dict.fromkeys(value))

    def _view(self, name: str, value: Any, path: Path) -> View:
        if not isinstance(value, Mapping):
            raise Fault(path, f"that is a view; give a table, or name a field of the view, {', '.join(VIEW_FIELDS)}.")
        if "size" not in value:
            raise Fault(path, "size must be given too.")
        hints = get_type_hints(View)
        fields = {key: self.read(v, hints[key], (*path, key)) for key, v in value.items() if key in VIEW_FIELDS}
        operations = {
            key: self._operation(key, v, (*path, key))
            for key, v in value.items()
            if key not in VIEW_FIELDS and not is_none(v)
        }
        given = {"name": _scalar(name, str, path), "operations": tuple(operations.values()), **fields}
        return _made(View, given, path, value)

    def _operation(self, key: str, value: Any, path: Path) -> Operation:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = {"p": value}
        if not isinstance(value, Mapping):
            if operation_name(key, self._own) is None:
                raise no_operation(path, self._own)
            raise Fault(path, "that is an operation; give a table, its probability, or none.")
        kind = self._kind(key, value.get("from"), path)
        return self._group({name: v for name, v in value.items() if name != "from"}, kind, path)

    def _kind(self, key: str, place: Any, path: Path) -> type[Operation]:
        """The class: one that is installed, or one of the user's own that was named on the command line."""
        if place is None:
            name = operation_name(key, self._own)
            if name is None:
                raise no_operation(path, self._own)
            return known_operations().get(name) or next(kind for kind in self._own.values() if kind.name == name)
        if not isinstance(place, str) or ":" not in place:
            raise Fault((*path, "from"), 'give "path/to/file.py:Class" or "package.module:Class".')
        moved = [kind for known, kind in self._own.items() if known.rpartition(":")[2] == place.rpartition(":")[2]]
        if kind := self._own.get(place) or next(iter(moved), None):
            return kind
        raise Fault(path, f"it is {place}, which runs code; if you trust it, say so: --operation {place}.")


def operation_name(key: str, own: Own) -> str | None:
    """The operation's name that a view's key stands for, blur of blur_2; None where there is none."""
    names = {**known_operations(), **{kind.name: kind for kind in own.values()}}
    return next((name for name in (key, re.sub(r"_\d+$", "", key)) if name in names), None)


def no_operation(path: Path, own: Own) -> Fault:
    """The fault of a view's key that is neither a field of it nor an operation."""
    names = dict.fromkeys((*VIEW_FIELDS, *known_operations(), *(kind.name for kind in own.values())))
    return unknown(path, names, ", or operations+=path/to/file.py:Class for an operation of your own")


def _fitting(kinds: list[Any], value: Any) -> Any:
    """Of several kinds the first that has the fields which `value` names: a crop's, or a centre crop's."""
    if isinstance(value, Mapping):
        for kind in kinds:
            if dataclasses.is_dataclass(kind) and set(value) <= {f.name for f in dataclasses.fields(kind)}:
                return kind
    return kinds[0]


def _scalar(value: Any, kind: Any, path: Path) -> Any:
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST:
        raise Fault(path, "that number is too large.")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise Fault(path, f"that is no {kind.__name__}; give {_WORDS[kind]}.")
    if isinstance(value, str) and not value.isprintable():
        raise Fault(path, "that text holds characters which cannot be printed.")
    return value


def _free(value: Any, path: Path) -> Any:
    """What a backbone, or a method of somebody's own, is given as it is."""
    if isinstance(value, Mapping):
        return {str(key): _free(v, (*path, str(key))) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_free(v, path) for v in value]
    if type(value) not in _WORDS:
        raise Fault(path, "give a number, true, false, text, a list or a table.")
    return None if is_none(value) else _scalar(value, type(value), path)


def _made(kind: Callable[..., Any], values: dict[str, Any], path: Path, written: Mapping[str, Any]) -> Any:
    """kind(**values); what its own check says becomes the fault of that part of `written` which it speaks of first."""
    try:
        return kind(**values)
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError) as error:
        raise Fault((*path, *_spoken_of(str(error), written)), str(error)) from error


def _spoken_of(message: str, written: Any) -> Path:
    places = {}
    for name in written if isinstance(written, Mapping) else ():
        if found := re.search(rf"\b{re.escape(name)}\b", message):
            places[name] = found.start()
    name = min(places, key=lambda n: places[n], default=None)
    return () if name is None else (name, *_spoken_of(message, written[name]))


def _refuse(path: Path, message: str) -> NoReturn:
    raise Fault(path, message)
