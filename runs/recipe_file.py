"""A recipe as a TOML file: written with the sources beside the values, read with one sentence for what is wrong.

The standard library reads TOML and writes none; tomli-w writes neither comments nor a group of numbers on one line.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from saccade.base.errors import UserError
from saccade.base.text import printable
from saccade.losses.recipe import TrainingRecipe
from saccade.runs.plain_recipe import Fault, to_plain

ENDING = ".toml"
RUN = "run"  # the table of what a run was started with beside its recipe
MOST = 1 << 18  # bytes; a recipe has some thousands
WIDTH = 120


def is_file(recipe: str | None) -> TypeGuard[str]:
    """Whether --recipe names a file, not one of the method's recipes."""
    return recipe is not None and (recipe.endswith(ENDING) or "/" in recipe)


class RecipeText:
    """The text of a recipe file and its values; `name` is how the user knows it. UserError where it is no TOML."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self._lines = name, text.splitlines()
        try:
            self.values = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            found = re.fullmatch(r"(.*?) \(at (?:line (\d+), column \d+|end of document)\)", str(error), re.DOTALL)
            reason, line = (found[1], found[2]) if found else (str(error), None)
            place = f", line {line or len(self._lines)}" if found else ""
            raise UserError(f"{name}{place}: that is no TOML ({reason}).") from error

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """A fault inside is told with the line, the key and the value it is about."""
        try:
            yield
        except Fault as fault:
            raise UserError(f"{self.name}{self._place(fault.path)}: {fault.message}") from fault

    def _place(self, path: Sequence[str]) -> str:
        dotted = printable(".".join(path))
        there = next((path[:n] for n in range(len(path), 0, -1) if _has(self.values, path[:n])), ())
        if not there:
            return f": {dotted}" if path else ""
        value = _get(self.values, there)
        shown = "" if isinstance(value, Mapping) or len(there) < len(path) else f" = {spelt(value)[:80]}"
        return f", line {self.line(there)}: {dotted}{shown}"

    def line(self, path: Sequence[str]) -> int:
        """Where the value at `path` begins: behind the longest beginning of the file that is whole without it."""
        without, with_it = 0, len(self._lines)
        while with_it - without > 1:
            middle = (without + with_it) // 2
            whole, values = self._beginning(middle)
            without, with_it = (without, whole) if _has(values, path) else (middle, with_it)
        return self._beginning(with_it - 1)[0] + 1

    def _beginning(self, lines: int) -> tuple[int, Any]:
        """The most lines, of the first `lines`, that are TOML of their own; what they hold."""
        for n in range(lines, 0, -1):
            try:
                return n, tomllib.loads("\n".join(self._lines[:n]))
            except (ValueError, RecursionError):
                continue  # within a value of several lines
        return 0, {}


def read_recipe_file(name: str) -> RecipeText:
    """The file called `name`; UserError where it cannot be read."""
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            raise UserError(f"--recipe {name} is a folder; a run's recipe is {path / 'recipe.toml'}.")
        if not path.is_file():
            raise UserError(
                f"--recipe {name}: there is no such file; saccade recipes METHOD RECIPE --toml > {name} makes one."
            )
        if path.stat().st_size > MOST:
            raise UserError(f"--recipe {name} is larger than {MOST >> 10} KiB; that is no recipe.")
        return RecipeText(name, path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--recipe {name} cannot be read as text ({reason}).") from error


def recipe_toml(recipe: TrainingRecipe, heading: Sequence[str], run: Mapping[str, Any] | None = None) -> str:
    """The recipe as TOML, below `heading`, with its notes as comments; run: what else a run was started with."""
    plain = to_plain(recipe)
    notes = {path: f"ours: {why}" for path, why in recipe.proposals.items()}
    notes = {path: "; ".join(filter(None, (source, notes.get(path)))) for path, source in recipe.sources.items()} | {
        path: why for path, why in notes.items() if path not in recipe.sources
    }
    lines = [*(f"# {line}".rstrip() for line in heading), ""]
    lines += _table((), {k: v for k, v in plain.items() if k not in ("sources", "proposals")}, notes)
    for name in ("sources", "proposals"):
        lines += _table((name,), plain[name], {})
    if run is not None:
        lines += _table((RUN,), run, {RUN: "what the run was started with beside its recipe"})
    return "\n".join(lines) + "\n"


def _table(path: tuple[str, ...], values: Mapping[str, Any], notes: Mapping[str, str]) -> list[str]:
    """The lines of a table: values first, groups of a group after it."""
    lines = []
    if path:
        lines += ["", *_comment(notes.get(".".join(path))), f"[{'.'.join(map(_key, path))}]"]
    elif "all" in notes:
        lines += _comment(notes["all"])
    tables = {name: v for name, v in values.items() if isinstance(v, Mapping) and _has_header((*path, name))}
    for name, value in values.items():
        if name not in tables:
            lines += _comment(notes.get(".".join((*path, name))))
            lines.append(f"{_key(name)} = {spelt(value)}")
    for name, value in tables.items():
        lines += _table((*path, name), value, notes)
    return lines


def _has_header(path: tuple[str, ...]) -> bool:
    """Groups of the recipe and its views have a header; what is inside of these stands on one line."""
    return len(path) == 1 or (len(path) == 2 and path[0] in ("views", "companion"))


def _comment(note: str | None) -> list[str]:
    if note is None:
        return []
    words, lines = note.split(), ["#"]
    for word in words:
        if len(lines[-1]) + len(word) >= WIDTH:
            lines.append("#")
        lines[-1] += f" {word}"
    return lines


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def spelt(value: Any) -> str:
    """A plain value as TOML writes it, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(str(name))} = {spelt(v)}" for name, v in value.items())
        return f"{{{inside}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(spelt, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def _has(values: Any, path: Sequence[str]) -> bool:
    for name in path:
        if not isinstance(values, Mapping) or name not in values:
            return False
        values = values[name]
    return True


def _get(values: Any, path: Sequence[str]) -> Any:
    for name in path:
        values = values[name]
    return values
