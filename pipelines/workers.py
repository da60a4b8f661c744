"""Processes that make batches, where one that dies costs a batch's time and no run: its work is done again.

Large tensors come through memory that the processes inherit, the rest through a pipe. Nothing lies in /dev/shm, torch's
way, which ends or hangs a run where it is small (64 MB in Docker).
"""

from __future__ import annotations

import mmap
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from saccade.base.errors import UserError
from saccade.base.processes import become_worker

Work = Callable[[Any], tuple[dict[str, Tensor], Any]]
_AHEAD = 2  # items that wait for each worker
_TRIES = 3  # deaths without one result in between
_SIGNALS = {int(s): s.name for s in signal.Signals}
_work: Work  # of a worker process
_slots: list[mmap.mmap]


class Workers:
    """`count` processes that each call `work` on items; 0: this one.

    work gives large tensors by name, which are valid until the next result is asked for, and the rest, which may hold
    tensors in dicts and tuples: the same for the same item, whichever process does it. room: bytes of the large ones.
    """

    def __init__(self, work: Work, count: int, room: int) -> None:
        self._make, self._count, self._room = work, count, room
        self._pool: ProcessPoolExecutor | None = None
        self._processes: list[Any] = []
        self._slots: list[mmap.mmap] = []

    def map(self, items: Iterable[Any]) -> Iterator[tuple[dict[str, Tensor], Any]]:
        """work(item) of each, in order, made ahead. An exception of `work` is raised here."""
        if not self._count:
            yield from map(self._make, items)
            return
        left, deaths, free = iter(items), 0, list(range(_AHEAD * self._count))
        waiting: deque[tuple[Any, int, Future]] = deque()
        while True:
            while free and (item := next(left, None)) is not None:
                waiting.append((item, slot := free.pop(), self._submit(item, slot)))
            if not waiting:
                return
            _, slot, future = waiting[0]
            try:
                result = future.result()
            except BrokenProcessPool:
                deaths += 1
                self._bury(deaths)
                waiting = deque((item, slot, self._submit(item, slot)) for item, slot, _ in waiting)
                continue
            waiting.popleft()
            deaths = 0
            laid, rest = result
            large = {
                n: t.in_(self._slots[slot]) if isinstance(t, _Lying) else torch.from_numpy(t) for n, t in laid.items()
            }
            yield large, _each(rest, np.ndarray, torch.from_numpy)
            free.append(slot)

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for process in self._processes:
            process.terminate()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool, self._processes, self._slots = None, [], []

    def _submit(self, item: Any, slot: int) -> Future:
        if self._pool is None:
            self._start()
        assert self._pool is not None
        try:
            before = set(multiprocessing.active_children())
            future = self._pool.submit(_do, item, slot)
            self._processes += [p for p in multiprocessing.active_children() if p not in before]
            return future
        except BrokenProcessPool as error:  # met where its result is waited for
            future = Future()
            future.set_exception(error)
            return future

    def _start(self) -> None:
        context = multiprocessing.get_context()
        if self._room and not self._slots and context.get_start_method() == "fork":
            self._slots = [mmap.mmap(-1, self._room) for _ in range(_AHEAD * self._count)]
        self._pool = ProcessPoolExecutor(self._count, context, _begin, (self._make, self._slots))

    def _bury(self, deaths: int) -> None:
        """Say who died of what; UserError where none lives long enough to make anything."""
        if self._pool is not None:
            self._pool.shutdown()
        codes = sorted({p.exitcode for p in self._processes if p.exitcode} - {-signal.SIGTERM}) or [-signal.SIGTERM]
        self._pool, self._processes = None, []
        how = ", ".join(_SIGNALS.get(-code, f"exit code {code}") for code in codes)
        memory = "; if memory ran out, fewer --workers need less" if -signal.SIGKILL in codes else ""
        if deaths >= _TRIES:
            raise UserError(
                f"{deaths} times in a row a worker process that makes views died ({how}){memory}; --workers 0 makes "
                "them in this process, where the reason shows, and --resume goes on from the last checkpoint."
            )
        tqdm.write(
            f"warning: a worker process that makes views died ({how}); new ones make its batches again and the run "
            f"goes on{memory}",
            file=sys.stderr,
        )


# --- in a worker ----------------------------------------------------------------------------------------------------


def _begin(work: Work, slots: list[mmap.mmap]) -> None:
    """What a worker does first."""
    global _work, _slots
    _work, _slots = work, slots
    become_worker()
    torch.set_num_threads(1)


def _do(item: Any, slot: int) -> Any:
    """The large tensors, which lie in the slot where they fit, and the rest; all others as arrays: a pipe takes those,
    tensors would go by /dev/shm."""
    large, rest = _work(item)
    laid, end = {}, 0
    for name, tensor in large.items():
        laid[name] = tensor.numpy()
        if _slots and end + tensor.nbytes <= len(_slots[slot]):
            laid[name] = _Lying(end, tuple(tensor.shape), tensor.dtype)
            laid[name].in_(_slots[slot]).copy_(tensor)
            end += tensor.nbytes
    return laid, _each(rest, Tensor, Tensor.numpy)


@dataclass(frozen=True)
class _Lying:
    """Where a tensor lies in a slot."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def in_(self, slot: mmap.mmap) -> Tensor:
        count = int(np.prod(self.shape))
        return torch.frombuffer(slot, dtype=self.dtype, count=count, offset=self.offset).view(self.shape)


def _each(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The same dicts and tuples, with what is of a kind changed."""
    if isinstance(value, dict):
        return {name: _each(inside, kind, change) for name, inside in value.items()}
    if isinstance(value, tuple):
        return tuple(_each(inside, kind, change) for inside in value)
    return change(value) if isinstance(value, kind) else value
