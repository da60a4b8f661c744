"""`--cache`: what was decoded once is kept as raw pixels at full size, in memory or on a disk, and read from there in
later epochs and runs. The pixels are those that were decoded, to the bit.

On a disk: one file of pixels, made as long as its limit without taking the room, and one of where each image lies, 32
bytes an image, both mapped and shared by the processes of the machine. A row has the size and time of the file that the
image came from and a checksum of its pixels, which a process compares before it first takes them: what has changed
since, or a kill or a crash left half written, is decoded again.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import shutil
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from saccade.base.errors import UserError
from saccade.base.files import megabytes
from saccade.base.machine import available_memory
from saccade.base.mapped import mapped, unwritable
from saccade.base.processes import local_processes
from saccade.pipelines.render import Photos
from saccade.pipelines.sources import BadImage, Source
from saccade.pipelines.sources.fingerprint import spread

_HEAD = np.dtype([("format", "<i8"), ("images", "<i8"), ("taken", "<i8")])
_ROW = np.dtype(  # place: from 1; 0 is none
    [("place", "<i8"), ("height", "<i4"), ("width", "<i4"), ("sum", "<u8"), ("stamp", "<u8")]
)
_FORMAT, _EXTENT = 2, 64 << 20  # _EXTENT: bytes of the file that a process takes at once for what it will write
_MOST_SIDE = 1 << 24


class Cache:
    """Images by number, (H, W, 3) uint8 of any sizes, in one buffer; read and written by many threads. fills: bytes of
    memory that it will take, about."""

    fills = 0.0

    def __init__(self, count: int, limit: int, where: str) -> None:
        self.limit, self.where = limit, where
        self._rows = np.zeros(count, _ROW)
        self._known = np.zeros(count, bool)  # written or compared by this process
        self._next, self._end, self._full, self._lock = 0, limit, False, threading.Lock()
        self._buffer = np.frombuffer(_memory(limit), np.uint8) if limit else np.empty(0, np.uint8)

    def pixels(self, number: int) -> np.ndarray | None:
        """(H, W, 3) uint8, not to be written to; None where the image is not here."""
        place, height, width, expected, stamp = self._rows[number].tolist()
        if not place:
            return None
        end = place - 1 + 3 * height * width
        if not (0 < height < _MOST_SIDE and 0 < width < _MOST_SIDE and 0 < place <= end <= len(self._buffer)):
            return None
        found = self._buffer[place - 1 : end]
        if not self._known[number]:
            if stamp != self._stamp(number) or zlib.crc32(found.data) != expected:
                return None
            self._known[number] = True
        return found.reshape(height, width, 3)

    def photos(self, numbers: np.ndarray) -> Photos | None:
        """The images where they lie, without a copy; None unless all are here."""
        if not self._known[numbers].all():
            return None
        rows = self._rows[numbers]
        sizes = np.stack([rows["height"], rows["width"]], axis=1).astype(np.int64)
        return Photos(self._flat, torch.from_numpy(rows["place"] - 1), torch.from_numpy(sizes))

    def put(self, number: int, pixels: np.ndarray) -> None:
        """Keep an image, if there is room; a cache that is full, or whose disk is, says so once."""
        if self._full or self.pixels(number) is not None:  # full, or another process was first
            return
        flat = np.ascontiguousarray(pixels).reshape(-1)
        try:
            place = self._reserve(len(flat))
            if place is None:
                return self._say_full("is full")
            self._write(place, flat)
        except OSError as error:
            return self._say_full(f"cannot be written ({error.strerror})")
        row = self._rows[number : number + 1]
        row["height"], row["width"], row["sum"], row["stamp"] = *pixels.shape[:2], self._sum(flat), self._stamp(number)
        row["place"] = place + 1
        self._known[number] = True

    def __len__(self) -> int:
        return int((self._rows["place"] > 0).sum())

    @property
    def _flat(self) -> Tensor:
        return torch.from_numpy(self._buffer)

    def _write(self, place: int, flat: np.ndarray) -> None:
        self._buffer[place : place + len(flat)] = flat

    def _sum(self, flat: np.ndarray) -> int:
        return 0  # what this process wrote into its memory is known

    def _stamp(self, number: int) -> int:
        return 0

    def _reserve(self, size: int) -> int | None:
        with self._lock:
            if self._end - self._next < size:
                extent = self._extent(max(size, _EXTENT))
                if extent is None:
                    return None
                self._next, self._end = extent
            place, self._next = self._next, self._next + size
            return place

    def _extent(self, size: int) -> tuple[int, int] | None:
        """More room, begin and end; None where there is none."""
        return None

    def _say_full(self, why: str) -> None:
        with self._lock:
            said, self._full = self._full, True
        if not said:
            held = f"{len(self):,} of {len(self._rows):,} images are in it, the others are decoded in every epoch"
            print(f"note: the cache {self.where} {why}: {held}", file=sys.stderr, flush=True)


def _memory(size: int) -> mmap.mmap:
    """Bytes whose pages are taken when they are written; numpy asks for huge ones, which take five times as long."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class DiskCache(Cache):
    """The same in files that outlive the process, named after the data's fingerprint. stamp: of the file that an image
    lies in, another one when that has changed."""

    def __init__(
        self, folder: Path, key: str, count: int, limit: int, stamp: Callable[[int], int] = lambda number: 0
    ) -> None:
        super().__init__(count, 0, str(folder))
        self._stamp_of = stamp
        data, table = folder / f"saccade-{key}.pixels", folder / f"saccade-{key}.rows"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in (table, data):
                file.touch()
            self._table, self._data = (open(file, "r+b", buffering=0) for file in (table, data))  # noqa: SIM115
            self.limit = limit
            with _locked(self._table):
                if not os.path.getsize(table):
                    self._table.write(np.array([(_FORMAT, count, 0)], _HEAD).tobytes())
                os.truncate(table, _HEAD.itemsize + count * _ROW.itemsize)
                os.truncate(data, max(limit, os.path.getsize(data)))
            self._head = np.memmap(table, _HEAD, "r+", 0, 1)
            self._rows = np.memmap(table, _ROW, "r+", _HEAD.itemsize, count).view(np.ndarray)
            self._buffer = mapped(data)
        except OSError as error:
            raise UserError(f"--cache disk:{folder}: cannot be used ({error.strerror}).") from error
        if (int(self._head["format"][0]), int(self._head["images"][0])) != (_FORMAT, count):
            raise UserError(f"--cache disk:{folder}: {table.name} is no table of this data; remove it.")

    def _sum(self, flat: np.ndarray) -> int:
        return zlib.crc32(flat.data)

    def _stamp(self, number: int) -> int:
        return self._stamp_of(number)

    def _write(self, place: int, flat: np.ndarray) -> None:
        left = flat.data
        while len(left):
            written = os.pwrite(self._data.fileno(), left, place)
            left, place = left[written:], place + written

    def _extent(self, size: int) -> tuple[int, int] | None:
        with _locked(self._table):
            begin = int(self._head["taken"][0])
            if begin + size > self.limit:
                return None
            self._head["taken"] = begin + size
        return begin, begin + size

    @property
    def _flat(self) -> Tensor:
        return unwritable(self._buffer)


