"""Many pieces of bytes in one array, compared and copied without a Python object for any of them."""

from __future__ import annotations

import numpy as np

from saccade.pipelines.kernels_cpu import cached

_SEED, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # FNV-1a


def distinct(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64, which of the different pieces data[starts[k]:stops[k]] is, numbered as they are met; (K,) int64,
    where each of them was met first."""
    return _distinct(data, starts.astype(np.int64), stops.astype(np.int64))


def gathered(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pieces behind each other, (bytes,) uint8, and where each ends, (N,) int64."""
    ends = np.cumsum(stops - starts, dtype=np.int64)
    out = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    _copy(data, starts.astype(np.int64), ends, out)
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
