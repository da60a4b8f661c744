"""What ends a run from outside, a signal or the death of its launcher: finish the step, save, say how to go on."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from tqdm import tqdm

from saccade.base.errors import Stopped
from saccade.base.processes import REQUEUE, SIGNALS, descriptor, launcher

SAME_WISH, UNWINDING = 1.0, 5.0  # seconds: launchers deliver a signal twice; how long an ordinary end may take


class _GivenUp(KeyboardInterrupt):
    """No Exception, as Stopped."""


class Interrupt:
    """Its `code` is the exit code once a signal came, or the launcher died; 0 until then.

    After `saves()` a signal is noted, and the loop finishes its step and saves; before it there is nothing to save, and
    `Stopped` is raised at once, which says `unsaved`. A second signal within a second is the same wish, a later one
    stops at once. A context manager that puts back the handlers it found (a notebook's stop button). Signals that were
    ignored (nohup) stay so. Off the main thread, where Python takes no signals, only the launcher is watched.
    """

    def __init__(self, unsaved: str = "nothing was begun") -> None:
        self.code, self._unsaved = 0, unsaved
        self._why, self._at, self._training, self._over = "", 0.0, False, False
        self._gives_up = False
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._main = threading.get_ident() if threading.current_thread() is threading.main_thread() else None
        self._end, self._woken = socket.socketpair()
        self._wakeup_before = -1
        self._watch = threading.Thread(target=self._watched, args=(launcher(),), name="interrupt", daemon=True)

    def __enter__(self) -> Interrupt:
        self._end.setblocking(False)
        if self._main is not None:
            ignored = {s for s in SIGNALS if s != signal.SIGINT and signal.getsignal(s) is signal.SIG_IGN}
            self._before = {s: signal.signal(s, self._note) for s in SIGNALS if s not in ignored}
            self._wakeup_before = signal.set_wakeup_fd(self._end.fileno(), warn_on_full_buffer=False)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done()
        if self._main is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            for number, handler in self._before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._end.close()  # ends the watch
        self._watch.join()
        self._woken.close()

    def saves(self) -> None:
        """From now on a first signal is only noted."""
        if self.code:
            raise self._stopped()
        self._training = True

    def give_up(self, work: Callable[[], object]) -> None:
        """work(), which a first signal ends without an error: the run that goes on does it again."""
        self._gives_up = True
        try:
            if not self.code:
                work()
        except _GivenUp:
            pass
        finally:
            self._gives_up = False

    def done(self) -> None:
        """Everything is saved, or about to be left: signals change nothing any more."""
        self._over = True

    def _stopped(self) -> Stopped:
        lost = "stopped at once: what came after the last checkpoint is lost" if self._training else self._unsaved
        return Stopped(f"{self._why}; {lost}", self.code)

    def _note(self, number: int, frame: object) -> None:
        if self._over:
            return
        now = time.monotonic()
        if not self.code:
            self._why = self._why or signal.Signals(number).name
            self.code, self._at = SIGNALS[signal.Signals(number)], now
            if not self._training:
                raise self._stopped()
            if self._gives_up:
                raise _GivenUp
        elif now - self._at > SAME_WISH:
            raise self._stopped()

    def _watched(self, parent: int | None) -> None:
        """The watch's thread: sees signals and the launcher's end even while the main thread is inside a library."""
        held = descriptor(parent)
        first = 0.0
        while True:
            waited = [self._woken, held] if held is not None else [self._woken]
            ready = select.select(waited, [], [], 1.0 if parent and held is None else None)[0]
            if self._woken in ready:
                if not (numbers := self._woken.recv(64)):
                    break
                if self._over or not set(numbers) & set(SIGNALS):
                    continue
                if not first:
                    first = time.monotonic()
                    self._tell(signal.Signals(next(n for n in numbers if n in SIGNALS)).name)
                elif time.monotonic() - first > SAME_WISH:
                    self._force()
            elif parent and (held in ready or os.getppid() != parent):
                self._why = f"the launcher (process {parent}) ended"
                self._tell(self._why)
                first, parent = time.monotonic(), None
                if held is not None:
                    os.close(held)
                held = None
                self._deliver()
        if held is not None:
            os.close(held)

    def _deliver(self) -> None:
        """The launcher's end, as a signal to the main thread; where that takes none, as the wish alone."""
        if self._main is None:
            self.code = self.code or REQUEUE
        elif not self.code:
            signal.pthread_kill(self._main, signal.SIGUSR1)

    def _tell(self, why: str) -> None:
        if self._training and os.environ.get("RANK", "0") == "0":
            with suppress(OSError, ValueError):  # the terminal may be gone: that may be why
                tqdm.write(f"{why}: finishing this step and saving; once more stops at once", file=sys.stderr)

    def _force(self) -> None:
        """The main thread unwinds; where a library holds it, the process ends all the same."""
        if self._woken_for_good(UNWINDING):
            return
        os._exit(self.code)

    def _woken_for_good(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if select.select([self._woken], [], [], 0.1)[0] and not self._woken.recv(64):
                return True
        return False
