"""The language of --set: PATH=VALUE edits a recipe as a recipe file has it; the values are TOML's.

What TOML asks for and a shell takes away may be left out: quotes around a word, brackets around a list. PATH=none
switches a group, a view or an operation off, PATH+=VALUE adds a view, an operation or an entry of a list.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from saccade.base.errors import UserError
from saccade.losses.recipe import TrainingRecipe
from saccade.models.schedules import schedule_options
from saccade.pipelines.operations import USUAL, Operation
from saccade.pipelines.operations.registry import find_operation, place_of
from saccade.runs.plain_recipe import (
    SHARED,
    VIEW_FIELDS,
    Fault,
    Own,
    Path,
    free_key,
    from_plain,
    is_none,
    no_operation,
    operation_name,
    to_plain,
    unknown,
)

ADD = "operations+"
_BARE_LIST = re.compile(r"\[[^\[\](){}\"']*\]|\([^\[\](){}\"']*\)|[^\[\](){}\"']*,[^\[\](){}\"']*")


def with_settings(recipe: TrainingRecipe, settings: Sequence[str], own: Own | None = None) -> TrainingRecipe:
    """The recipe with each PATH=VALUE applied, in order, and then checked as a whole. UserError for what cannot be.

    own: the operations of the user's own that the recipe has, and where each was found; operations+= finds others.
    """
    if not settings:
        return recipe
    plain = to_plain(recipe)
    kinds = {**own_operations(recipe), **(own or {})}
    with blamed(settings):
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals:
                raise UserError(f"--set {setting}: write KEY=VALUE, e.g. options.temperature=0.2.")
            if key in ("method", "data"):
                raise UserError(
                    f"--set {setting}: a recipe belongs to its method and data set; use --method or --recipe."
                )
            if names_code(setting) and text not in kinds:
                kinds |= found_operation(text)
            path = tuple(key.removesuffix("+").split("."))
            value = text if names_code(setting) else read_value(text, setting)
            if len(path) > 4 or (len(path) > 3 and path[0] not in ("views", "companion")):
                raise Fault(path, "there is nothing so deep inside a recipe.")
            _edit(plain, path, value, key.endswith("+"), kinds)
        return from_plain(plain, type(recipe.options), kinds)


@contextmanager
def blamed(settings: Sequence[str]) -> Iterator[None]:
    """A fault inside is told as that of the last setting that touches its place, if one does."""
    try:
        yield
    except Fault as fault:
        for setting in reversed(settings):
            path = tuple(setting.partition("=")[0].removesuffix("+").removesuffix(".operations").split("."))
            shorter = min(len(path), len(fault.path))
            if path[:shorter] == fault.path[:shorter]:
                raise UserError(f"--set {setting}: {fault.message}") from fault
        raise


def names_code(setting: str) -> bool:
    """Whether it brings in an operation of somebody's own, which is code that runs."""
    key, _, text = setting.partition("=")
    return key.endswith(ADD) and ":" in text and not text.lstrip().startswith("{")


def found_operation(place: str) -> dict[str, type[Operation]]:
    """The operation at path/to/file.py:Class or package.module:Class, whose code runs, under that name and its own."""
    kind = find_operation(place)
    return {place: kind, place_of(kind) or place: kind}


def own_operations(recipe: TrainingRecipe) -> dict[str, type[Operation]]:
    """The recipe's operations that no installed package offers, by where each was found."""
    views = [*recipe.views, *(recipe.companion or ())]
    kinds = {type(operation) for view in views for operation in view.operations}
    return {place: kind for kind in kinds if (place := place_of(kind))}


