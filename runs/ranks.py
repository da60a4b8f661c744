"""The processes of one command: they find each other, agree when to stop, wait for each other without a collective, and
end together."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from functools import cached_property
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from saccade.base.allocator import keep_freed_memory
from saccade.base.errors import Stopped, UserError
from saccade.base.processes import asked_processes
from saccade.models.gather import rank, world_size
from saccade.runs.fellows import Fellows
from saccade.runs.precision import on_gpu

LATE = 8  # steps after which a flag is read: by then the device has passed it, and nobody waits
DIVERGED = 1000  # what is agreed where a process's step went wrong: above every exit code
LINE = 30.0  # seconds between two lines of a process that waits
PATIENCE = 600.0  # seconds that a process waits for another that stands still
SHARED = "give a run folder that all machines share"
SHARED_CACHE = "set SACCADE_CACHE to a folder that all machines share"
_made = count()
Result = TypeVar("Result")


class Ranks:
    """One process's view of all of them; with one process everything here is done at once.

    A context manager: a fellow that ends, or stands still for `patience` seconds, ends this process with a sentence,
    and what ends this one is told to the fellows. alone: one process, whatever others there are.
    """

    def __init__(self, device: torch.device | None, patience: float, alone: bool = False) -> None:
        self.device, self._calls = device, 0
        self._flying: deque[tuple[Any, Tensor]] = deque()
        self.rank, self.world = (0, 1) if alone else (rank(), world_size())
        self.main = self.rank == 0
        number = next(_made) if self.world > 1 else 0
        self._store = _store(number) if self.world > 1 else None
        self._fellows = Fellows(_store(number), self.rank, self.world, patience) if self.world > 1 else None

    def __enter__(self) -> Ranks:
        if self._fellows is not None:
            self._fellows.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._fellows is None:
            return
        if error is None:
            self._fellows.leave()
        elif isinstance(error, UserError | Stopped):
            self._fellows.leave(str(error), error.code if isinstance(error, Stopped) else 2)
        else:  # perhaps only because a fellow is gone: then this does not return
            self._fellows.leave_by_error(type(error).__name__, "".join(traceback.format_exception(error)))

    def words(self, folder: Path) -> None:
        """From now on what this process says last is kept in `folder`/ranks/."""
        if self._fellows is not None:
            self._fellows.words(folder)

    def at(self, place: str) -> None:
        """Note where the main thread is, for the sentence of how it ended; what stands still too long is hung."""
        if self._fellows is not None:
            self._fellows.at(place)

    def writing(self) -> AbstractContextManager:
        """What is being written inside is finished even where a fellow's end takes this process along."""
        return self._fellows.writing() if self._fellows is not None else nullcontext()

    def agreed(self, number: int, diverged: Tensor, now: bool = False) -> int:
        """The largest `number` that any process gave, LATE calls ago, on all of them alike; now: of this call.

        diverged: a boolean on the device; where it is true on any process the number is DIVERGED. One call a step on
        every process. It waits for nothing, unless `now`; one process alone knows its number at once.
        """
        if self._store is None and not diverged.is_cuda:
            return max(number, DIVERGED * int(diverged))
        flag = torch.full((1,), number, dtype=torch.int32, device=self.device)
        flag = torch.maximum(flag, DIVERGED * diverged.int())
        done = None if self._store is None else dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True)
        if flag.is_cuda:
            if done is not None:
                done.wait()  # the stream, not the host
            flag = torch.empty(1, dtype=flag.dtype, pin_memory=True).copy_(flag, non_blocking=True)
            done = torch.cuda.current_stream().record_event()
        self._flying.append((done, flag))
        found = number if self._store is None else 0
        while self._flying and (now or len(self._flying) > LATE):
            done, flag = self._flying.popleft()
            done.synchronize() if flag.is_pinned() else done.wait()
            found = max(found, int(flag))
        return found

    def on_main(self, what: str, work: Callable[[], Result]) -> Result | None:
        """work() on the main process, None on the others, which wait until it is done, however long that takes."""
        result = None
        if self.main:
            with self.alone(what):
                result = work()
        self._pass(what, self.main, "main", "process 0")
        return result

    def first_on_each_node(self, what: str, work: Callable[[], Result]) -> Result:
        """work() on every process, on each machine by one of them first: it downloads, the others find what it left."""
        if self._store is None:
            return work()
        node = socket.gethostname()
        first = self._store.add(f"saccade/first/{self._calls}/{node}", 1) == 1
        if not first:
            self._pass(what, False, node, "another process of this machine")
            return work()
        with self.alone(what):
            result = work()
        self._pass(what, True, node, "")
        return result

    def of_main(self, what: str, value: str) -> str:
        """The main process's text, on every process."""
        if self._store is None:
            return value
        self._calls += 1
        if self.main:
            self._store.set(f"saccade/text/{self._calls}", value)
        self._wait(f"saccade/text/{self._calls}", what, "process 0")
        return self._store.get(f"saccade/text/{self._calls}").decode()

    def common(self, what: str, value: str, choose: Callable[[list[str]], str]) -> str:
        """What `choose` makes of all processes' texts, on every process."""
        if self._store is None:
            return value
        self._calls += 1
        keys = [f"saccade/all/{self._calls}/{k}" for k in range(self.world)]
        self._store.set(keys[self.rank], value)
        for k, key in enumerate(keys):
            self._wait(key, what, f"process {k}")
        return choose([self._store.get(key).decode() for key in keys])

    def all_here(self, what: str) -> None:
        """Wait until every process has come to this call."""
        self.common(what, "", max)

    def same(self, what: str, value: str, way_out: str = SHARED) -> None:
        """Raise UserError where this process's value is not the main one's."""
        if (theirs := self.of_main(what, value)) != value:
            raise UserError(
                f"{what} is {theirs} on process 0 and {value} on process {self.rank} on {socket.gethostname()}; "
                f"{way_out}."
            )

    @cached_property
    def one_machine(self) -> bool:
        """Whether all processes are on one; asked by all of them alike."""
        return "\n" not in self.common("their machines", socket.gethostname(), lambda names: "\n".join(set(names)))

    def alone(self, what: str) -> AbstractContextManager:
        """Inside, this process may be as long as it likes: the others do not hold it to be hung."""
        return self._fellows.alone(what) if self._fellows is not None else nullcontext()

    def together(self) -> AbstractContextManager:
        """Inside, what `alone` allows is taken back: every process must go on, and say so by `at`."""
        return self._fellows.together() if self._fellows is not None else nullcontext()

    def _pass(self, what: str, opens: bool, name: str, who: str) -> None:
        """Open the gate of this call, or wait until it is open."""
        if self._store is None:
            return
        self._calls += 1
        key = f"saccade/gate/{self._calls}/{name}"
        if opens:
            with suppress(RuntimeError):  # as in _passed
                self._store.set(key, "open")
        else:
            self._wait(key, what, who)

    def _wait(self, key: str, what: str, who: str) -> None:
        assert self._store is not None
        started, told = time.monotonic(), 0.0
        with self.alone(f"waiting for {who}: {what}"):
            while not self._passed(key):
                time.sleep(0.02)
                waited = time.monotonic() - started
                if waited - told >= LINE:
                    told = waited
                    print(f"process {self.rank} waits for {who}: {what}, {waited:.0f} s", file=sys.stderr, flush=True)

    def _passed(self, key: str) -> bool:
        assert self._store is not None
        try:
            return self._store.check([key])
        except RuntimeError:  # the launcher is gone, and with it the store: nobody ends us before the main one is done
            return True


