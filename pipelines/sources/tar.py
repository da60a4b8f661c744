"""What lies in a plain tar, from its headers alone: a compiled walk over the mapped file. What the walk does not know
(sparse files, odd numbers, damage) is left to the standard library's `tarfile`, whose meaning it has everywhere."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saccade.base.mapped import mapped
from saccade.pipelines.kernels_cpu import cached, compiled
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.index import Names

_MEMBERS, _TEXT = 1 << 16, 8 << 20  # found in one call of the walk: how many, bytes of their names
_BLOCK = tarfile.BLOCKSIZE
_MORE, _ENDED, _ODD = 0, 1, 2
_NOTHING, _GOOD, _BAD = 0, 1, 2
_LEFT = {1: "links and devices in the tar", 2: "sparse files in the tar (pack them with tar without --sparse)"}


@dataclass(frozen=True)
class Members:
    """The files in a tar, (M,) each: their names, and where their bytes lie. cut: it ends in the middle."""

    names: Names
    offset: np.ndarray
    length: np.ndarray
    cut: bool = False


def members_of(shard: Path, account: Account) -> Members:
    """Every file in the tar, the last of which may be cut off; the rest is accounted. Raises OSError, TarError."""
    walked = _walked(mapped(shard)) if shard.stat().st_size else None
    names, offset, length, kind, cut = walked or _by_tarfile(shard)
    for number, reason in _LEFT.items():
        if len(others := np.flatnonzero(kind == number)):
            account.see(len(others))
            account.leave(reason, names[int(others[0])], len(others))
    if kind.any():
        files = np.flatnonzero(kind == 0)
        names, offset, length = names.take(files), offset[files], length[files]
    return Members(names, offset, length, cut)


_Found = tuple[Names, np.ndarray, np.ndarray, np.ndarray, bool]  # names, offset, length, kind (0: a file), cut


def _by_tarfile(shard: Path) -> _Found:
    names, rows, cut, end = [], [], False, 0
    with tarfile.open(shard, "r:") as tar:
        try:
            for member in tar:
                end = max(end, member.offset_data + (member.size if member.isfile() else 0))
                if member.issparse():
                    end = tar.offset  # of what follows it: less lies there than it is long
                if not member.isdir():
                    names.append(member.name)
                    kind = 2 if member.issparse() else 0 if member.isfile() else 1
                    rows.append((member.offset_data, member.size, kind))
        except tarfile.ReadError:  # "unexpected end of data"
            cut = True
    offset, length, kind = np.array(rows, np.int64).reshape(-1, 3).T
    return Names.of(names), offset, length, kind, cut or not _ends(mapped(shard), end)


def _walked(data: np.ndarray) -> _Found | None:
    """The same by the compiled walk; None for a tar with something that it does not know."""
    at, state, found = 0, _MORE, []
    while state == _MORE:
        text, ends = np.empty(_TEXT, np.uint8), np.empty(_MEMBERS, np.int64)
        offset, length, kind = np.empty((3, _MEMBERS), np.int64)
        at, count, state = walk(data, at, text, ends, offset, length, kind)
        if state == _ODD:
            return None
        used = int(ends[count - 1]) if count else 0
        found.append(
            (Names(text[:used].copy(), ends[:count].copy()), *(c[:count].copy() for c in (offset, length, kind)))
        )
    names, offset, length, kind = zip(*found, strict=True)
    joined = np.concatenate
    return Names.joined(names), joined(offset), joined(length), joined(kind), not _ends(data, at)


def _ends(data: np.ndarray, end: int) -> bool:
    """Whether a block of zeros, the mark of a tar's end, follows the last file's `end`."""
    end = -(-end // _BLOCK) * _BLOCK
    return end + _BLOCK <= len(data) and not data[end : end + _BLOCK].any()


# --- the walk --------------------------------------------------------------------------------------------------------


@compiled
def _number(data, start, length):
    """A number as a header has it, octal digits or base 256; -1 for anything odd."""
    if data[start] == 0x80:
        value = 0
        for k in range(start + 1, start + length):
            if value >> 53:
                return -1
            value = (value << 8) + data[k]
        return value
    value, begun, over = 0, False, False
    for k in range(start, start + length):
        c = data[k]
        if c == 0:
            break
        if c == 32:
            over = begun
        elif over or c < 48 or c > 55:
            return -1
        else:
            value, begun = value * 8 + (c - 48), True
    return value


@compiled
def _length(data, start, stop):
    """Bytes before the first NUL."""
    k = start
    while k < stop and data[k] != 0:
        k += 1
    return k - start


@compiled
def _header(data, at):
    """Whether the block is a header: nothing but zeros, good, or bad."""
    total, any_bit = 0, 0
    for k in range(at, at + 512):
        total += data[k]
        any_bit |= data[k]
    if any_bit == 0:
        return _NOTHING
    for k in range(at + 148, at + 156):
        total -= data[k]
    if _number(data, at + 148, 8) != total + 256:
        return _BAD
    for start, length in ((100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (329, 8), (337, 8)):
        if _number(data, at + start, length) < 0:
            return _BAD
    return _GOOD


@compiled
def _is(data, start, stop, word):
    if stop - start < len(word):
        return False
    same = True
    for k in range(len(word)):
        same &= data[start + k] == word[k]
    return same


_PATH, _SIZE, _SPARSE, _CHARSET = (
    np.frombuffer(w, np.uint8) for w in (b"path=", b"size=", b"GNU.sparse", b"hdrcharset")
)


@compiled
def _records(data, at, stop):
    """(state, start and length of the path, size) of a pax header's records "LENGTH KEY=VALUE"; -1 for none."""
    path, path_length, size = -1, 0, -1
    while at < stop:
        length, k = 0, at
        while k < stop and k - at < 10 and 48 <= data[k] <= 57:
            length, k = length * 10 + (data[k] - 48), k + 1
        if k in (at, stop) or data[k] != 32:
            break  # the rest is no record
        key = value = k + 1
        while value < stop and data[value] != 61:
            value += 1
        if value in (stop, key):
            break
        value, end = value + 1, at + length
        if end > stop or value >= end or _is(data, key, value, _SPARSE) or _is(data, key, value, _CHARSET):
            return _BAD, path, path_length, size
        if value - key == len(_PATH) and _is(data, key, value, _PATH):
            path, path_length = value, end - 1 - value
            while path_length and data[path + path_length - 1] == 47:
                path_length -= 1
        elif value - key == len(_SIZE) and _is(data, key, value, _SIZE):
            size = 0
            for j in range(value, end - 1):
                if not 48 <= data[j] <= 57 or size >> 58:
                    return _BAD, path, path_length, size
                size = size * 10 + (data[j] - 48)
        at = end
    return _GOOD, path, path_length, size


