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
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from saccade.base.errors import UserError
from saccade.pipelines.cache import Cache
from saccade.pipelines.draw import ViewParams, draw
from saccade.pipelines.header import jpeg_header
from saccade.pipelines.jpeg import decode_upright
from saccade.pipelines.pipeline import Batch, Pipeline, pieces_of
from saccade.pipelines.render import Photos, appearance, or_by_torch, prepare, render
from saccade.pipelines.scale import scale_for, whole_blocks
from saccade.pipelines.sources import BadImage, Source, image_size
from saccade.pipelines.views import View, Views

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 2  # batches made at the same time, so that one's last samples do not leave cores idle; as many again may wait
_READ_BYTES = _DECODED_BYTES = 1 << 28  # at most so much is read, and decoded, at once, of a batch
_IN_CACHE, _FEW = 1 << 21, 8  # bytes, and images, that a thread decodes before it renders them
_FIRST, _LEAST = 64, 16  # images whose files are read together: at first, and at least
_CPU = torch.device("cpu")
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
    def held(self) -> int:
        """Bytes."""
        return sum(
            len(data) if isinstance(data, bytes) else data.nbytes
            for data in (self.file, self.pixels)
            if data is not None
        )

    @property
    def decoded(self) -> tuple[int, int]:
        """The size it is decoded at."""
        height, width = self.size
        return -(-height // self.scale), -(-width // self.scale)


class Piece(NamedTuple):
    """Some of a batch."""

    views: dict[str, Tensor]
    params: dict[str, ViewParams]
    used: Tensor  # (N,) int64: the images shown


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
        self._shown = _as_bytes(self.recipe) if self._as_bytes else self.recipe
        self._shown_dtype = torch.float32 if self._as_bytes else self.dtype
        self._pools: tuple[ThreadPoolExecutor, ...] = ()
        self._stuck = False  # a thread does not come back: do not wait for it
        self._scratch, self._repair, self._together = threading.local(), threading.Lock(), _FIRST

    def _batches(self, epoch: int, shards: Sequence[Tensor]) -> Iterator[Batch]:
        if not self._pools:
            sizes = {"batch": _AHEAD, "decode": self.workers, "read": min(32, 2 * self.workers)}
            self._pools = tuple(ThreadPoolExecutor(count, f"threads-{name}") for name, count in sizes.items())
        pools, left, made = self._pools, iter(shards), deque()
        makers = pools[0]
        try:
            made.extend(makers.submit(self._make, epoch, index) for index in islice(left, 2 * _AHEAD))
            while made:
                if self._pools is not pools:
                    raise UserError(f"{self.source.name}: the pipeline was closed in this epoch; iterate it anew.")
                views, params, index, label = self._wait(made.popleft())
                made.extend(makers.submit(self._make, epoch, index) for index in islice(left, 1))
                yield self._on_device(views, params, index, label)
        finally:  # the epoch may be left early, or by an error
            running = [future for future in made if not future.cancel()]  # nobody tells `wait` of the others
            if not self._stuck:
                wait(running, self._timeout)

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
        photos = self._lying(index)
        if photos is not None:
            drawn = draw(self.recipe, self.order.seed, epoch, index, photos.size)
            pieces = [Piece(self._rendered(photos, drawn, self._cutter), drawn, index)]
        else:
            pieces = [self._piece(epoch, rows, images) for rows, images in self._read_ahead(index)]
        views, params, used = pieces[0] if len(pieces) == 1 else _joined(pieces)
        return {name: self._packed(view) for name, view in views.items()}, params, index, self._labels(used)

    def _piece(self, epoch: int, index: Tensor, images: list[Image]) -> Piece:
        params = draw(self.recipe, self.order.seed, epoch, index, torch.tensor([image.size for image in images]))
        if self.scaled:
            self._scale(images, params)
        views, good = or_by_torch(lambda chosen: self._decoded(images, params, chosen), self._cutter, _CPU)
        used = torch.tensor([image.number for image in images])
        bad = [n for n, whole in enumerate(good) if not whole]
        if bad:
            with self._repair:  # PIL judges: what it can read is no bad image
                found = [self.source.read_or_replace(images[n].number) for n in bad]
            photos = _side_by_side([pixels for pixels, _ in found])
            drawn = draw(self.recipe, self.order.seed, epoch, index[bad], photos.size)
            for name, view in self._rendered(photos, drawn, self._cutter).items():
                views[name][bad] = view
            rows = torch.arange(len(images))
            rows[bad] = torch.arange(len(bad)) + len(images)
            params = {name: ViewParams.cat([p, drawn[name]])[rows] for name, p in params.items()}
            used[bad] = torch.tensor([number for _, number in found])
        return Piece(views, params, used)

    def _rendered(self, photos: Photos, params: dict[str, ViewParams], chosen: str) -> dict[str, Tensor]:
        return render(photos, self._shown, params, self._shown_dtype, None, chosen, self.workers)

    def _packed(self, view: Tensor) -> Tensor:
        """For the device: as bytes, in memory it can copy from while it computes."""
        if self._as_bytes:  # numpy's cast: a quarter of the time of torch's
            view = torch.from_numpy(view.permute(0, 2, 3, 1).numpy().astype(np.uint8)).permute(0, 3, 1, 2)
        return view.pin_memory() if self.device.type == "cuda" else view

    # --- reading and decoding ---------------------------------------------------------------------------------------

    def _lying(self, index: Tensor) -> Photos | None:
        """The images where they lie decoded already; None unless all do."""
        return None if self.cache is None else self.cache.photos(index.numpy())

    def _read_ahead(self, index: Tensor) -> Iterator[tuple[Tensor, list[Image]]]:
        """The images of `index` as files, in consecutive pieces that are bounded in bytes: their numbers and they."""
        while len(index):
            some, index = index[: self._together], index[self._together :]
            images = self._each(2, self._read, some.tolist())
            self._together = max(_LEAST, len(images) * _READ_BYTES // (1 + sum(image.held for image in images)))
            yield some, images

    def _each(
        self, pool: int, work: Callable[[Item], Result], items: Sequence[Item], most: int | None = None
    ) -> list[Result]:
        """`work` on each item by the threads of a pool, at most so many, which take the next one as they come: a future
        for each image costs a twentieth of its decoding."""
        done: dict[int, Result] = {}
        left = iter(range(len(items)))

        def take() -> None:
            for n in left:  # `next` holds the GIL: each goes to one thread
                done[n] = work(items[n])

        threads = min(most or self._pools[pool]._max_workers, len(items))
        for taken in [self._pools[pool].submit(take) for _ in range(threads)]:
            taken.result()
        return [done[n] for n in range(len(items))]

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

    def _scale(self, images: list[Image], params: dict[str, ViewParams]) -> None:
        """Say at which scale each is decoded, by the crops that are drawn for it."""
        for image, scale in zip(images, scale_for(self.recipe, params).tolist(), strict=True):
            if image.orientation is not None:
                image.scale = scale if image.orientation == 1 else min(scale, whole_blocks(image.size))

    def _decoded(
        self, images: list[Image], params: dict[str, ViewParams], chosen: str
    ) -> tuple[dict[str, Tensor], list[bool]]:
        """Views of the images, and which of them were decoded: what the others show is anything."""
        if chosen == "numba":
            return self._few_by_few(images, params)
        sizes, views, good = np.array([image.decoded for image in images]), [], []
        for rows in pieces_of(sizes, _DECODED_BYTES):
            cost = 3 * sizes[rows].prod(axis=1)
            photos, ends = self._photos(images[rows], int(cost.sum())), cost.cumsum()
            photos.offset[:] = torch.from_numpy(ends - cost)
            places = list(zip(images[rows], np.split(photos.buffer.numpy(), ends[:-1]), strict=True))
            good += self._each(1, lambda place: self._decode(*place), places)
            views.append(self._rendered(photos, {name: p[rows] for name, p in params.items()}, chosen))
        return {name: torch.cat([some[name] for some in views]) for name in views[0]}, good

    def _few_by_few(self, images: list[Image], params: dict[str, ViewParams]) -> tuple[dict[str, Tensor], list[bool]]:
        """The same by numba: a thread decodes a few images and renders them while they lie in its cache."""
        count, cost = len(images), [3 * image.decoded[0] * image.decoded[1] for image in images]
        few = min(max(_IN_CACHE // max(cost), 1), _FEW, count)
        room = few * max(cost)
        places = list(range(max(1, min(self.workers, _DECODED_BYTES // room, -(-count // few)))))
        photos, good = self._photos(images, len(places) * room), [False] * count
        buffer, offset = photos.buffer.numpy(), photos.offset.numpy()
        some, views = prepare(photos.sources, self._shown, params, self._shown_dtype)

        def work(first: int) -> None:
            place = places.pop()  # there are as many as threads
            try:
                at, last = place * room, min(first + few, count)
                for n in range(first, last):
                    offset[n], at = at, at + cost[n]
                    good[n] = self._decode(images[n], buffer[at - cost[n] : at])
                some(first, last)
            finally:
                places.append(place)

        self._each(1, work, range(0, count, few), len(places))
        return views(), good

    def _photos(self, images: list[Image], size: int) -> Photos:
        """Room of so many bytes for the images, whose places are yet to be said."""
        scale = torch.tensor([image.scale for image in images]) if self.scaled else None
        sizes = torch.tensor([image.decoded for image in images])
        return Photos(torch.from_numpy(self._buffer(size)), torch.zeros(len(images), dtype=torch.int64), sizes, scale)

    def _decode(self, image: Image, out: np.ndarray) -> bool:
        """Whether the image is what was expected; else `out`, flat, holds anything."""
        out = out.reshape(*image.decoded, 3)
        good = self._decode_one(image, out)
        if good and self.cache is not None and not image.is_cached:
            self.cache.put(image.number, out)
        return good

    def _decode_one(self, image: Image, out: np.ndarray) -> bool:
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


def _as_bytes(recipe: Views) -> Views:
    """What is cut for bytes: the views with a crop of their own, cut and mirrored only, as 255 x + 0.5, which casting
    rounds to nearest."""
    low, one = -0.5 / 255, 1 / 255
    plain = tuple(View(v.name, v.size, v.crop) for v in recipe if v.parent is None)
    return Views(plain, mean=(low, low, low), std=(one, one, one))


def _joined(pieces: list[Piece]) -> Piece:
    views = {name: torch.cat([piece.views[name] for piece in pieces]) for name in pieces[0].views}
    params = {name: ViewParams.cat([piece.params[name] for piece in pieces]) for name in pieces[0].params}
    return Piece(views, params, torch.cat([piece.used for piece in pieces]))


def _side_by_side(images: list[np.ndarray]) -> Photos:
    """(H, W, 3) uint8 each, in one buffer."""
    sizes = torch.tensor([image.shape[:2] for image in images])
    cost = 3 * sizes.prod(dim=1)
    buffer = torch.from_numpy(np.concatenate([image.reshape(-1) for image in images]))
    return Photos(buffer, cost.cumsum(0) - cost, sizes)