ONE = Ranks(None, PATIENCE, alone=True)


def _store(number: int) -> Store:
    """A connection of its own to the store of the process group: what waits on one does not hold up another. number: of
    the command, which may be one of several in these processes."""
    store = dist.distributed_c10d._get_default_store().clone()  # pyright: ignore[reportAttributeAccessIssue]
    return PrefixStore(f"saccade-{number}", store)


def start_processes(device: str, patience: float = PATIENCE) -> PartialState:
    """The processes that were launched, on `device`; they must have found each other, and wait `patience` s for one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no usable GPU was found here; use --device cpu or leave it out.")
    cpu = not on_gpu(device)
    if cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # without it, processes launched on a CPU do not find each other
        keep_freed_memory()
    more = {"timeout": timedelta(seconds=patience + 60)} if asked_processes() > 1 else {}  # after fellows.py has
    try:
        state = PartialState(cpu=cpu, **more)
    except RuntimeError as error:  # torch's, of its store or its sockets
        reason = str(error).splitlines()[0][:200]
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"the {asked_processes()} processes did not all come to {where} within {patience + 60:.0f} s ({reason}); "
            "were all of them started, and can they reach each other?"
        ) from error
    if state.num_processes < (asked := asked_processes()):
        raise UserError(
            f"{asked} processes were asked for but {state.num_processes} found each other, and would work alone; "
            f"start them with torchrun --nproc_per_node {asked}, or accelerate launch --multi_gpu (docs/cluster.md)."
        )
    return state
