"""Ctrl-C and SIGTERM: finish the step, save, say how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType


class Interrupt:
    """True once Ctrl-C or SIGTERM came: the step is finished and saved, then the run stops. A second one stops at once.

    A context manager: the handlers that were there before (a notebook's stop button) are back when it is left. Several
    processes cannot agree on a step, so there the signal stops at once and the last checkpoint counts; the same off the
    main thread, where Python takes no signals.
    """

    def __init__(self, processes: int) -> None:
        self._came = False
        listening = processes == 1 and threading.current_thread() is threading.main_thread()
        self._numbers = (signal.SIGINT, signal.SIGTERM) if listening else ()
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._note) for number in self._numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: object) -> None:
        self._came = True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def __bool__(self) -> bool:
        return self._came
