"""What a file of a checkout does first when it is run from there: is the `saccade` that Python finds this checkout?

Imported as `base.checkout`, by its place on disk, so that it works before `saccade` does.
"""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)


def start(command: str) -> None:
    """Exit with one sentence unless `saccade` is this checkout; Ctrl-C while libraries load shows no traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if problem := foreign():
        print(f"{command}: {problem}", file=sys.stderr)
        sys.exit(2)


def foreign() -> str | None:
    """Why `import saccade` would not give this checkout's code, and what to do; None where it does."""
    if sys.version_info < OLDEST:  # a checkout is started by whatever Python there is
        return f"{sys.executable} is Python {sys.version.split()[0]}; Saccade needs {OLDEST[0]}.{OLDEST[1]} or newer."
    found = find_spec("saccade")
    if found is None or found.origin is None:
        return f"saccade is not installed in {sys.executable}; run: {sys.executable} -m pip install -e {ROOT}"
    if Path(found.origin).resolve().parent != ROOT:
        return (
            f"{sys.executable} would run the code of {Path(found.origin).resolve().parent}, not of {ROOT}; "
            f"use a virtual environment of its own, or run: {sys.executable} -m pip install -e {ROOT}"
        )
    return None
