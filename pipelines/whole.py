"""A whole source decoded once into one array, by all cores: what `resident` shows and what evaluations keep."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from saccade.base.errors import UserError
from saccade.base.machine import available_cpus
from saccade.base.processes import local_processes
from saccade.base.progress import progress_bar
from saccade.base.text import duration
from saccade.pipelines.header import jpeg_header
from saccade.pipelines.jpeg import decode_upright
from saccade.pipelines.sources import BadImage, Source
from saccade.pipelines.sources.fingerprint import spread
from saccade.pipelines.sources.source import well_formed
from saccade.pipelines.workers import Workers

_PIECE, _PIECE_BYTES = 256, 2 << 20  # images decoded together, at most; and their pixels
_LOOKED_AT = 64  # headers seen first: another size is told before anything is decoded
_WORTH, _SAID = 1.0, 2.0  # seconds of decoding that starting processes pays for; that are told beforehand

Decoded = tuple[dict[str, Tensor], tuple[Tensor, dict[str, str]]]  # pixels; numbers of those shown, and who was bad


class UnequalSizes(UserError):
    """The images are of different sizes, so they cannot be held as one array."""


def load_images(source: Source, workers: int = 0, shown: bool = False) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) uint8 of a whole source, and (N,) the sample each one shows: unreadable ones are replaced, counted.

    Unequal sizes are an error. workers: who decode, where that takes long; shown: then say how long, with a bar. Beside
    the result no more than a few hundred small images are held, or the array that the source is.
    """
    whole = source.array()
    if whole is not None:
        return torch.from_numpy(whole).permute(0, 3, 1, 2).contiguous(), torch.arange(len(source))
    work, count = _Pieces(source), len(source)
    height, width, channels = work.shape
    images, used = torch.empty(count, channels, height, width, dtype=torch.uint8), torch.empty(count, dtype=torch.int64)
    at_once = max(1, min(_PIECE, _PIECE_BYTES // work.bytes))
    pieces = [(start, min(start + at_once, count)) for start in range(0, count, at_once)]
    started = time.perf_counter()
    first = work(pieces[0])
    seconds = (time.perf_counter() - started) / pieces[0][1] * (count - pieces[0][1])
    workers = _how_many(workers) if seconds > _WORTH else 0
    if shown and (left := seconds / max(1, workers)) > _SAID:
        told = f"decoding {count:,} images once, about {duration(left)}: they are kept in memory"
        tqdm.write(told, file=sys.stderr)
    with progress_bar(None, count, "decoding", "image", shown) as bar:
        for (start, stop), decoded in zip(pieces, _decoded(work, first, pieces[1:], workers, at_once), strict=True):
            pixels, (numbers, bad) = decoded
            for name, reason in bad.items():
                source.report_bad({name: reason})
            images[start:stop], used[start:stop] = pixels["pixels"], numbers
            bar.update(stop - start)
    return images, used


def _how_many(workers: int) -> int:
    """Of so many workers, those that help: the processes of one run share the cores, and a single one is no faster
    than this process."""
    workers = min(workers, available_cpus() // local_processes())
    return workers if workers > 1 and not multiprocessing.current_process().daemon else 0


def _decoded(
    work: _Pieces, first: Decoded, pieces: Sequence[tuple[int, int]], workers: int, at_once: int
) -> Iterator[Decoded]:
    """Of each piece in order. By processes where they can be forked: small images are decoded by Python more than by
    libraries, and threads take turns at that. Elsewhere a process would run the user's script again: there, by threads.
    """
    yield first
    if not workers:
        yield from map(work, pieces)
    elif multiprocessing.get_start_method() == "fork":
        processes = Workers(work, workers, at_once * work.bytes)
        try:
            yield from processes.map(pieces)
        finally:
            processes.close()
    else:
        with ThreadPoolExecutor(workers, "decode") as threads:
            for k in range(0, len(pieces), 4 * workers):  # what is made ahead is bounded
                yield from threads.map(work, pieces[k : k + 4 * workers])


class _Pieces:
    """(start, stop) -> those images, each as large as the first one, or UnequalSizes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.shape = source.read_or_replace(0)[0].shape
        self.bytes = int(np.prod(self.shape))
        for i in spread(len(source), _LOOKED_AT):
            with suppress(BadImage):  # met again, and counted, when it is read
                if source.size(i) != self.shape[:2]:
                    self._check(i, source.read(i).shape[:2])

    def __call__(self, rows: tuple[int, int]) -> Decoded:
        before, count = set(self._source.known_bad), rows[1] - rows[0]
        height, width, channels = self.shape
        images, used = np.empty((count, channels, height, width), np.uint8), np.empty(count, np.int64)
        for k in range(count):
            pixels, used[k] = self._source.first_readable(rows[0] + k, self._pixels)
            self._check(int(used[k]), pixels.shape[:2])
            images[k] = pixels.transpose(2, 0, 1)
        bad = {name: why for name, why in self._source.known_bad.items() if name not in before}
        return {"pixels": torch.from_numpy(images)}, (torch.from_numpy(used), bad)

    def _pixels(self, number: int) -> np.ndarray:
        """As Source.read, an ordinary JPEG by libjpeg-turbo, which gives the same several times faster."""
        source = self._source
        data = source.encoded(number) if source.channels == 3 else None
        if data is None:
            return source.read(number)
        if header := jpeg_header(data):
            pixels = np.empty((header.height, header.width, 3), np.uint8)
            if decode_upright(data, header.orientation, pixels):
                return pixels
        return well_formed(source.decode(data), source.channels)

    def _check(self, number: int, size: tuple[int, ...]) -> None:
        if size != self.shape[:2]:
            name, (height, width) = self._source.name_of, size
            raise UnequalSizes(
                f"--pipeline resident needs images of one size, but {name(number)} is {width}x{height} and {name(0)} "
                f"is {self.shape[1]}x{self.shape[0]}; use --pipeline auto."
            )
