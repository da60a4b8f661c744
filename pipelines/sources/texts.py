"""Many pieces of bytes in one array, compared and copied without a Python object for any of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from saccade.pipelines.kernels_cpu import cached, compiled

_SEED, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # FNV-1a
_LOWER = np.array([k + 32 if 65 <= k <= 90 else k for k in range(256)], np.uint8)


@dataclass(frozen=True)
class Pieces:
    """data[starts[k]:stops[k]] for each k: (bytes,) uint8 and (N,) of whole numbers twice. Pieces may overlap."""

    data: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, k: int) -> str:
        return os.fsdecode(self.data[self.starts[k] : self.stops[k]].tobytes())

    def take(self, rows: np.ndarray) -> Pieces:
        return Pieces(self.data, self.starts[rows], self.stops[rows])

    def begin_with(self, prefix: bytes) -> np.ndarray:
        """(N,) bool."""
        return _begins(self.data, self.starts, self.stops, np.frombuffer(prefix, np.uint8))

    def lowered(self) -> Pieces:
        """In lower case, as str.lower has it."""
        data, ends = gathered(self.data, self.starts, self.stops)
        starts = np.append(0, ends)[:-1]
        if data.max(initial=0) < 128:
            return Pieces(_LOWER[data], starts, ends)
        parts = (os.fsencode(self[k].lower()) for k in range(len(self)))
        data, lengths = bytearray(), np.zeros(len(self), np.int64)
        for k, part in enumerate(parts):
            data += part
            lengths[k] = len(part)
        ends = np.cumsum(lengths)
        return Pieces(np.frombuffer(data, np.uint8), ends - lengths, ends)


class Lookup:
    """Where among known pieces others lie."""

    def __init__(self, known: Pieces) -> None:
        size = 1 << max(10, int(2 * len(known) - 1).bit_length())
        self._known, self._table = _plain(known), np.full(size, -1, np.int32 if len(known) < 1 << 31 else np.int64)
        _fill(self._table, *self._known)

    def find(self, pieces: Pieces) -> np.ndarray:
        """(n,) int64, which of the known pieces each is, of equal ones the last; -1 for none."""
        return _find(self._table, *self._known, *_plain(pieces))


def _plain(pieces: Pieces) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As one type of arrays, so that one function is compiled."""
    data = pieces.data.view()
    data.flags.writeable = False
    return data, pieces.starts.astype(np.int64, copy=False), pieces.stops.astype(np.int64, copy=False)


def distinct(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64, which of the different pieces data[starts[k]:stops[k]] is, numbered as they are met; (K,) int64,
    where each of them was met first."""
    return _distinct(data, starts.astype(np.int64, copy=False), stops.astype(np.int64, copy=False))


def gathered(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pieces behind each other, (bytes,) uint8, and where each ends, (N,) int64."""
    ends = np.cumsum(stops - starts, dtype=np.int64)
    out = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    _copy(data, starts.astype(np.int64, copy=False), ends, out)
    return out, ends


@cached
def extension_starts(text, ends):
    """(N,) int64, where each name's extension begins, at its dot; where the name ends if it has none."""
    dots = np.empty(len(ends), np.int64)
    start = 0
    for k in range(len(ends)):
        end = np.int64(ends[k])
        base, dot = end, end
        while base > start and text[base - 1] != 47:
            base -= 1
            if dot == end and text[base] == 46:
                dot = base
        while base < dot and text[base] == 46:
            base += 1  # dots in front begin no extension
        dots[k] = dot if base < dot else end
        start = end
    return dots


@cached
def base_starts(text, ends):
    """(N,) int64, where each name begins behind its last slash."""
    bases = np.empty(len(ends), np.int64)
    start = 0
    for k in range(len(ends)):
        base = np.int64(ends[k])
        while base > start and text[base - 1] != 47:
            base -= 1
        bases[k] = base
        start = ends[k]
    return bases


@cached
def next_slash(text, starts, ends):
    """(N,) int64, where each piece's first slash lies; -1 for one without."""
    found = np.full(len(starts), -1, np.int64)
    for k in range(len(starts)):
        for j in range(starts[k], ends[k]):
            if text[j] == 47:
                found[k] = j
                break
    return found


@cached
def _begins(data, starts, stops, prefix):
    found = np.zeros(len(starts), np.bool_)
    for k in range(len(starts)):
        same = stops[k] - starts[k] >= len(prefix)
        for j in range(len(prefix)):
            if not same:
                break
            same = data[starts[k] + j] == prefix[j]
        found[k] = same
    return found


@cached
def _copy(data, starts, ends, out):
    at = 0
    for k in range(len(starts)):
        start = starts[k] - at
        for j in range(at, ends[k]):
            out[j] = data[start + j]
        at = ends[k]


@cached
def _distinct(data, starts, stops):
    count, size, found = len(starts), 1024, 0
    which, firsts = np.empty(count, np.int64), np.empty(16, np.int64)
    hashes, table = np.empty(16, np.uint64), np.full(size, -1, np.int64)
    for k in range(count):
        start, length = starts[k], stops[k] - starts[k]
        h = _SEED
        for j in range(length):
            h = (h ^ np.uint64(data[start + j])) * _PRIME
        h ^= h >> np.uint64(29)
        place = np.int64(h & np.uint64(size - 1))
        while True:
            known = table[place]
            if known < 0:
                break
            first = starts[firsts[known]]
            if hashes[known] == h and stops[firsts[known]] - first == length:
                same = True
                for j in range(length):
                    if data[first + j] != data[start + j]:
                        same = False
                        break
                if same:
                    break
            place = (place + 1) & (size - 1)
        if known < 0:
            known = found
            if found == len(firsts):
                more, seen = np.empty(2 * found, np.int64), np.empty(2 * found, np.uint64)
                more[:found], seen[:found] = firsts, hashes
                firsts, hashes = more, seen
            firsts[found], hashes[found], table[place] = k, h, found
            found += 1
            if 2 * found > size:
                size *= 2
                table = np.full(size, -1, np.int64)
                for n in range(found):
                    place = np.int64(hashes[n] & np.uint64(size - 1))
                    while table[place] >= 0:
                        place = (place + 1) & (size - 1)
                    table[place] = n
        which[k] = known
    return which, firsts[:found]


@compiled
def _slot(table, known, starts, stops, data, start, stop):
    """The place in the table of what equals data[start:stop], or the free one where it would be."""
    h = _SEED
    for j in range(start, stop):
        h = (h ^ np.uint64(data[j])) * _PRIME
    h ^= h >> np.uint64(29)
    last = len(table) - 1
    place = np.int64(h & np.uint64(last))
    while table[place] >= 0:
        k = table[place]
        same = stops[k] - starts[k] == stop - start
        if same:
            for j in range(stop - start):
                if known[starts[k] + j] != data[start + j]:
                    same = False
                    break
        if same:
            break
        place = (place + 1) & last
    return place


@cached
def _fill(table, known, starts, stops):
    for k in range(len(starts)):
        table[_slot(table, known, starts, stops, known, starts[k], stops[k])] = k


@cached
def _find(table, known, starts, stops, data, begins, ends):
    found = np.empty(len(begins), np.int64)
    for k in range(len(begins)):
        found[k] = table[_slot(table, known, starts, stops, data, begins[k], ends[k])]
    return found
