"""A run's record, config.json: the one place that reads and writes it.

It may have been made by anybody: values are taken from it, permissions never. What would run a command, fetch from the
network or report to it has to be given again on the command line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.base.own import absolute
from saccade.base.own import names_code as names_own_code
from saccade.pipelines.sources.mixed import PLUS
from saccade.pipelines.sources.own import names_code
from saccade.pipelines.sources.remote import is_remote
from saccade.runs import settings

NAME, RECIPE = "config.json", "recipe.toml"
PERMISSIONS = ("allow_pipe", "operation", "allow_changes")
REPORTING = ("wandb",)  # trackers that send what they are told elsewhere


def read_record(folder: Path) -> dict[str, Any]:
    """The whole record of the run in `folder`."""
    try:
        record = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError(f"it holds {type(record).__name__}, not a record")
        return record
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{folder}: no run is there (its {NAME} cannot be read: {reason}).") from error


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    write_atomically(folder / NAME, lambda f: f.write((json.dumps(record, indent=2) + "\n").encode()))


def read_flags(folder: Path, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags the run was started with, of the kinds that `defaults` has; no permission is among them.

    `given`: what the user has written now. Places that are fetched from the network must be written again.
    """
    saved = read_record(folder).get("flags")
    if not isinstance(saved, dict):
        raise UserError(f"--resume {folder}: no run is there to continue (its {NAME} holds no flags).")
    kept = {name: saved.get(name, default) for name, default in defaults.items()}
    for name, value in kept.items():
        default = defaults[name]
        kinds = {type(default), str, int, float, bool} if default is None else {type(default)}
        if value is not None and type(value) not in kinds:
            raise UserError(f"--resume {folder}: its {NAME} has {value!r} for {name}; it is damaged or not a run's.")
    for name in PERMISSIONS:
        kept[name] = given.get(name, defaults[name])
    for name in ("data", "val_data", "labelled_data"):
        if name not in given:
            check_local(kept.get(name), f"--{name.replace('_', '-')}", folder)
    if code := unnamed_code(kept, given):
        raise UserError(
            f"{folder}: its record names files of code, which would run; if you trust them, say so: {' '.join(code)}."
        )
    if "track" not in given and any(name in kept["track"].split(",") for name in REPORTING):
        print(
            f"note: the run reported to {kept['track']}; to go on with that, give --track {kept['track']}",
            file=sys.stderr,
        )
        kept["track"] = ",".join(name for name in kept["track"].split(",") if name not in REPORTING)
    return kept


def unnamed_code(kept: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """The flags by which a record brings in code, of those that the user has not written again."""
    flags = []
    for name in ("method", "backbone", "pipeline"):
        named = kept.get(name)
        code = isinstance(named, str) and (":" in named if name == "backbone" else names_own_code(named))
        if code and name not in given:
            flags.append(f"--{name} {named}")
    said = [*given.get("operation", ()), *(code_of(setting) for setting in given.get("set", ()))]
    places = dict.fromkeys(place for setting in kept["set"] if (place := code_of(str(setting))))
    return [*flags, *(f"--operation {place}" for place in places if place not in said)]


def code_of(setting: str) -> str | None:
    """The place of the code that a --set brings in, from any folder; None where it brings none."""
    return absolute(setting.partition("=")[2]) if settings.names_code(setting) else None


def check_local(place: str | None, flag: str, folder: Path) -> None:
    """Raise UserError if a place that a run folder names is one that is fetched or run: only the user may say that."""
    parts = (place or "").split(PLUS)
    if any(is_remote(part) or names_code(part) for part in parts):
        permission = " --allow-pipe" if any(part.startswith("pipe:") for part in parts) else ""
        raise UserError(
            f"{folder}: its record names {place} as its data, which is fetched from elsewhere or runs code; "
            f"if you trust it, say so: {flag} '{place}'{permission}."
        )


def published(place: str) -> str:
    """A place of data as a published file names it: the last name of a path, which is no one's but the machine's."""
    return PLUS.join(Path(part).name if Path(part).is_absolute() else part for part in place.split(PLUS))


def follow_data(folder: Path, where: Mapping[str, Any]) -> None:
    """Note where the images of a resumed run lie now, for the next --resume and for eval.py."""
    saved = read_record(folder)
    if any(saved.get(name) != place for name, place in where.items()):
        write_record(folder, {**saved, **where, "flags": {**saved["flags"], **where}})
