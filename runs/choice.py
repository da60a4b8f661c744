"""Which recipe a run starts from: one of a method's own by name, or the one in a file."""

from __future__ import annotations

import argparse
from typing import Any

from saccade.base.errors import UserError
from saccade.base.text import did_you_mean
from saccade.losses.objective import Method
from saccade.losses.recipe import IMAGE_SIZE, TrainingRecipe, at_size
from saccade.losses.registry import find_method, methods
from saccade.pipelines.data import NAMES
from saccade.runs.check_recipe import check_recipe
from saccade.runs.plain_recipe import Fault, Own, from_plain, unknown
from saccade.runs.recipe_file import RUN, RecipeText, is_file, read_recipe_file
from saccade.runs.settings import found_operation, names_code


def method_of(flags: argparse.Namespace) -> Method:
    """The method that --method and --stec-base, or else the recipe file, name."""
    if flags.stec_base not in ("simclr", "byol"):
        raise UserError(f"--stec-base {flags.stec_base} is unknown; use simclr or byol.")
    if flags.stec_base != "simclr" and flags.method not in (None, "stec"):
        raise UserError(
            f"--stec-base {flags.stec_base} goes with --method stec, not with {flags.method}; leave it out."
        )
    named = "stec-byol" if flags.stec_base == "byol" else flags.method
    recipe = getattr(flags, "recipe", None)
    if is_file(recipe):
        return method_in(read_recipe_file(recipe), named)
    return find_method(named or "stec")


def method_in(text: RecipeText, named: str | None = None) -> Method:
    """The method that a recipe file names; `named`: on the command line, which must be the same."""
    with text.blamed():
        name = text.values.get("method")
        if not isinstance(name, str):
            raise Fault(("method",), f"give the method's name, one of {', '.join(methods())}.")
        if named is not None and (method := find_method(named)).name != name:
            raise Fault(("method",), f"--method {method.name} says another one; leave it out, or give its own recipe.")
        if named is None and name not in methods():
            fault = unknown(("method", name), methods(), "; one of your own is named by --method")
            raise Fault(("method",), fault.message)
    return find_method(named or name)


def chosen_recipe(flags: argparse.Namespace, image_size: int | None = None) -> TrainingRecipe[Any]:
    """The recipe of the file, or the published one, at `image_size` where it is given; before any other flag."""
    if is_file(flags.recipe):
        return at_size(recipe_in(read_recipe_file(flags.recipe), method_of(flags), named_operations(flags)), image_size)
    return method_of(flags).recipe(data_named(flags), image_size)


def data_named(flags: argparse.Namespace) -> str:
    """The data set whose recipe is asked for; "custom" is any other than the project's."""
    return flags.recipe or (flags.data if flags.data in NAMES else "custom")


def recipe_in(text: RecipeText, method: Method, own: Own) -> TrainingRecipe[Any]:
    """The recipe that a file says, checked; `own`: operations that the user has named, which alone may be code."""
    with text.blamed():
        options = type(method.recipe("textures", None).options)
        recipe = from_plain({name: value for name, value in text.values.items() if name != RUN}, options, own)
        check_recipe(recipe)
    return recipe


def named_operations(flags: argparse.Namespace) -> Own:
    """The operations of the user's own that the command line names, which runs their code."""
    places = [*flags.operation, *(setting.partition("=")[2] for setting in flags.set if names_code(setting))]
    return {known: kind for place in places for known, kind in found_operation(place).items()}


def check_recipe_name(method: Method, name: str | None) -> None:
    """Raise UserError unless `name` (None: any) is a data set of the project or a variant that the method publishes."""
    known = [*IMAGE_SIZE, *(variant for variant in method.published if variant not in IMAGE_SIZE)]
    if name is not None and not is_file(name) and not method.knows(name):
        ablated = [f"{data}-{ablation.name}" for data in known for ablation in method.ablations]
        hint = did_you_mean(name, [*known, *ablated])
        more = f", each also with -{', -'.join(a.name for a in method.ablations)}" if method.ablations else ""
        raise UserError(
            f"--recipe {name} is unknown for {method.name}; use one of {', '.join(known)}{more}, or a recipe "
            f"file, FILE.toml{hint}."
        )
