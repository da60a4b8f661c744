"""Run a function on N real gloo processes and bring back what each rank returned.

    losses = run_ranks(my_function, 0.5, world_size=2)     # my_function(0.5) on rank 0 and 1; losses[r] from rank r

The processes are started once per world size and kept for the rest of the test run (importing torch takes seconds); a
rank that raises or hangs takes its group down with it, and the next call starts a fresh one.
"""

import atexit
import io
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT_SECONDS = 120


def _to_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _serve(rank: int, world_size: int, init_file: str, connection: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{init_file}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        try:
            connection.send((True, _to_bytes(function(*args))))
        except Exception:
            connection.send((False, f"rank {rank}: {traceback.format_exc()}"))


class _Ranks:
    def __init__(self, world_size: int) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        context = mp.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory(prefix="saccade-gloo-")
        self.connections, self.processes = [], []
        for rank in range(world_size):
            here, there = context.Pipe()
            init_file = os.path.join(self.folder.name, "init")
            process = context.Process(target=_serve, args=(rank, world_size, init_file, there), daemon=True)
            process.start()
            there.close()
            self.connections.append(here)
            self.processes.append(process)

    def run(self, function: Callable, args: tuple) -> list[Any]:
        for connection in self.connections:
            connection.send((function, args))
        results: dict[int, bytes] = {}
        while len(results) < len(self.connections):
            pending = [c for rank, c in enumerate(self.connections) if rank not in results]
            ready: list[Any] = wait(pending, timeout=TIMEOUT_SECONDS)
            if not ready:
                raise TimeoutError(f"no rank answered within {TIMEOUT_SECONDS} s")
            for connection in ready:
                succeeded, payload = connection.recv()
                if not succeeded:
                    raise RuntimeError(payload)
                results[self.connections.index(connection)] = payload
        return [torch.load(io.BytesIO(results[rank]), weights_only=True) for rank in range(len(results))]

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
            process.join()
        self.folder.cleanup()


_groups: dict[int, _Ranks] = {}


def _stop(world_size: int) -> None:
    if world_size in _groups:
        _groups.pop(world_size).stop()


def dealt(count: int, ranks: int = 2) -> torch.Tensor:
    """(count,): rows of the ranks one after another, in the order in which they are gathered: one of each in turn."""
    return torch.arange(count).view(ranks, -1).t().flatten()


def run_ranks(function: Callable, *args: Any, world_size: int = 2) -> list[Any]:
    """`function(*args)` on each of `world_size` gloo processes; returns their results (tensors, numbers) by rank.

    `function` must be importable (defined at the top of a test module). Raises RuntimeError with a rank's traceback.
    """
    if world_size not in _groups:
        _groups[world_size] = _Ranks(world_size)
        atexit.register(_stop, world_size)
    try:
        return _groups[world_size].run(function, args)
    except BaseException:
        _stop(world_size)
        raise