def read_value(text: str, setting: str) -> Any:
    """`text` as TOML has values; words without quotes, and lists of such without brackets, are text and lists too."""
    text = text.strip()
    try:
        if "\n" not in text:
            return tomllib.loads(f"value = {text}")["value"]
        reason = "a line ends in it"
    except (ValueError, RecursionError) as error:
        reason = re.sub(r" \(at .*\)", "", str(error))
    if _BARE_LIST.fullmatch(text):
        return [read_value(part, setting) for part in text.strip("()[]").split(",") if part.strip()]
    if re.match(r"[\[{(\"']", text) or not text.isprintable():
        raise UserError(f"--set {setting}: that is no value of TOML ({reason}).")
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)  # .5 and 1. are numbers in Python, not in TOML
    except ValueError:
        return text


def _edit(plain: dict[str, Any], path: Path, value: Any, add: bool, own: Own) -> None:
    if path[0] in ("views", "companion") and not (len(path) == 1 and is_none(value)):
        return _edit_views(plain, path, value, add, own)
    group = plain
    for depth, name in enumerate(path[:-1]):
        group = _inside(group, name, path[: depth + 1], path)
    name = path[-1]
    if name not in group and path[:-1] not in (("backbone", "options"), ("schedule", "options")):
        raise unknown(path, group)
    if path == ("schedule", "kind") and isinstance(value, str):
        plain["schedule"]["options"] = _options_of(value, plain["schedule"])
    if not add:
        group[name] = value
    elif isinstance(group.get(name), list):
        group[name] = [*group[name], *(value if isinstance(value, list) else [value])]
    else:
        raise Fault(path, "+= adds a view, an operation or an entry of a list; that is none of them.")


def _inside(group: dict[str, Any], name: str, here: Path, path: Path) -> dict[str, Any]:
    """The table called `name`; a fault where there is none."""
    if name not in group:
        raise unknown(here, group)
    if not isinstance(group[name], dict):
        what = "none" if is_none(group[name]) else "one value"
        raise Fault(path, f"{'.'.join(here)} is {what}, and has no {path[len(here)]!r}; give {'.'.join(here)}=...")
    return group[name]


def _options_of(kind: str, schedule: Mapping[str, Any]) -> dict[str, Any]:
    """The options that another kind of schedule brings: as they are where both have them, else its usual ones."""
    try:
        usual = schedule_options(kind)
    except UserError as error:
        raise Fault(("schedule", "kind"), f"{error}.") from error
    now = schedule.get("options")
    now = dict(now) if isinstance(now, dict) else {}
    if kind == schedule.get("kind"):
        return now
    return {name: now.get(name, default) for name, (_, default) in usual.items() if name in now or default is not None}


def _edit_views(plain: dict[str, Any], path: Path, value: Any, add: bool, own: Own) -> None:
    """views.NAME.FIELD changes one view, views.NAME=none leaves it out, views.NAME+= adds one: a table, or the name of
    the view it is to be like; views.views=NAME,NAME keeps these, in this order."""
    if len(path) == 1 and add and isinstance(value, dict) and isinstance(value.get("name"), str):
        path, value = (*path, value["name"]), {k: v for k, v in value.items() if k != "name"}
    if len(path) == 1:
        if add or not isinstance(value, dict):
            example = next((name for name in plain[path[0]] if name not in SHARED), "NAME")
            raise Fault(
                path,
                f"name a view's field, e.g. {path[0]}.{example}.crop.scale=0.2,1.0, or {path[0]}.views=NAME,NAME for "
                f"some of them, or {path[0]}.NAME+=... to add one.",
            )
        plain[path[0]] = value
        return
    views = _inside(plain, path[0], path[:1], path)
    here, name = path[:2], path[1]
    if name == "views" and len(path) == 2:
        plain[path[0]] = {k: views[k] for k in SHARED if k in views} | {k: _view(views, k, here) for k in _names(value)}
    elif name in SHARED:
        views[name] = value
    elif add and len(path) == 2:
        if name in views:
            raise Fault(here, "there is a view of that name already; choose another.")
        views[name] = value if isinstance(value, dict) else dict(_view(views, str(value), here))
    elif len(path) == 2 and is_none(value):
        _view(views, name, here)
        del views[name]
    elif len(path) == 2:
        _view(views, name, here)
        views[name] = value
    else:
        views[name] = _edited(dict(_view(views, name, here)), path, value, add, own)


