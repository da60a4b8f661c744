"""What a resumed run goes on with: the recipe that its checkpoint holds, not what today's code makes of the flags.

What the command line, config.json or recipe.toml says otherwise is refused, or with --allow-changes followed, said and
recorded.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from saccade import __version__
from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.base.own import moved, names_code
from saccade.losses.recipe import TrainingRecipe
from saccade.runs.checkpoint import newest, save_checkpoint
from saccade.runs.choice import method_in, named_operations, recipe_in
from saccade.runs.config import PLACES, Config, Kept, with_flags
from saccade.runs.flags import RECIPE_FLAGS, RESUMABLE, RUN_FLAGS
from saccade.runs.folder import RunFolder
from saccade.runs.plain_recipe import SHARED, VIEW_FIELDS, Fault, from_plain, leaves, plain_record, to_plain
from saccade.runs.recipe_file import RUN, RecipeText, recipe_toml, spelt
from saccade.runs.record import RECIPE, check_local, read_record, write_record

MOST = 8  # differences that are listed
NOTES = ("sources", "proposals")  # change nothing of a run


@dataclass(frozen=True)
class Difference:
    """What is said somewhere, and what the checkpoint has."""

    path: str
    now: Any
    kept: Any
    where: str

    def __str__(self) -> str:
        return f"{self.path} is {_shown(self.now)} {self.where} and {_shown(self.kept)} in the checkpoint"


def taken_up(flags: argparse.Namespace) -> tuple[argparse.Namespace, Kept]:
    """The flags and the recipe to go on with; UserError where they are not the checkpoint's and that is not allowed."""
    folder = Path(flags.resume)
    checkpoint, record = newest(folder, _recipeless), read_record(folder)
    state = checkpoint.state
    text, started = state.get("recipe"), state.get("flags")
    if not isinstance(text, str) or not isinstance(started, dict):
        raise UserError(
            f"--resume {folder}: its checkpoint holds no recipe, so it is of an older Saccade; start the run anew."
        )
    given = _given(flags, started)
    kept_text, file = RecipeText(f"the checkpoint of {folder}", text), _file_of(folder)
    differences = [*_edited_flags(flags, started, record, file), *_given_flags(flags, started)]
    flags = argparse.Namespace(**{**vars(flags), **{d.path[2:].replace("-", "_"): d.now for d in differences}})
    named = given.method if given.method and names_code(given.method) else None
    recipe = recipe_in(kept_text, method_in(kept_text, named), named_operations(flags))
    if (given.method and not named) or given.stec_base != "simclr":
        other = f"--method {given.method}" if given.method else f"--stec-base {given.stec_base}"
        raise UserError(f"--resume {folder}: the run is of {recipe.method}; drop {other}, or start a new run with it.")
    base, where = _edited(recipe, record, file, flags)
    differences += _compared(recipe, base, where)
    final = with_flags(base, argparse.Namespace(**{**vars(given), "method": given.method or recipe.method}))
    differences += _compared(base, final, "on the command line")
    if differences and not flags.allow_changes:
        raise UserError(_refusal(flags, given.given, differences))
    kept_flags = {name: started[name] for name in RECIPE_FLAGS if name in started} | _written(given, started)
    published = record.get("published_precision")
    published = published if isinstance(published, str) else recipe.precision
    return flags, Kept(final, published, kept_flags, tuple(map(str, differences)), checkpoint)


def _recipeless(state: Mapping[str, Any]) -> str | None:
    return None if isinstance(state.get("recipe"), str) else "it holds no recipe, so it is of an older Saccade"


def _given(flags: argparse.Namespace, started: Mapping[str, Any]) -> argparse.Namespace:
    """The flags with those of the recipe left out that are not given now, or as the run was started."""
    unset: dict[str, Any] = {**dict.fromkeys(RECIPE_FLAGS), "set": [], "stec_base": "simclr", "precision": "auto"}
    now = {name: getattr(flags, name) for name in RECIPE_FLAGS if name in flags.given}
    if now.get("set") == started.get("set"):
        now.pop("set", None)
    elif "set" in now:  # what was added is there already
        old = started.get("set") or []
        now["set"] = [s for s in now["set"] if not (s in old and s.partition("=")[0].endswith("+"))]
    new = {name: v for name, v in now.items() if name == "set" or v != started.get(name) or _is_code(name, v)}
    others = tuple(name for name in new if new[name] != started.get(name))
    return argparse.Namespace(**{**vars(flags), **unset, **new, "given": others})


