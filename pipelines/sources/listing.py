"""Folders listed one after the other; where a listing is waited for, those that come next are listed meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from saccade.pipelines.sources.unfinished import Entry, Unfinished

THREADS = 16
SETTLED = 2 * 10**9  # ns: a younger folder may have changed again within the same tick of its clock
_LOOKED_AT = 8  # folders of which it is known whether they are waited for
_WAIT, _SHARE = 0.001, 4.0  # seconds a folder, and times its CPU time, from which on they are
_ENTRIES = 200_000  # that wait to be taken


SYSTEM_FOLDERS = {
    "@eadir",
    "__macosx",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "#recycle",
    "@recycle",
}


@dataclass
class Listed:
    """A folder.

    times: as `times_of` has them, [] where they cannot be told; entries: by their names, or why they cannot be read;
    settled: whether a change from now on shows in the times; folders: those that are looked into next, where they were
    looked for.
    """

    times: list[int]
    entries: list[os.DirEntry] | list[Entry] | OSError
    settled: bool = False
    folders: list[str] = field(default_factory=list)


def looked_into(folder: os.DirEntry | Entry) -> bool:
    """Whether a folder is looked into whatever it is: no link, and not a system's."""
    return not folder.is_symlink() and folder.name.lower() not in SYSTEM_FOLDERS


def times_of(place: str) -> list[int]:
    """When a folder's entries changed, and when anything of it did, which no tool sets back; ns."""
    stat = os.stat(place)
    return [stat.st_mtime_ns, stat.st_ctime_ns]


class Listing:
    """Lists folders in the order in which they are expected, all by itself where that takes CPU time alone: threads
    would only hold each other up there. A context manager, which ends the threads."""

    def __init__(self, kept: Unfinished | None = None) -> None:
        """kept: what a scan that was killed had listed, and what this one has."""
        self._kept = kept
        self._next: list[str] = []  # the last comes first
        self._found: dict[str, Listed] = {}
        self._coming: dict[str, Future[Listed]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._folders = self._entries = 0
        self._waited = self._used = 0.0

    def __enter__(self) -> Listing:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def expect(self, places: Sequence[str]) -> None:
        """These come next, before all that are expected already."""
        self._next += reversed(places)
        if self._pool is not None:
            self._look_ahead(self._pool)

    def take(self, place: str) -> Listed:
        if self._next and self._next[-1] == place:
            self._next.pop()
        if self._pool is not None and place not in self._found and place not in self._coming:
            self._coming[place] = self._pool.submit(self._with_folders, place)
        coming = self._coming.pop(place, None)
        found = coming.result() if coming else self._found.pop(place, None) or self._timed(place)
        self._folders += 1
        if not isinstance(found.entries, OSError):
            self._entries += len(found.entries)
            if self._kept is not None and found.settled:
                self._kept.keep(place, found.times, found.entries)
        return found

    def _look_ahead(self, pool: ThreadPoolExecutor) -> None:
        """Have some of those listed that come next, and of those that are listed what they hold."""
        left = max(1, min(2 * THREADS, _ENTRIES * self._folders // (self._entries + 1)))
        ahead = self._next[-left:]
        while ahead and left:
            place, left = ahead.pop(), left - 1
            if place not in self._found and place not in self._coming:
                self._coming[place] = pool.submit(self._with_folders, place)
            elif place in self._coming and self._coming[place].done():
                self._found[place] = self._coming.pop(place).result()
            if place in self._found:
                ahead += reversed(self._found[place].folders[:left])

    def _timed(self, place: str) -> Listed:
        started, used = time.perf_counter(), time.thread_time()
        found = self._listed(place)
        used = time.thread_time() - used
        self._used += used
        self._waited += time.perf_counter() - started - used
        if self._folders >= _LOOKED_AT and self._waited > max(_WAIT * self._folders, _SHARE * self._used):
            self._pool = self._pool or ThreadPoolExecutor(THREADS, "listing")
        return found

    def _with_folders(self, place: str) -> Listed:
        found = self._listed(place)
        if not isinstance(found.entries, OSError):
            found.folders = [e.path for e in found.entries if e.name[0] != "." and e.is_dir() and looked_into(e)]
        return found

    def _listed(self, place: str) -> Listed:
        times, now = list[int](), time.time_ns()
        try:
            times = times_of(place)
            if self._kept is not None and (known := self._kept.find(place, times)) is not None:
                return Listed(times, known)
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
            return Listed(times, entries, times[0] < now - SETTLED)
        except OSError as error:
            return Listed(times, error)
