"""A thread that watches the other processes of a run: one that ends or stands still ends this one, with a sentence."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from torch._C._distributed_c10d import Store

from saccade.base.processes import descriptor

TICK = 0.5  # seconds between two signs of life
SILENT = 8.0  # without one for so long, a process is gone or stopped: asked only when something else is wrong
WRITING = 120.0  # how long a checkpoint that is being written may take
STORELESS = 20.0  # how long a process may stand still once the store is gone
LOST = 1  # exit code of those that a fellow took along


class Fellows:
    """The others of `world` processes, by signs of life in `store`, and by the system where they are on this machine.

    `at` says where the main thread is; `alone` that it may be there for as long as it likes.
    """

    def __init__(self, store: Store, rank: int, world: int, patience: float) -> None:
        self._store, self._rank, self._world, self._patience = store, rank, world, patience
        self._place, self._moves, self._alone = "starting", 0, 0
        self._words: IO[str] | None = None
        self._folder = Path()
        self._written = threading.Lock()
        self._over = threading.Event()
        self._asked = threading.Event()
        self._blamed = threading.Event()
        self._thread = threading.Thread(target=self._watched, name="fellows", daemon=True)

    def start(self) -> None:
        self._store.set(f"saccade/who/{self._rank}", f"{socket.gethostname()} {os.getpid()}")
        self._thread.start()

    def words(self, folder: Path) -> None:
        """Open this process's file of last words; a crash inside a library writes its stack there too."""
        self._folder = folder
        try:
            (folder / "ranks").mkdir(parents=True, exist_ok=True)
            self._words = open(self._file(self._rank), "a", buffering=1)  # noqa: SIM115 - open until the process ends
            self._say(f"process {os.getpid()} on {socket.gethostname()} begins")
            faulthandler.enable(self._words)
        except OSError:
            self._words = None  # read-only here: the main process says so

    def at(self, place: str) -> None:
        self._place, self._moves = place, self._moves + 1

    @contextmanager
    def alone(self, place: str) -> Iterator[None]:
        """The main thread is at `place`, where it may stay as long as it likes."""
        before, self._place, self._alone = self._place, place, self._alone + 1
        yield
        self._place, self._alone, self._moves = before, self._alone - 1, self._moves + 1

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside `alone`: for this while the main thread must go on again."""
        before, self._alone, self._moves = self._alone, 0, self._moves + 1
        yield
        self._alone, self._moves = before, self._moves + 1

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What is written inside is finished before this process is ended."""
        with self._written:
            yield

    def leave(self, why: str = "", code: int = LOST) -> None:
        """Tell the others that this process ends, in good order or because of `why`, and watch no longer."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        if why:
            self._say(why)
        self._tell(why, code)

    def leave_by_error(self, name: str, trace: str) -> None:
        """An error that may be a fellow's end seen from here: if it is, this does not return."""
        self._asked.set()
        if not self._over.is_set() and self._blamed.wait(SILENT + 4):
            time.sleep(10)  # the watch ends the process
        self._say(trace)
        self.leave(name)

    def _tell(self, why: str, code: int) -> None:
        try:
            self._store.set(f"saccade/end/{self._rank}", why or "done")
            if why:
                self._store.set("saccade/blamed", f"process {self._rank} ended ({why})|{self._rank}|{code}")
        except RuntimeError:
            pass  # whoever held the store is gone, and so are the others

    def _say(self, text: str) -> None:
        if self._words is not None:
            print(time.strftime("%Y-%m-%d %H:%M:%S"), f"at {self._place}:", text, file=self._words)

    def _file(self, rank: int) -> Path:
        return self._folder / "ranks" / f"rank-{rank}.txt"

    # --- the thread -------------------------------------------------------------------------------------------------

    def _watched(self) -> None:
        try:
            near = self._near()
            tick, moves, moved, asked = 0, -1, time.monotonic(), 0.0
            looked, seen = moved, {}  # when the others' signs of life were last looked at, and what they were
            while not self._over.is_set():
                tick += 1
                self._store.set(f"saccade/life/{self._rank}", f"{tick}|{self._moves}|{self._place}")
                if self._store.check(["saccade/blamed"]):
                    sentence, of, code = self._store.get("saccade/blamed").decode().rsplit("|", 2)
                    self._end(sentence, int(of), int(code))
                if moves != self._moves or self._alone:
                    moves, moved = self._moves, time.monotonic()
                if time.monotonic() - looked > (silent := max(self._patience, 5 * SILENT)):
                    before, seen, looked = seen, {r: life[0] for r, life in self._lives().items()}, time.monotonic()
                    for lost in (r for r in seen if r != self._rank and before.get(r) == seen[r]):
                        self._blame(self._still(lost, silent), lost)
                if time.monotonic() - moved > self._patience:
                    self._blame(*self._hung())
                    moved = time.monotonic()
                if self._asked.is_set() and not asked:
                    asked = time.monotonic()
                    if (lost := self._silent()) is not None:
                        self._blame(f"process {lost} ended, or does not answer", lost)
                for held in select.select(list(near), [], [], TICK)[0]:
                    self._ended(*near.pop(held))
                    os.close(held)
            for held in near:
                os.close(held)
        except RuntimeError:  # the store is gone, with the process that held it
            self._without_store()

    def _without_store(self) -> None:
        """Where the launcher held it, the processes still agree to stop, and save; all else ends here."""
        moves, moved = -1, time.monotonic()
        while not self._over.wait(TICK):
            if moves != self._moves:
                moves, moved = self._moves, time.monotonic()
            if self._asked.is_set() or time.monotonic() - moved > STORELESS:
                self._end("process 0 or the launcher, which held the processes together, ended", 0, LOST)

    def _near(self) -> dict[int, tuple[int, int]]:
        """descriptor -> (rank, process) of the others on this machine."""
        near = {}
        for rank in set(range(self._world)) - {self._rank}:
            while not self._store.check([f"saccade/who/{rank}"]):
                if self._over.wait(0.05):
                    return near
            host, _, process = self._store.get(f"saccade/who/{rank}").decode().rpartition(" ")
            if host == socket.gethostname() and (held := descriptor(int(process))) is not None:
                near[held] = rank, int(process)
        return near

    def _ended(self, rank: int, process: int) -> None:
        how = _exit_of(process)
        deadline = time.monotonic() + 0.3
        while not self._store.check([f"saccade/end/{rank}"]):
            if time.monotonic() > deadline:
                return self._blame(f"process {rank} ended ({how})", rank)
            time.sleep(0.02)

    def _lives(self) -> dict[int, list[str]]:
        """rank -> its sign of life [tick, moves, place], of those that have not said that they end."""
        return {
            rank: self._store.get(f"saccade/life/{rank}").decode().split("|", 2)
            for rank in range(self._world)
            if self._store.check([f"saccade/life/{rank}"]) and not self._store.check([f"saccade/end/{rank}"])
        }

    def _silent(self) -> int | None:
        """Another process that gives no sign of life."""
        before = self._lives()
        deadline = time.monotonic() + SILENT
        while time.monotonic() < deadline and not self._over.is_set():
            if self._store.check(["saccade/blamed"]):
                return None
            time.sleep(TICK)
            tick = self._lives()
            before = {rank: life for rank, life in before.items() if tick.get(rank, life)[0] == life[0]}
            before.pop(self._rank, None)
            if not before:
                return None
        return min(before)

    def _hung(self) -> tuple[str, int]:
        if (silent := self._silent()) is not None:
            return self._still(silent, self._patience), silent
        lives = self._lives()
        last = min(lives, key=lambda rank: int(lives[rank][1]))
        return f"process {last} has stood still for {self._patience:.0f} s, {lives[last][2]}", last

    def _still(self, rank: int, seconds: float) -> str:
        return f"process {rank} has stood still, without a sign of life, for {seconds:.0f} s"

    def _blame(self, sentence: str, rank: int) -> None:
        """Tell everyone once; the first sentence counts."""
        if not self._over.is_set() and self._store.add("saccade/judges", 1) == 1:
            self._store.set("saccade/blamed", f"{sentence}|{rank}|{LOST}")

    def _end(self, sentence: str, rank: int, code: int) -> None:
        self._blamed.set()
        where = f"; its last words are in {self._file(rank)}" if self._words is not None else ""
        self._say(sentence)
        print(f"process {self._rank}: {sentence}{where}", file=sys.stderr, flush=True)
        self._written.acquire(timeout=WRITING)
        os._exit(code)  # the main thread waits in a library for what will never come


def _exit_of(process: int) -> str:
    """How a process that has just ended did so; until its parent has asked, the system knows."""
    try:
        code = int(Path(f"/proc/{process}/stat").read_text().rsplit(None, 1)[1])
    except (OSError, ValueError, IndexError):
        return "without a word"
    return f"signal {code & 127}, {signal.Signals(code & 127).name}" if code & 127 else f"exit code {code >> 8}"
