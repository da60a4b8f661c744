"""When a run is saved: a thread writes a snapshot while training goes on; a write that fails is tried again."""

from __future__ import annotations

import sys
import threading
import time
from shlex import quote
from types import TracebackType
from typing import Any

from tqdm import tqdm

from saccade.base.errors import Diverged, UserError
from saccade.runs.checkpoint import save_checkpoint
from saccade.runs.folder import RunFolder
from saccade.runs.interval import Interval
from saccade.runs.monitor import Monitor
from saccade.runs.ranks import Ranks
from saccade.runs.resume import made_of
from saccade.runs.session import Session
from saccade.runs.tensor_file import snapshot

TRIES, PAUSE = 5, 60.0  # how often a checkpoint is tried while training goes on, and seconds between
LAST_TRIES, LAST_PAUSE = 3, 5.0  # the last one of a run: a launcher kills after 30 s


class Saver:
    """The checkpoints of a run. The main process alone decides when, and writes: nobody has to agree or wait.

    A context manager: what is being written is finished when it is left; an error that it is left by is preceded by a
    last checkpoint, where what was learned until then is whole. totals, baselines: go into the checkpoints as they are.
    """

    def __init__(
        self, session: Session, folder: RunFolder, monitor: Monitor, baselines: dict[str, float], ranks: Ranks
    ) -> None:
        self._session, self._folder, self._monitor, self._ranks = session, folder, monitor, ranks
        self._baselines, self._every = baselines, Interval.parse(session.config.checkpoint_every)
        self._saved, self._at = session.steps, time.monotonic()
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None
        self._failed = 0  # writes in a row

    def step(self) -> None:
        """After an optimizer step: save if it is time to. Raises what the thread met, when trying again is no use."""
        if not self._ranks.main:
            return
        passed, session = time.monotonic() - self._at, self._session
        writing = self._writer is not None and self._writer.is_alive()
        if self._every.seconds and writing:
            return
        if not writing:
            self._look_back()
        if self._every.due(session.steps, session.steps_per_epoch, passed) or (self._failed and passed >= PAUSE):
            begun = time.monotonic()
            with self._monitor.paused():
                self.settle()
                self._look_back()
            with self._monitor.saving():
                state = snapshot(self._state())
            self._monitor.totals["stood"] += time.monotonic() - begun
            self._at = time.monotonic()
            self._writer = threading.Thread(target=self._write_behind, args=(state,), name="checkpoint", daemon=True)
            self._writer.start()

    def last(self) -> None:
        """Save now, and be done when that is written."""
        if not self._ranks.main:
            return
        with self._monitor.paused():
            self.settle()
        with self._monitor.saving():
            state = self._state()
            for tries in range(1, LAST_TRIES + 1):
                try:
                    self._write(state)
                    return
                except UserError as error:
                    if tries == LAST_TRIES:
                        raise
                    self._tell(f"warning: {error} Trying again in {LAST_PAUSE:.0f} s, {tries + 1} of {LAST_TRIES}")
                time.sleep(LAST_PAUSE)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.settle()
        if isinstance(error, Exception) and not isinstance(error, Diverged) and self._ranks.main:
            self._save_before(error)

    def _save_before(self, error: Exception) -> None:
        session = self._session
        if session.steps <= self._saved or session.updating or error is self._error:
            return
        try:
            with self._monitor.saving():
                self._write(self._state())
            self._tell(
                f"saved step {session.steps}; continue with: saccade train --resume {quote(str(self._folder.path))}"
            )
        except Exception as again:
            why = f"{again}".splitlines()[0][:200] if f"{again}" else type(again).__name__
            self._tell(f"step {session.steps} could not be saved ({why}); step {self._saved} is")

    def _state(self) -> dict[str, Any]:
        """Everything that changes during a run; UserError if it has diverged."""
        session = self._session
        more = {"totals": self._monitor.totals, "baselines": self._baselines}
        return {**session.state_dict(), **made_of(session.config), **more}

    def _write(self, state: dict[str, Any]) -> None:
        with self._ranks.writing():
            self._folder.list_bad(dict(self._session.pipeline.source.known_bad))
            save_checkpoint(self._folder.path, state["step"], state, self._session.config.keep)
        self._saved, self._failed = state["step"], 0

    def _write_behind(self, state: dict[str, Any]) -> None:
        try:
            self._write(state)
        except BaseException as error:
            self._error = error

    def settle(self) -> None:
        """Until what is being written lies there: only then is the last checkpoint known by its name."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _look_back(self) -> None:
        """What became of the last write: a warning, or the error once it has failed too often."""
        error, self._error = self._error, None
        if error is None:
            return
        self._failed += 1
        if self._failed >= TRIES or not isinstance(error, UserError):
            self._error = error
            raise error
        more = f"training goes on; trying again in {PAUSE:.0f} s, {self._failed + 1} of {TRIES}"
        self._tell(f"warning: {error} Step {self._saved} is saved, {more}")

    def _tell(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)
