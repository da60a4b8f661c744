"""How a command ends: 0 when done, 2 with one clear sentence on bad input, 130 on Ctrl-C, or as `Stopped` says."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from saccade.base.errors import Stopped, UserError, out_of_memory
from saccade.base.program import program
from saccade.base.text import printable


def exit_code(name: str, run: Callable[[], int | None]) -> int:
    """Call run(); what it returns, or the code of how it failed, of which one sentence, signed `name`, is printed."""
    name = program(name)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as base/checkout.py left it while libraries were loaded
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run() or 0
    except UserError as error:
        print(printable(f"{name}: {error}"), file=sys.stderr)
        return 2
    except Stopped as stop:
        print(printable(f"{name}: {stop}"), file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:  # before the first step of a run, or a second Ctrl-C
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) went away
        sys.stderr.close()
        return 1
    except (MemoryError, RuntimeError, OSError) as error:
        if not out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        way = "free some, or give less at a time: fewer or smaller images, a smaller network, fewer workers"
        print(printable(f"{name}: out of memory ({reason}); {way}."), file=sys.stderr)
        return 2


def run_command(name: str, main: Callable[[], int | None]) -> None:
    """Call main() and leave the process with its exit code."""
    sys.exit(exit_code(name, main))
