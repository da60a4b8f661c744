"""What a scan of a folder had listed when it was killed: kept as it goes on, for the next one to go on from there."""

from __future__ import annotations

import json
import os
import time
import zlib
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from saccade.base.caches import cache_folder
from saccade.base.files import lock

AFTER, EVERY = 10.0, 1.0  # seconds: a scan that ends sooner keeps nothing; between two writes
_DAMAGE = OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError


class Entry:
    """An entry of a folder as it was listed; links are looked at anew."""

    __slots__ = ("kind", "name", "path")

    def __init__(self, folder: str, name: str, kind: str) -> None:
        self.name, self.path, self.kind = name, os.path.join(folder, name), kind

    def is_dir(self) -> bool:
        return os.path.isdir(self.path) if self.kind == "?" else self.kind == "d"

    def is_file(self) -> bool:
        return os.path.isfile(self.path) if self.kind == "?" else self.kind == "f"

    def is_symlink(self) -> bool:
        return self.kind == "?" and os.path.islink(self.path)


def _kind(entry: os.DirEntry | Entry) -> str:
    return "?" if entry.is_symlink() else "d" if entry.is_dir() else "f" if entry.is_file() else "?"


class Unfinished:
    """The listings of one scan: lines of JSON, of each folder its name, times and sum, then its entries. One process
    keeps them; others of the same time keep nothing."""

    def __init__(self, folder: str) -> None:
        name = sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:24]
        self._root, self._place = folder, cache_folder() / "index" / f"{name}.listing"
        self._began = self._written = time.monotonic()
        self._where: dict[str, tuple[list[int], int, int, int]] = {}  # folder -> times, sum, offset, bytes
        self._file = _opened(self._place) if self._place.exists() else None
        if self._file is not None:
            self._file.truncate(self._read(self._file))

    def find(self, folder: str, times: list[int]) -> list[Entry] | None:
        """The folder's entries, if it was listed with these times. Many threads may ask."""
        then, checksum, offset, size = self._where.get(folder[len(self._root) :], ([], 0, 0, 0))
        if self._file is None or then != times:
            return None
        try:
            data = os.pread(self._file.fileno(), size, offset)
            if zlib.crc32(data) != checksum:
                return None
            names, kinds = json.loads(data)
            return [Entry(folder, name, kind) for name, kind in zip(names, kinds, strict=True)]
        except _DAMAGE:
            return None

    def keep(self, folder: str, times: list[int], entries: list[os.DirEntry] | list[Entry]) -> None:
        """Add a folder that was listed, from `AFTER` seconds on."""
        now = time.monotonic()
        if now < self._began + AFTER or self._where.get(folder[len(self._root) :], ([],))[0] == times:
            return
        self._file = self._file or _opened(self._place)
        if self._file is None:
            self._began = float("inf")  # another process keeps them, or nobody may write there
            return
        data = json.dumps([[entry.name for entry in entries], "".join(map(_kind, entries))]).encode()
        head = json.dumps([folder[len(self._root) :], times, zlib.crc32(data), len(data)]).encode()
        try:
            self._file.write(head + b"\n" + data + b"\n")
            if now > self._written + EVERY:
                self._file.flush()
                self._written = now
        except OSError:
            self._began = float("inf")

    def end(self) -> None:
        """All is listed."""
        if self._file is not None:
            with suppress(OSError):
                self._place.unlink(missing_ok=True)
                self._file.close()

    def _read(self, file: BinaryIO) -> int:
        """Find what was kept; where it ends."""
        end, size = 0, os.fstat(file.fileno()).st_size
        file.seek(0)
        try:
            while head := file.readline():
                folder, times, checksum, length = json.loads(head)
                offset = file.tell()
                if offset + length + 1 > size:
                    break
                self._where[folder] = list(times), int(checksum), offset, int(length)
                end = file.seek(offset + length + 1)
        except _DAMAGE:
            pass
        return end


def _opened(place: Path) -> BinaryIO | None:
    file = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        file = open(place, "a+b")  # noqa: SIM115  # as long as the scan
        lock(file, patience=0)
        return file
    except OSError:
        if file is not None:
            file.close()
        return None
