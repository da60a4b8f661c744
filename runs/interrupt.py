"""Ctrl-C and SIGTERM: finish the step, save, say how to go on."""

from __future__ import annotations

import signal


class Interrupt:
    """True once Ctrl-C or SIGTERM came: the step is finished and saved, then the run stops. A second one stops at once.

    Several processes cannot agree on a step, so there the signal stops at once and the last checkpoint counts.
    """

    def __init__(self, processes: int) -> None:
        self._came = False
        if processes == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self._came = True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def __bool__(self) -> bool:
        return self._came
