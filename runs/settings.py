"""The language of --set: any value of a recipe by its dotted path."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Union, get_args, get_origin, get_type_hints

from saccade.base.errors import UserError
from saccade.losses.recipe import TrainingRecipe
from saccade.pipelines.operations.registry import find_operation, known_operations
from saccade.pipelines.views import View, Views


def with_settings(recipe: TrainingRecipe, settings: Sequence[str]) -> TrainingRecipe:
    """The recipe with each KEY=VALUE applied; KEY is a dotted path to a field, VALUE is read as the field's type."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write KEY=VALUE, e.g. options.temperature=0.2.")
        if key in ("method", "data"):
            raise UserError(f"--set {setting}: a recipe belongs to its method and data set; use --method or --recipe.")
        if key == "views":
            raise UserError(
                f"--set {setting}: name a view's field, e.g. views.{recipe.views.names[0]}.crop.scale=0.2,1.0, "
                "or views.views=NAME,NAME for some of them."
            )
        recipe = _set(recipe, key.split("."), text, key)
    return recipe


def names_code(setting: str) -> bool:
    """Whether it brings in an operation of somebody's own, which is code that runs."""
    key, _, text = setting.partition("=")
    return key.endswith("operations+") and ":" in text


def _set(node: Any, path: list[str], text: str, key: str) -> Any:
    name = path[0]
    if isinstance(node, Mapping):
        return {**node, name: _read(text, type(node.get(name)) if name in node else Any, key)}
    if isinstance(node, Views) and name in (*node.names, "views"):
        return _set_views(node, path, text, key)
    if isinstance(node, View) and (name == "operations" or name not in _field_names(node)):
        return _set_operation(node, path, text, key)
    names = _field_names(node)
    if name not in names:
        raise UserError(f"--set {key}: the recipe has no {name!r} there; use one of {', '.join(names) or 'none'}.")
    if len(path) > 1:
        return replace(node, **{name: _set(getattr(node, name), path[1:], text, key)})
    if inside := _field_names(getattr(node, name)):
        raise UserError(
            f"--set {key}: that is a group of values; set one of {', '.join(f'{key}.{field}' for field in inside)}."
        )
    return replace(node, **{name: _read(text, get_type_hints(type(node))[name], key)})


def _field_names(value: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(value) if field.init] if dataclasses.is_dataclass(value) else []


def _set_views(node: Views, path: list[str], text: str, key: str) -> Views:
    """views.NAME.FIELD changes one view; views.views=NAME,NAME keeps these views alone."""
    if path == ["views"]:
        kept = [name.strip() for name in text.split(",")]
        if unknown := [name for name in kept if name not in node.names]:
            raise UserError(f"--set {key}: the recipe has no view {unknown[0]!r}; use some of {', '.join(node.names)}.")
        return replace(node, views=tuple(node[name] for name in kept))
    if len(path) == 1:
        raise UserError(f"--set {key}: name a field of the view, e.g. {key}.crop.scale=0.2,1.0.")
    changed = _set(node[path[0]], path[1:], text, key)
    return replace(node, views=tuple(changed if view.name == path[0] else view for view in node))


def _set_operation(view: View, path: list[str], text: str, key: str) -> View:
    """views.NAME.OPERATION.FIELD changes a number, of an operation with usual numbers where the view had none of that
    name; views.NAME.OPERATION=none takes it away, =P changes its probability. views.NAME.operations+=OPERATION adds
    one, which may be of the user's own: path/to/file.py:Class or package.module:Class."""
    name, *fields = path
    if path == ["operations+"]:
        return view.added(find_operation(text)())
    if name not in view and name not in known_operations():
        own = [field for field in _field_names(view) if field != "operations"]
        raise UserError(
            f"--set {key}: the recipe has no {name!r} there; use one of {', '.join((*own, *known_operations()))}, or "
            "operations+=path/to/file.py:Class for an operation of your own."
        )
    if not fields and text.lower() == "none":
        return view.replaced(name, None)
    view = view if name in view else view.added(find_operation(name)())
    return view.replaced(name, _set(view[name], fields or ["p"], text, key))


def _read(text: str, hint: Any, key: str) -> Any:
    """`text` as a value of the annotated type."""
    if get_origin(hint) in (types.UnionType, Union):
        options = [h for h in get_args(hint) if h is not type(None)]
        return None if text.lower() == "none" else _read(text, options[0], key)
    try:
        if hint is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if hint in (int, float, str):
            return hint(text)
        if get_origin(hint) is tuple:
            kind = get_args(hint)[0]
            return tuple(kind(part) for part in text.strip("()[] ").split(",") if part.strip())
        return json.loads(text)
    except (ValueError, KeyError) as error:
        raise UserError(f"--set {key}={text}: that is no {getattr(hint, '__name__', hint)}.") from error
