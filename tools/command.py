"""How every command ends: 0 when done, 2 with one clear sentence on bad input, 130 when interrupted."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from saccade.base.errors import UserError


def run_command(name: str, main: Callable[[], int | None]) -> None:
    """Call main() and leave the process with its exit code."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as tools/__init__.py left it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main() or 0
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output (head, less) went away
        sys.stderr.close()
        code = 1
    sys.exit(code)
