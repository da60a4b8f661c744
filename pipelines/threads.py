"""The `threads` executor: any images, each decoded once by threads, all its views cut from that by our boxes.

Ordinary JPEGs are decoded by libjpeg-turbo into one buffer, anything else by PIL in the same threads, so every file
means what it means to `reference`. No process is started, nothing is sent.
"""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from saccade.base.errors import UserError
from saccade.pipelines.cache import Cache
from saccade.pipelines.draw import ViewParams, draw
from saccade.pipelines.header import jpeg_header
from saccade.pipelines.jpeg import decode_upright
from saccade.pipelines.pipeline import Batch, Pipeline, pieces_of
from saccade.pipelines.render import Photos, appearance, render
from saccade.pipelines.scale import scale_for, whole_blocks
from saccade.pipelines.sources import BadImage, Source, image_size
from saccade.pipelines.views import View, Views

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 2  # batches made at the same time, so that one's last samples do not leave cores idle; as many again may wait
_DECODED_BYTES = 1 << 28  # at most so much is decoded at once: a batch of large photos goes through in pieces
_FIRST, _LEAST = 64, 16  # images whose files are read together: at first, and at least
_TIMEOUT = 600.0  # seconds without a batch that are taken for a hang (a dead network mount)


@dataclass
class Image:
    """One image as it was read: a file, or pixels."""

    number: int  # of the sample that was read
    size: tuple[int, int]  # upright
    file: np.ndarray | bytes | None  # a JPEG, or what PIL decodes
    pixels: np.ndarray | None = None
    orientation: int | None = None  # EXIF's, of a JPEG for libjpeg-turbo
    scale: int = 1  # 2, 4 or 8: that JPEG is decoded at one pixel for so many, in both directions
    is_cached: bool = False

    @property
    def decoded(self) -> tuple[int, int]:
        """The size it is decoded at."""
        height, width = self.size
        return -(-height // self.scale), -(-width // self.scale)


class ThreadsPipeline(Pipeline):
    """workers: threads that decode and render. as_bytes: views are cut to uint8 and finished on the device (None: on a
    GPU, where that is a quarter of the transfer). cache, scaled: of decoded images, and whether large JPEGs are decoded
    at the scale that their crops need; they may be set before the first epoch."""

    cache: Cache | None = None
    scaled = False

    def __init__(
        self, source: Source, *args, workers: int = 1, as_bytes: bool | None = None, timeout: float = _TIMEOUT, **kwargs
    ) -> None:
        super().__init__(source, *args, workers=workers, **kwargs)
        self._timeout = timeout
        self._as_bytes = self.device.type != "cpu" if as_bytes is None else as_bytes
        self._cutter = "auto" if self.renderer == "triton" else self.renderer  # cuts on the CPU
        self._pools: tuple[ThreadPoolExecutor, ...] = ()
        self._stuck = False  # a thread does not come back: do not wait for it
        self._scratch, self._repair, self._together = threading.local(), threading.Lock(), _FIRST

    def _batches(self, epoch: int, shards: Sequence[Tensor]) -> Iterator[Batch]:
        if not self._pools:
            sizes = {"batch": _AHEAD, "decode": self.workers, "read": min(32, 2 * self.workers)}
            self._pools = tuple(ThreadPoolExecutor(count, f"threads-{name}") for name, count in sizes.items())
        makers, left, made = self._pools[0], iter(shards), deque()
        try:
            made.extend(makers.submit(self._make, epoch, index) for index in islice(left, 2 * _AHEAD))
            while made:
                views, params, index, label = self._wait(made.popleft())
                made.extend(makers.submit(self._make, epoch, index) for index in islice(left, 1))
                yield self._on_device(views, params, index, label)
        finally:  # the epoch may be left early, or by an error
            for future in made:
                future.cancel()
            if not self._stuck:
                wait(made, self._timeout)

    def close(self) -> None:
        for pool in self._pools:
            pool.shutdown(wait=not self._stuck, cancel_futures=True)
        self._pools, self._stuck = (), False

    def _wait(self, future: Future) -> tuple:
        try:
            return future.result(self._timeout)
        except TimeoutError as error:
            if future.done():  # the error of a file system, not ours
                raise
            self._stuck = True
            raise UserError(
                f"{self.source.name}: no batch for {self._timeout:.0f} s; is it on a disk that still answers?"
            ) from error

    def _make(
        self, epoch: int, index: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, ViewParams], Tensor, Tensor | None]:
        """Views (as bytes: only those with a crop of their own), parameters and labels of one batch, on the CPU."""
        pieces, used, start = [], [], 0
        for photos, shown in self._decoded(epoch, index):
            rows = index[start : start + len(photos)]
            params = draw(self.recipe, self.order.seed, epoch, rows, photos.source)
            cut = (
                render(photos, self.recipe, params, self.dtype, None, self._cutter, self.workers)
                if not self._as_bytes
                else _as_bytes(photos, self.recipe, params, self._cutter, self.workers)
            )
            pieces.append((cut, params))
            used.append(shown)
            start += len(photos)
        whole = len(pieces) == 1
        views = {
            name: pieces[0][0][name] if whole else torch.cat([cut[name] for cut, _ in pieces]) for name in pieces[0][0]
        }
        params = {
            name: p if whole else ViewParams.cat(drawn[name] for _, drawn in pieces) for name, p in pieces[0][1].items()
        }
        if self.device.type == "cuda":
            views = {name: view.pin_memory() for name, view in views.items()}
        return views, params, index, self._labels(torch.cat(used))

    # --- reading and decoding ---------------------------------------------------------------------------------------

    def _decoded(self, epoch: int, index: Tensor) -> Iterator[tuple[Photos, Tensor]]:
        """The images of `index` in consecutive pieces that are bounded in bytes, and the numbers of those shown. A
        piece is valid until the next one is asked for."""
        if self.cache is not None and (photos := self.cache.photos(index.numpy())) is not None:
            yield photos, index
            return
        while len(index):
            some, index = index[: self._together], index[self._together :]
            images = self._each(2, self._read, some.tolist())
            if self.scaled:
                self._scale(images, epoch, some)
            sizes = np.array([image.decoded for image in images], np.int64)
            self._together = max(_LEAST, int(_DECODED_BYTES // (3 * sizes.prod(axis=1).mean())))
            for rows in pieces_of(sizes, _DECODED_BYTES):
                yield self._decode(images[rows], sizes[rows])

    def _each(self, pool: int, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """`work` on each item by all threads of a pool, which take the next one as they come: a future for each image
        costs a twentieth of its decoding."""
        done: dict[int, Result] = {}
        left = iter(range(len(items)))

        def take() -> None:
            for n in left:  # `next` holds the GIL: each goes to one thread
                done[n] = work(items[n])

        threads = self._pools[pool]._max_workers
        for taken in [self._pools[pool].submit(take) for _ in range(min(threads, len(items)))]:
            taken.result()
        return [done[n] for n in range(len(items))]

    def _scale(self, images: list[Image], epoch: int, rows: Tensor) -> None:
        """Say at which scale each is decoded, by the crops that are drawn for it."""
        sizes = torch.tensor([image.size for image in images])
        scales = scale_for(self.recipe, draw(self.recipe, self.order.seed, epoch, rows, sizes))
        for image, scale in zip(images, scales.tolist(), strict=True):
            if image.orientation is not None:
                image.scale = scale if image.orientation == 1 else min(scale, whole_blocks(image.size))

    def _read(self, number: int) -> Image:
        """Image `number`, or the next one that can be read."""
        return self.source.first_readable(number, self._load if self.cache is None else self._cached)[0]

    def _cached(self, number: int) -> Image:
        pixels = self.cache.pixels(number) if self.cache is not None else None
        return self._load(number) if pixels is None else Image(number, pixels.shape[:2], None, pixels, is_cached=True)

    def _load(self, number: int) -> Image:
        data = self.source.encoded(number)
        if data is not None and (header := jpeg_header(data)):
            return Image(number, (header.height, header.width), data, orientation=header.orientation)
        if data is not None:
            with suppress(BadImage):  # PIL knows not all that is decoded
                return Image(number, image_size(io.BytesIO(data)), data)
        pixels = self.source.read(number) if data is None else self.source.decode(data)
        return Image(number, pixels.shape[:2], None, pixels)

    def _decode(self, images: list[Image], sizes: np.ndarray) -> tuple[Photos, Tensor]:
        """Images, decoded at these sizes, as one buffer, unreadable ones replaced, and the numbers of those shown."""
        whole, scale = np.array([image.size for image in images]), np.array([image.scale for image in images])
        offset = np.concatenate([[0], (3 * sizes.prod(axis=1)).cumsum()])
        buffer, used = self._buffer(int(offset[-1])), np.array([image.number for image in images])

        def decode(n: int) -> bool:
            out = buffer[offset[n] : offset[n + 1]].reshape(*sizes[n], 3)
            good = self._decode_one(images[n], out)
            if good and self.cache is not None and not images[n].is_cached:
                self.cache.put(images[n].number, out)
            return good

        good = self._each(1, decode, range(len(images)))
        offset, extra = offset[:-1], []
        for n in (n for n, whole in enumerate(good) if not whole):
            with self._repair:  # PIL judges: what it can read is no bad image
                pixels, used[n] = self.source.read_or_replace(int(used[n]))
            sizes[n], offset[n] = pixels.shape[:2], len(buffer) + sum(map(len, extra))
            whole[n], scale[n] = sizes[n], 1
            extra.append(pixels.reshape(-1))
        flat = np.concatenate([buffer, *extra]) if extra else buffer
        where = (flat, offset, sizes, scale, whole) if self.scaled else (flat, offset, sizes)
        return Photos(*(torch.from_numpy(a) for a in where)), torch.from_numpy(used)

    def _decode_one(self, image: Image, out: np.ndarray) -> bool:
        """Whether the image is what was expected; else `out` holds anything."""
        pixels = image.pixels
        if image.file is not None and image.orientation is not None:
            return decode_upright(image.file, image.orientation, out, image.scale)
        if isinstance(image.file, bytes):
            try:
                pixels = self.source.decode(image.file)
            except BadImage:
                return False
        if pixels is None or pixels.shape != out.shape:
            return False
        out[:] = pixels
        return True

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
