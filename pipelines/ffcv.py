"""The `ffcv` executor: `.beton` files, each image decoded once by threads, all its views cut from that by our boxes.

FFCV's file format and its decoder, libjpeg-turbo, without its Loader: that one calls torch.set_num_threads, decodes
once for each view, hangs when a thread raises and aborts the interpreter when an epoch is left early (docs/data.md).
Raw pixels are not even copied: the renderer reads the crops from the mapped file.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from saccade.base.errors import UserError
from saccade.base.mapped import unwritable
from saccade.pipelines.draw import ViewParams, draw
from saccade.pipelines.jpeg import decode_into
from saccade.pipelines.pipeline import Batch, Pipeline, pieces_of
from saccade.pipelines.render import Photos, appearance, render
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.beton import BetonSource
from saccade.pipelines.views import View, Views

_AHEAD = 2  # batches made at the same time, so that one's last samples do not leave cores idle; as many again may wait
_DECODED_BYTES = 1 << 28  # at most so much is decoded at once: a batch of large photos goes through in pieces
_TIMEOUT = 600.0  # seconds without a batch that are taken for a hang (a dead network mount)


class FfcvPipeline(Pipeline):
    """workers: threads that decode and render. as_bytes: views are cut to uint8 and finished on the device (None: on a
    GPU, where that is a quarter of the transfer)."""

    source: BetonSource

    def __init__(
        self, source: Source, *args, workers: int = 1, as_bytes: bool | None = None, timeout: float = _TIMEOUT, **kwargs
    ) -> None:
        if not isinstance(source, BetonSource):
            raise UserError(f"the ffcv executor reads .beton files, {source.name} is none; saccade convert makes one.")
        super().__init__(source, *args, **kwargs)
        self._workers, self._timeout = max(1, workers), timeout
        self._as_bytes = self.device.type != "cpu" if as_bytes is None else as_bytes
        self._cutter = "auto" if self.renderer == "triton" else self.renderer  # cuts on the CPU
        self._makers: ThreadPoolExecutor | None = None
        self._decoders: ThreadPoolExecutor | None = None
        self._stuck = False  # a thread does not come back: do not wait for it
        self._scratch, self._repair = threading.local(), threading.Lock()

    def _batches(self, epoch: int, shards: Sequence[Tensor]) -> Iterator[Batch]:
        if self._makers is None:
            self._makers = ThreadPoolExecutor(_AHEAD, "ffcv-batch")
            self._decoders = ThreadPoolExecutor(self._workers, "ffcv-decode")
        left, made = iter(shards), deque()
        try:
            made.extend(self._makers.submit(self._make, epoch, index) for index in islice(left, 2 * _AHEAD))
            while made:
                views, params, index, label = self._wait(made.popleft())
                made.extend(self._makers.submit(self._make, epoch, index) for index in islice(left, 1))
                yield self._on_device(views, params, index, label)
        finally:  # the epoch may be left early, or by an error
            for future in made:
                future.cancel()
            if not self._stuck:
                wait(made, self._timeout)

    def close(self) -> None:
        for pool in (self._makers, self._decoders):
            if pool is not None:
                pool.shutdown(wait=not self._stuck, cancel_futures=True)
        self._makers = self._decoders = None
        self._stuck = False

    def _wait(self, future: Future) -> tuple:
        try:
            return future.result(self._timeout)
        except TimeoutError as error:
            if future.done():  # the error of a file system, not ours
                raise
            self._stuck = True
            raise UserError(
                f"{self.source.name}: no batch for {self._timeout:.0f} s; is the file on a disk that still answers?"
            ) from error

    def _make(
        self, epoch: int, index: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, ViewParams], Tensor, Tensor | None]:
        """Views (as bytes: only those with a crop of their own), parameters and labels of one batch, on the CPU."""
        used, pieces = index.clone(), []
        for rows in self._pieces(index):
            photos, used[rows] = self._decode(index[rows])
            params = draw(self.recipe, self.order.seed, epoch, index[rows], photos.size)
            cut = (
                render(photos, self.recipe, params, self.dtype, None, self._cutter, self._workers)
                if not self._as_bytes
                else _as_bytes(photos, self.recipe, params, self._cutter, self._workers)
            )
            pieces.append((cut, params))
        whole = len(pieces) == 1
        views = {
            name: pieces[0][0][name] if whole else torch.cat([cut[name] for cut, _ in pieces]) for name in pieces[0][0]
        }
        params = {
            name: p if whole else ViewParams.cat(drawn[name] for _, drawn in pieces) for name, p in pieces[0][1].items()
        }
        if self.device.type == "cuda":
            views = {name: view.pin_memory() for name, view in views.items()}
        return views, params, index, self._labels(used)

    def _pieces(self, index: Tensor) -> list[slice]:
        """The batch in consecutive pieces that decode to a bounded number of bytes."""
        source, numbers = self.source, index.numpy()
        if not source.is_jpeg[numbers].any():  # nothing is decoded
            return [slice(0, len(index))]
        return pieces_of(source.sizes[numbers], _DECODED_BYTES)

    def _decode(self, index: Tensor) -> tuple[Photos, Tensor]:
        """The images of `index`, unreadable ones replaced, and the numbers of those that are shown."""
        assert self._decoders is not None  # made with the makers
        source = self.source
        numbers = index.numpy()
        sizes, used = source.sizes[numbers], numbers.copy()
        if not source.is_jpeg[numbers].any():
            return Photos(self._mapped, torch.from_numpy(source.ptr[numbers]), torch.from_numpy(sizes)), index
        offset = np.concatenate([[0], (3 * sizes.prod(axis=1)).cumsum()])
        buffer = self._buffer(int(offset[-1]))

        def decode(n: int) -> bool:
            i, out = int(numbers[n]), buffer[offset[n] : offset[n + 1]].reshape(*sizes[n], 3)
            if not source.is_jpeg[i]:
                out[:] = source.read(i)
                return True
            return source.name_of(i) not in source.known_bad and decode_into(source.piece(i), out)

        good = list(self._decoders.map(decode, range(len(numbers))))
        offset, extra = offset[:-1], []
        for n in (n for n, whole in enumerate(good) if not whole):
            with self._repair:  # PIL judges: what it can read is no bad image
                pixels, used[n] = source.read_or_replace(int(numbers[n]))
            sizes[n], offset[n] = pixels.shape[:2], len(buffer) + sum(map(len, extra))
            extra.append(pixels.reshape(-1))
        flat = np.concatenate([buffer, *extra]) if extra else buffer
        return Photos(*(torch.from_numpy(a) for a in (flat, offset, sizes))), torch.from_numpy(used)

    @cached_property
    def _mapped(self) -> Tensor:
        """(bytes,) uint8: the whole file."""
        return unwritable(self.source.file)

    def _buffer(self, size: int) -> np.ndarray:
        """(size,) uint8, this thread's own and used again: fresh pages would cost an eighth of a decode."""
        if getattr(self._scratch, "buffer", np.empty(0)).size < size:
            self._scratch.buffer = np.empty(size + size // 4, np.uint8)
        return self._scratch.buffer[:size]

    def _on_device(
        self, views: dict[str, Tensor], params: dict[str, ViewParams], index: Tensor, label: Tensor | None
    ) -> Batch:
        on = {"device": self.device, "non_blocking": True}
        views = {name: view.to(**on) for name, view in views.items()}
        params = {name: p.to(**on) for name, p in params.items()}
        if self._as_bytes:
            views = {
                view.name: appearance(
                    views[self.recipe.geometry_of(view).name],
                    view,
                    params[view.name],
                    self.recipe,
                    self.dtype,
                    self.renderer,
                )
                for view in self.recipe
            }
        return Batch(views, params, index, None if label is None else label.to(**on))


def _as_bytes(
    photos: Photos, recipe: Views, params: dict[str, ViewParams], backend: str, threads: int
) -> dict[str, Tensor]:
    """Views with a crop of their own, cut and mirrored only: name -> (N, 3, S, S) uint8, channels-last."""
    plain = tuple(View(v.name, v.size, v.crop) for v in recipe if v.parent is None)
    low, one = -0.5 / 255, 1 / 255
    to_bytes = Views(plain, mean=(low, low, low), std=(one, one, one))  # 255 x + 0.5, which casting rounds to nearest
    views = render(photos, to_bytes, params, backend=backend, threads=threads)
    return {
        name: torch.from_numpy(view.permute(0, 2, 3, 1).numpy().astype(np.uint8)).permute(0, 3, 1, 2)
        for name, view in views.items()
    }  # numpy's cast: a quarter of the time of torch's
