"""python -m tools.recipes [METHOD [RECIPE]]: every method's recipes as a table, or one in full with its sources."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.program import command_parser
from saccade.base.text import did_you_mean
from saccade.losses.objective import Method
from saccade.losses.recipe import IMAGE_SIZE, TrainingRecipe
from saccade.losses.registry import find_method, methods
from saccade.pipelines.views import View
from saccade.runs.recipe_file import recipe_toml

COLUMNS = (
    "method",
    "recipe",
    "from",
    "px",
    "views",
    "backbone",
    "optimizer",
    "weight decay",
    "schedule",
    "epochs",
    "batch",
    "batch norm",
    "precision",
    "protocol",
)


EXAMPLES = {
    "": "every recipe as a table",
    "resa cifar10": "one in full, with the source of every value",
    "resa cifar10 --toml > mine.toml": "as a file to change, for saccade train --recipe mine.toml",
    "stec --json": "the values, for a program",
}


def parser() -> argparse.ArgumentParser:
    command = command_parser("python -m tools.recipes", main.__doc__ or "", EXAMPLES)
    command.add_argument("method", nargs="?", help="only this method's recipes")
    command.add_argument("recipe", nargs="?", help="this recipe in full: a data set, or a variant of its recipe")
    how = command.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON")
    how.add_argument("--toml", action="store_true", help="print the recipe as a file for saccade train --recipe")
    return command


def main(argv: list[str] | None = None) -> int:
    """Print the table, or one recipe; --json prints the values instead."""
    wanted = parser().parse_args(argv)
    if wanted.toml and not wanted.recipe:
        raise UserError("--toml prints one recipe; name it: saccade recipes METHOD RECIPE --toml.")
    chosen = [find_method(wanted.method)] if wanted.method else list(methods().values())
    if wanted.recipe:
        recipe = find_recipe(chosen[0], wanted.recipe)
        if wanted.toml:
            print(as_file(chosen[0], recipe), end="")
        else:
            print(json.dumps(asdict(recipe), indent=2) if wanted.json else in_full(chosen[0], recipe))
        return 0
    recipes = [(method, method.recipe(name, None)) for method in chosen for name in recipe_names(method)]
    if wanted.json:
        print(json.dumps([asdict(recipe) for _, recipe in recipes], indent=2))
    else:
        print(table([COLUMNS, *(row(method, recipe) for method, recipe in recipes)]))
        if wanted.method and chosen[0].ablations:
            print(ablations(chosen[0]))
    return 0


def recipe_names(method: Method) -> list[str]:
    """The project's data sets, each followed by the method's variants for it."""
    variants = [method.recipe(name, None) for name in method.published if name not in IMAGE_SIZE]
    of_ours = [name for data in IMAGE_SIZE for name in (data, *(v.name for v in variants if v.data == data))]
    return of_ours + [v.name for v in variants if v.data not in IMAGE_SIZE]


def ablations(method: Method) -> str:
    """The paper's ablations: what each changes, where it is from, and the published numbers."""
    cells = [
        (a.name, a.summary, a.source, "; ".join(f"{data}: {found}" for data, found in a.results.items()))
        for a in method.ablations
    ]
    heading = f"\nablations, for any of these recipes: --recipe cifar10-{method.ablations[0].name}"
    return "\n".join((heading, table([("name", "what", "from", "published"), *cells])))


def find_recipe(method: Method, name: str) -> TrainingRecipe:
    """The recipe of that name; a UserError with the nearest where there is none."""
    known = recipe_names(method)
    if not method.knows(name):
        raise UserError(
            f"{method.name} has no recipe {name}; use one of {', '.join(known)}{did_you_mean(name, known)}."
        )
    return method.recipe(name, None)


def origin(method: Method, recipe: TrainingRecipe) -> str:
    """ "authors", "authors*" where single values are ours, or "proposal"."""
    if recipe.name not in method.published:
        return "proposal"
    return "authors*" if recipe.proposals else "authors"


def row(method: Method, recipe: TrainingRecipe) -> tuple[str, ...]:
    """A recipe as cells of the table."""
    o, backbone = recipe.optimizer, recipe.backbone
    stem = "" if backbone.stem in ("plain", "auto") else f" ({backbone.stem})"
    return (
        method.name,
        recipe.name,
        origin(method, recipe),
        str(recipe.image_size),
        str(len(recipe.views)),
        backbone.name + stem,
        f"{o.name} {o.lr:g} at {o.lr_batch}",
        f"{o.weight_decay:g} ({o.rule})",
        recipe.schedule.kind,
        str(recipe.epochs),
        str(recipe.batch_size),
        recipe.batch_norm,
        recipe.precision,
        recipe.protocol,
    )


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows under a header, in columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def in_full(method: Method, recipe: TrainingRecipe) -> str:
    """Every value of the recipe by the name that --set takes, then where values come from and which are ours."""
    values = asdict(recipe)
    sources, proposals = values.pop("sources"), values.pop("proposals")
    values["views"] = {
        "mean": recipe.views.mean,
        "std": recipe.views.std,
        **{view.name: _spread(view) for view in recipe.views},
    }
    lines = [f"{method.name} on {recipe.name}: {method.summary}", f"from: {origin(method, recipe)}", ""]
    pairs = list(_flat(values))
    width = max(len(name) for name, _ in pairs)
    lines += [f"{name.ljust(width)}  {_spelt(value)}" for name, value in pairs]
    for title, notes in (("sources", sources), ("proposals (ours, not the authors')", proposals)):
        if notes:
            lines += ["", f"{title}:", *(f"  {name}: {note}" for name, note in notes.items())]
    return "\n".join(lines)


def as_file(method: Method, recipe: TrainingRecipe) -> str:
    """The recipe as TOML, each value below where it is from."""
    whose = {"authors": "the authors'", "authors*": "the authors', but for what is marked as ours"}
    of = whose.get(origin(method, recipe), "a proposal of ours")
    heading = (
        f"{method.name} on {recipe.name}: {method.summary}",
        f"This recipe is {of}. A # tells where the value below it is from.",
        "Change what you like and train with it: saccade train --recipe THIS_FILE (docs/recipes.md)",
    )
    return recipe_toml(recipe, heading)


def _spread(view: View) -> dict[str, Any]:
    """The view's values with each operation under its name, as --set has it."""
    values = asdict(view)
    del values["operations"]
    return values | {key: asdict(operation) for key, operation in view.keyed.items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif name != "name" or not prefix.startswith("views."):
            yield prefix + name, value


def _spelt(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(_spelt, value))
    return "none" if value in (None, "", {}) else str(value)


if __name__ == "__main__":
    run_command("tools.recipes", main)