@cached
def walk(data, at, text, ends, offset, length, kind):
    """(where it stopped, members found, state) from the header at `at`, until the end or until the arrays are full.
    Folders are no members; kind: 0 of a file, 1 of a link or device."""
    count, used, total = 0, 0, len(data)
    while count < len(ends):
        begun, name, name_length, size = at, -1, 0, -1
        while True:  # headers that tell of the next one
            if at + 512 > total:
                return at, count, _ODD if begun == 0 or at != begun else _ENDED
            state = _header(data, at)
            if state != _GOOD:
                return at, count, _ENDED if state == _NOTHING and at == begun else _ODD
            told, what = _number(data, at + 124, 12), data[at + 156]
            if what not in (75, 76, 88, 103, 120):  # K and L of GNU; X, g and x of pax
                break
            body = at + 512
            at = body + (told + 511) // 512 * 512
            if at > total:
                return begun, count, _ODD
            if what == 76:
                if name >= 0:
                    return begun, count, _ODD
                name, name_length = body, _length(data, body, at)
            elif what != 75:
                state, path, path_length, new = _records(data, body, at)
                known = path >= 0 or new >= 0
                if state != _GOOD or (known and what == 103) or (path >= 0 and name >= 0) or (new >= 0 and size >= 0):
                    return begun, count, _ODD
                if path >= 0:
                    name, name_length = path, path_length
                size = new if new >= 0 else size
        if what == 83:  # a sparse file
            return begun, count, _ODD
        own, body = _length(data, at, at + 100), at + 512
        size = told if size < 0 else size
        file = what == 0 or what == 48 or what == 55
        bare = not file and 49 <= what <= 54  # no data follow
        next_at = body if bare else body + (size + 511) // 512 * 512
        folder = what == 53 or (what == 0 and own > 0 and data[at + own - 1] == 47)
        if folder:
            at = body
            continue
        prefix = _length(data, at + 345, at + 500) if name < 0 else 0
        needed = name_length if name >= 0 else prefix + 1 + own
        if used + needed > len(text):
            return begun, count, _ODD if used == 0 else _MORE
        if name < 0:
            name, name_length = at, own
            for k in range(prefix):
                text[used + k] = data[at + 345 + k]
            if prefix:
                text[used + prefix] = 47
                used += prefix + 1
        for k in range(name_length):
            text[used + k] = data[name + k]
        used += name_length
        ends[count], offset[count], length[count], kind[count] = used, body, size, 0 if file else 1
        count += 1
        at = next_at
    return at, count, _MORE