@contextmanager
def _locked(file: IO) -> Iterator[None]:
    """Alone among the processes, where the file system has locks; where it has none, the checksums find what two
    wrote to one place."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


# --- what a user asks for -------------------------------------------------------------------------------------------


def open_cache(asked: str, gigabytes: float | None, source: Source, images: dict[str, Any]) -> tuple[Cache, str]:
    """The cache that --cache asks for, and what to say of it. images: the fingerprint of the source.

    UserError where it asks for what is not there.
    """
    kind, _, place = asked.partition(":")
    if kind not in ("ram", "disk") or (kind == "disk") != bool(place.strip()):
        raise UserError(f"--cache {asked}: give ram, or disk:FOLDER.")
    whole, folder = _decoded_size(source), Path(place).expanduser()
    free = available_memory() / local_processes() if kind == "ram" else _free(folder, asked)
    limit = min(free / 2, 4 * whole + _EXTENT) if gigabytes is None else gigabytes * 1e9
    if gigabytes is not None and not 0 < limit <= free:
        raise UserError(f"--cache-limit {gigabytes:g}: give gigabytes, at most the {free / 1e9:.1f} that are free.")
    told = f"at most {megabytes(limit)}, all {len(source):,} would take about {megabytes(whole)}"
    if kind == "ram":
        cache = Cache(len(source), int(limit), "in memory")
        cache.fills = float(min(whole, limit))
        return cache, f"cached in memory: {told}"
    cache = DiskCache(folder, _key(source, images), len(source), int(limit), partial(_stamp, source))
    return cache, f"cached in {folder}, where {len(cache):,} are: {told}"


def _stamp(source: Source, number: int) -> int:
    """Of the size and time of the file that an image lies in; 0 where it lies in none."""
    place = source.reader.lies_in(source.index, number)
    try:
        stat = os.stat(place) if place is not None else None
    except OSError:
        return 0
    return 0 if stat is None else zlib.crc32(f"{stat.st_size} {stat.st_mtime_ns}".encode())


def _key(source: Source, images: dict[str, Any]) -> str:
    """Of everything that the pixels follow from."""
    decoders = {name: metadata.version(name) for name in ("pillow", "simplejpeg")}
    known = [images, len(source), source.channels, str(source.reader.value_range), decoders, _FORMAT]
    return sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def _decoded_size(source: Source) -> int:
    """Bytes of all images decoded, about."""
    found = []
    for i in spread(len(source), 64):
        with suppress(BadImage):  # met again, and counted, when it is read
            found.append(3 * int(np.prod(source.size(i))))
    return int(len(source) * np.mean(found)) if found else 0


def _free(folder: Path, asked: str) -> int:
    """Bytes free on the disk, with what the folder's caches hold."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = sum(file.stat().st_blocks * 512 for file in folder.glob("saccade-*.pixels"))
        return shutil.disk_usage(folder).free + held
    except OSError as error:
        raise UserError(f"--cache {asked}: cannot be used ({error.strerror}).") from error
