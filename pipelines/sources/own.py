"""A source in the user's own file: `--data path/to/file.py:ARGUMENT` or `package.module:ARGUMENT`, or a name that an
installed package offers."""

from __future__ import annotations

import re
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from saccade.base import own
from saccade.base.errors import UserError
from saccade.pipelines.sources.options import Options
from saccade.pipelines.sources.source import Source

GROUP = "saccade.sources"  # of entry points: NAME = "package.module"
_WRITTEN = re.compile(r"^([^:]*\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?!//)(.*)$", re.DOTALL)


def is_own(data: str) -> bool:
    """Whether it is written MODULE:ARGUMENT, where MODULE is a file, can be imported or is offered by a package."""
    written = _WRITTEN.match(data)
    return written is not None and names_code(data) and (written[1] in _offered() or _is_there(written[1]))


def names_code(data: str) -> bool:
    """Whether it is written as code to be run, MODULE:ARGUMENT; nothing is imported to find out."""
    written = _WRITTEN.match(data)
    return written is not None and written[1] != "pipe"


def open_own(data: str, options: Options) -> Source:
    """Call the module's `open_source(argument)`, or `open_source(argument, options)`; UserError unless it gives a
    Source."""
    name, _, argument = data.partition(":")
    module = own.load_code(_offered().get(name, name), f"--data {data}")
    opener = getattr(module, "open_source", None)
    if opener is None:
        raise UserError(f"--data {data}: {name} has no function open_source(argument).")
    source = opener(argument, options) if opener.__code__.co_argcount > 1 else opener(argument)
    if not isinstance(source, Source):
        raise UserError(
            f"--data {data}: open_source gave {type(source).__name__}, not a saccade.pipelines.sources.Source."
        )
    return source


def _offered() -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group=GROUP)}


def _is_there(name: str) -> bool:
    if name.endswith(".py"):
        return Path(name).expanduser().is_file()
    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's own file lies where the command was started
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