def _names(value: Any) -> list[str]:
    return [str(name) for name in (value if isinstance(value, list) else [value])]


def _view(views: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    if name in SHARED or not isinstance(views.get(name), dict):
        names = [k for k in views if k not in SHARED]
        fault = unknown((*path[:1], name), names, f", or {path[0]}.{name}+=... to add it")
        raise Fault(path, fault.message.replace("there is no", "the recipe has no view").replace(" here;", ";", 1))
    return views[name]


def _edited(view: dict[str, Any], path: Path, value: Any, add: bool, own: Own) -> dict[str, Any]:
    """The view with views.NAME.FIELD, or one of its operations, changed, added or taken away."""
    name = path[2]
    if name == "operations" and len(path) == 3:
        return _operations(view, path, value, add, own)
    if name in VIEW_FIELDS:
        return {**view, name: value if len(path) == 3 else {**_inside(view, name, path[:3], path), path[3]: value}}
    if name not in view and operation_name(name, own) is None:
        raise no_operation(path[:3], own)
    if len(path) == 3 and is_none(value):
        return _rekeyed({k: v for k, v in view.items() if k != name}, own)
    if add:
        return _placed(view, free_key(view, name), value, own)
    known = view.get(name, {})
    known = known if isinstance(known, dict) else {"p": known}
    if len(path) > 3:
        value = {**known, path[3]: value}
    elif isinstance(value, dict):  # another group of numbers, of the same class
        value = {**({"from": known["from"]} if "from" in known else {}), **value}
    elif isinstance(value, int | float):
        value = {**known, "p": value}
    return {**view, name: value} if name in view else _placed(view, name, value, own)


def _operations(view: dict[str, Any], path: Path, value: Any, add: bool, own: Own) -> dict[str, Any]:
    """operations=none takes all away, =NAME,NAME keeps these in this order, +=NAME or a table with a name adds one."""
    if not add:
        names = [] if is_none(value) else _names(value)
        here = [name for name in view if name not in VIEW_FIELDS]
        if missing := [name for name in names if name not in here]:
            raise unknown((*path[:2], missing[0]), here, ", or operations+=NAME to add one")
        cut = {name: v for name, v in view.items() if name in VIEW_FIELDS}
        return _rekeyed({**cut, **{name: view[name] for name in names}}, own)
    table = dict(value) if isinstance(value, dict) else {"name": value}
    place = table.pop("name", None)
    if not isinstance(place, str):
        raise Fault(path, 'give an operation\'s name, or a table with it, {name = "blur", p = 0.5}.')
    if kind := own.get(place):
        return _placed(view, free_key(view, kind.name), {"from": place, **table}, own)
    if operation_name(place, own) is None:
        raise no_operation((*path[:2], place), own)
    return _placed(view, free_key(view, place), table, own)


def _placed(view: dict[str, Any], key: str, operation: Any, own: Own) -> dict[str, Any]:
    """With one more operation: a usual one at its place in the papers' order, any other at the end."""
    order = {kind.name: rank for rank, kind in enumerate(USUAL)}
    rank = {k: order.get(operation_name(k, own) or "", len(order)) for k in (key, *view)}
    names = [k for k in view if k not in VIEW_FIELDS]
    place = next((i for i, k in enumerate(names) if rank[k] > rank[key]), len(names))
    names.insert(place, key)
    cut = {name: v for name, v in view.items() if name in VIEW_FIELDS}
    return {**cut, **{k: operation if k == key else view[k] for k in names}}


def _rekeyed(view: dict[str, Any], own: Own) -> dict[str, Any]:
    """With the operations of one name numbered anew: blur, blur_2."""
    keyed: dict[str, Any] = {}
    for key, value in view.items():
        name = key if key in VIEW_FIELDS else operation_name(key, own) or key
        keyed[free_key(keyed, name)] = value
    return keyed