def _is_code(name: str, value: Any) -> bool:
    return name in ("method", "backbone") and isinstance(value, str) and names_code(value)


def _written(given: argparse.Namespace, started: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of the recipe that are new, for the record."""
    new = {name: getattr(given, name) for name in given.given}
    return {**new, "set": [*(started.get("set") or []), *given.set]}


def _file_of(folder: Path) -> RecipeText | None:
    """The run's recipe.toml, which may be missing."""
    try:
        return RecipeText(f"{folder / RECIPE}", (folder / RECIPE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{folder / RECIPE} cannot be read ({error}); remove it, the checkpoint has the recipe."
        ) from error


def _edited_flags(
    flags: argparse.Namespace, started: Mapping[str, Any], record: Mapping[str, Any], file: RecipeText | None
) -> Iterator[Difference]:
    """What config.json or recipe.toml says of the run that it was not started with."""
    written = record["flags"] if isinstance(record.get("flags"), dict) else {}
    run = file.values.get(RUN, {}) if file else {}
    alike = {f.name for f in fields(Config)} - {"precision", "track", "out", "resume"}
    for name in vars(flags).keys() & started.keys() - set(flags.given):
        kept = getattr(flags, name) if name in PLACES else started[name]
        if name not in (*RESUMABLE, *RECIPE_FLAGS, "out") and getattr(flags, name) != kept:
            yield Difference(_flag(name), getattr(flags, name), kept, "in config.json")
        elif name in RECIPE_FLAGS and written.get(name, kept) != kept:
            raise UserError(
                f"{flags.resume}/config.json: its flags say {name} {written[name]}, the run was started with {kept}; "
                f"put it back, and give {_flag(name)} on the command line, with --allow-changes, to change it."
            )
        elif name not in RECIPE_FLAGS and (name not in RESUMABLE or name in PLACES):
            if name in alike and record.get(name, kept) != kept:
                yield _local(Difference(_flag(name), record[name], kept, "in config.json"), flags)
            elif isinstance(run, dict) and name in run and run[name] != kept:
                yield _local(Difference(_flag(name), run[name], kept, f"in {RECIPE}"), flags)


def _local(difference: Difference, flags: argparse.Namespace) -> Difference:
    if difference.path[2:].replace("-", "_") in PLACES:
        check_local(str(difference.now), difference.path, Path(flags.resume))
    return difference


def _given_flags(flags: argparse.Namespace, started: Mapping[str, Any]) -> Iterator[Difference]:
    for name in sorted(set(flags.given) - RESUMABLE - set(RECIPE_FLAGS)):
        if name in started and getattr(flags, name) != started[name] and not moved(getattr(flags, name), started[name]):
            yield Difference(_flag(name), getattr(flags, name), started[name], "on the command line")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _edited(
    recipe: TrainingRecipe[Any], record: Mapping[str, Any], file: RecipeText | None, flags: argparse.Namespace
) -> tuple[TrainingRecipe[Any], str]:
    """The recipe as the folder's files have it, and which of them differs from the checkpoint's."""
    own, options = named_operations(flags), type(recipe.options)
    found = {}
    if file is not None:
        found[RECIPE] = recipe_in(file, method_in(file, recipe.method), own)
    try:
        plain = plain_record(record["recipe"])
        same = not list(_changes(_bare(to_plain(recipe)), plain))
        found["config.json"] = recipe if same else from_plain(plain, options, own)
    except Fault as fault:
        raise UserError(f"{flags.resume}/config.json: recipe.{fault}") from fault
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{flags.resume}/config.json holds no recipe that can be read; start the run anew.") from error
    edited = {name: other for name, other in found.items() if _compared(recipe, other, "")}
    if len({spelt(to_plain(other)) for other in edited.values()}) > 1:
        raise UserError(
            f"{flags.resume}: its recipe.toml and config.json are changed, and not alike; put one of them back."
        )
    return next(((other, f"in {name}") for name, other in edited.items()), (recipe, ""))


def _bare(plain: dict[str, Any]) -> dict[str, Any]:
    """Without the places of operations, which config.json does not have."""
    return {k: _bare(v) if isinstance(v, dict) else v for k, v in plain.items() if k != "from"}


def _compared(old: TrainingRecipe[Any], new: TrainingRecipe[Any], where: str) -> list[Difference]:
    return [Difference(path, now, kept, where) for path, now, kept in _changes(to_plain(old), to_plain(new))]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """path, new value, old value of all that differs; of views and operations the order too."""
    before, after = ({**dict(leaves(plain)), **dict(_orders(plain))} for plain in (old, new))
    for path in dict.fromkeys((*before, *after)):
        if path[0] not in NOTES and before.get(path) != after.get(path):
            yield ".".join(path), after.get(path), before.get(path)


def _orders(plain: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for group in ("views", "companion"):
        if isinstance(plain[group], Mapping):
            views = {name: view for name, view in plain[group].items() if name not in SHARED}
            yield (group, "views"), list(views)
            for name, view in views.items():
                yield (group, name, "operations"), [key for key in view if key not in VIEW_FIELDS]


def _shown(value: Any) -> str:
    return "not there" if value is None else spelt(value)[:80]


def _refusal(flags: argparse.Namespace, given: tuple[str, ...], differences: list[Difference]) -> str:
    drop = [d.path for d in differences if d.path.startswith("--") and "command line" in d.where]
    drop += map(_flag, given)
    back = sorted({d.where.removeprefix("in ") for d in differences if "command line" not in d.where})
    ways = [f"drop {', '.join(f'{flag} {_value(flags, flag)}' for flag in dict.fromkeys(drop))}"] if drop else []
    ways += [f"put {' and '.join(back)} back as it was"] if back else []
    listed = "; ".join(map(str, differences[:MOST]))
    more = f"; and {len(differences) - MOST} more" if len(differences) > MOST else ""
    way = ", ".join([*ways, "or say --allow-changes"])
    return f"--resume {flags.resume} continues the run as it was: {way} ({listed}{more})."


def _value(flags: argparse.Namespace, flag: str) -> str:
    value = getattr(flags, flag[2:].replace("-", "_"))
    return " --set ".join(value) if isinstance(value, list) else str(value)


def made_of(config: Config) -> dict[str, Any]:
    """What a checkpoint keeps of the run's making: its recipe as TOML, and the flags it was started with."""
    return {"recipe": run_toml(config), "flags": dict(config.flags)}


def run_toml(config: Config) -> str:
    """The run's recipe.toml: the recipe, final, and what else it was started with."""
    run = {name: config.flags.get(name) for name in RUN_FLAGS} | {"precision": config.precision}
    heading = (
        f"What a run of Saccade {__version__} was trained with; saccade train --recipe THIS_FILE runs it again.",
        "Values are final: the learning rate is that of this batch, a stem that was to be chosen is chosen.",
    )
    return recipe_toml(config.recipe, heading, {name: v for name, v in run.items() if v is not None and _text(v)})


def _text(value: Any) -> bool:
    """Whether TOML can hold it; a path may have bytes that are no text."""
    return not isinstance(value, str) or value.encode(errors="replace").decode() == value


def write_recipe(config: Config) -> None:
    write_atomically(config.out / RECIPE, lambda f: f.write(run_toml(config).encode()))


def follow_changes(config: Config, folder: RunFolder, state: Mapping[str, Any]) -> None:
    """Write the recipe that the run goes on with; say and record what was changed, in its last checkpoint too."""
    write_recipe(config)
    if not config.changes:
        return
    print(f"changed at step {state['step']}: {'; '.join(config.changes)}", flush=True)
    record = read_record(config.out)
    past = record["changes"] if isinstance(record.get("changes"), dict) else {}
    changes = {**past, str(state["step"]): list(config.changes)}  # by the step after which they were made
    write_record(config.out, {**record, **config.to_json(), "changes": changes})
    save_checkpoint(folder.path, state["step"], {**state, **made_of(config)}, config.keep)
