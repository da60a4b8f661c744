"""A peer in a process of its own, which it may crash, hang or set to one thread without harm to the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from torch import Tensor

from saccade.base.errors import UserError
from saccade.tools.benchmark.peers.materials import Materials
from saccade.tools.benchmark.peers.registry import Peer

PATIENCE = 600.0  # seconds for a batch: FFCV compiles each view first, half a minute on a busy machine


class PeerProcess:
    """Started when a batch is first asked for; `close` ends it."""

    def __init__(self, peer: Peer, materials: Materials) -> None:
        self._peer, self._materials, self._process = peer, materials, None
        self._pipe: Connection | None = None

    def sizes(self) -> Iterator[int]:
        """Of batches without end; leaving ends the peer's threads and workers, not the process."""
        try:
            while True:
                yield self._ask("next")
        finally:
            if self._pipe is not None:
                self._ask("stop")

    def sample(self) -> list[np.ndarray]:
        """A batch's views."""
        return self._ask("sample")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _ask(self, what: str) -> Any:
        if self._pipe is None:
            self._peer.check(self._materials)
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self._peer.views, self._materials))
            self._process.start()
            theirs.close()
        try:
            self._pipe.send(what)
            answer = self._pipe.recv() if self._pipe.poll(PATIENCE) else UserError(f"no batch for {PATIENCE:.0f} s")
        except (EOFError, OSError):
            answer = UserError("its process ended")
        if isinstance(answer, Exception):
            self.close()
            raise answer
        return answer


def _serve(pipe: Connection, open_views: Callable[[Materials], Iterator[list[Tensor]]], materials: Materials) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of its workers, as a process that was not spawned has it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the bench ends it
    views: Any = None
    while True:
        try:
            what = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)  # not by the interpreter's end, in which FFCV's threads abort
        try:
            if what == "stop":
                if views is not None:
                    views.close()
                views, answer = None, 0
            else:
                views = views or open_views(materials)
                batch = next(views)
                answer = len(batch[0]) if what == "next" else [view.numpy().copy() for view in batch]
        except Exception as error:
            answer = UserError(f"{type(error).__name__}: {str(error)[:300]}")
        pipe.send(answer)
