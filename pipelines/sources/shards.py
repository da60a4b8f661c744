"""WebDataset shards as a source with random access: an index of where each image lies, then one read per image.

Shards are plain tars; a sample is the members that follow each other under one key (`members`); `shard_index` finds
them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from saccade.base.errors import UserError
from saccade.base.machine import available_cpus
from saccade.base.text import printable
from saccade.pipelines.header import jpeg_header
from saccade.pipelines.kernels_cpu import cached
from saccade.pipelines.manifest import manifest_of
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.decode import BadImage
from saccade.pipelines.sources.index import Index, Names
from saccade.pipelines.sources.kept import kept_index, state_of
from saccade.pipelines.sources.labels import mixed_kinds, numbered
from saccade.pipelines.sources.options import NO_LABELS, PLAIN, Options
from saccade.pipelines.sources.shard_index import Shard, index_of
from saccade.pipelines.sources.source import Reader, Source
from saccade.pipelines.sources.texts import distinct

_OPEN_FILES = 128  # shards kept open at a time
_AT_ONCE, _PATIENCE = 4, 30.0  # shards whose headers are read together at least; seconds between two lines


class ShardReader(Reader):
    """Reads members at their place, a bounded number of shards open."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._opened: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {**vars(self), "_opened": OrderedDict(), "_lock": None}  # a worker process opens the shards itself

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def encoded(self, index: Index, i: int) -> bytes:
        shard, offset, length = (int(index.columns[name][i]) for name in ("container", "offset", "bytes"))
        try:
            with self._lock:
                descriptor = os.dup(self._descriptor(shard))
            try:
                data = os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BadImage(f"{type(error).__name__}: {error.strerror}") from error
        if len(data) != length:
            raise BadImage(_CUT)
        return data

    def lies_in(self, index: Index, i: int) -> Path:
        return self.files[int(index.columns["container"][i])]

    def size(self, index: Index, i: int) -> tuple[int, int]:
        header = jpeg_header(self.encoded(index, i))
        return (header.height, header.width) if header else super().size(index, i)

    def name(self, index: Index, i: int) -> str:
        return f"{self.files[int(index.columns['container'][i])].name}/{index.names[i]}"

    def close(self) -> None:
        with self._lock:
            while self._opened:
                os.close(self._opened.popitem()[1])

    def __del__(self) -> None:
        if getattr(self, "_opened", None):
            self.close()

    def _descriptor(self, shard: int) -> int:
        if shard not in self._opened:
            while len(self._opened) >= _OPEN_FILES:
                os.close(self._opened.popitem(last=False)[1])
            self._opened[shard] = os.open(self.files[shard], os.O_RDONLY)
        self._opened.move_to_end(shard)
        return self._opened[shard]


class ShardSource(Source):
    """The images of `shards`, in the order of the shards and of their members.

    An image cut off by the shard's end is bad from the start; where only the shard knew what followed, the shard
    itself is listed.
    """

    def __init__(self, shards: Sequence[Path], name: str | None = None, options: Options = PLAIN) -> None:
        files = list(shards)
        name = name or (str(files[0]) if len(files) == 1 else f"{files[0]} ... {files[-1].name}")
        manifest, bad = manifest_of(files[0]), {}
        classes = manifest.classes if manifest else None
        called = {"shards": [os.path.realpath(file) for file in files], "options": options.meaning, "classes": classes}

        def make() -> tuple[Index, object]:
            before = state_of(files)
            index, found = _read(files, name, options, classes)
            bad.update(found)
            return index, None if bad else before

        super().__init__(
            name,
            kept_index(called, lambda kept: kept == state_of(files), make, options.recheck),
            ShardReader(files),
            "wds",
        )
        if bad:
            self.report_bad(bad)


def _read(
    files: Sequence[Path], name: str, options: Options, classes: Sequence[str] | None
) -> tuple[Index, dict[str, str]]:
    """The index of all shards, and the images and shards that are cut off."""
    account, bad = Account(), {}
    opened = _opened(files, options)
    for file, shard in zip(files, opened, strict=True):
        account.add(shard.account)
        if shard.cut:
            bad[file.name] = f"the tar is cut short after {len(shard)} images"
            account.damaged.append(f"{file}: is cut short after {len(shard)} images; copy it again.")
        beyond = np.flatnonzero(shard.offset.astype(np.int64) + shard.length > file.stat().st_size)
        bad |= {f"{file.name}/{shard.names[k]}": _CUT for k in beyond.tolist()}
    if not any(map(len, opened)):
        held = f"; it holds {printable(', '.join(account.left_out))}" if account.left_out else ""
        raise UserError(
            f"{name}: no sample with an image; members are named KEY.jpg (or .png, .webp ...) and KEY.cls{held}."
        )
    labels, classes = _numbered(opened, classes, options, account)
    columns = {
        "container": np.repeat(np.arange(len(opened)), list(map(len, opened))),
        "offset": np.concatenate([shard.offset for shard in opened]).astype(np.int64),
        "bytes": np.concatenate([shard.length for shard in opened]).astype(np.int64),
    }
    names = Names.joined([shard.names for shard in opened])
    return Index(len(names), labels, classes, names, columns, account), bad


def _opened(files: Sequence[Path], options: Options) -> list[Shard]:
    """What each shard holds; several are read at a time, for disks far away and for all cores."""
    found, started = [], time.monotonic()
    with ThreadPoolExecutor(max(_AT_ONCE, available_cpus()), "headers") as pool:
        for shard in pool.map(lambda file: index_of(file, options), files):
            found.append(shard)
            if time.monotonic() > started + _PATIENCE:
                started = time.monotonic()
                told = f"reading the headers of the shards: {len(found):,} of {len(files):,}; what is found is kept"
                print(told, file=sys.stderr, flush=True)
    return found


_CUT = "the tar is cut short"


def _numbered(
    shards: Sequence[Shard], classes: Sequence[str] | None, options: Options, account: Account
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Labels of the members, else the folders that hold the images."""
    if options.labels == NO_LABELS or options.table:
        return None, None
    told = [(shard.label, shard.texts) for shard in shards]
    plain = any((shard.label >= 0).any() for shard in shards)
    if not plain and (folders := [_folders(shard.names) for shard in shards]) and None not in folders:
        told = [folder for folder in folders if folder is not None]
    texts = list(dict.fromkeys(text for _, own in told for text in own))
    if plain and (mixed := mixed_kinds(texts)):
        account.guess(mixed)
    some = next(shard for shard in shards if len(shard))
    numbers, classes = numbered(texts, f"{some.names[0]} and the others", classes, plain)
    if numbers is None:
        return None, classes
    place = {text: int(number) for text, number in zip(texts, numbers, strict=True)}
    return np.concatenate([np.array([*(place[text] for text in own), -1])[which] for which, own in told]), classes


def _folders(names: Names) -> tuple[np.ndarray, list[str]] | None:
    """(N,) which folder each image lies in, and the folders; None where one lies in none."""
    slash, before = _slashes(names.text, names.ends)
    if (slash < 0).any():
        return None
    which, met = distinct(names.text, before, slash)
    return which, [os.fsdecode(names.text[before[k] : slash[k]].tobytes()) for k in met.tolist()]


@cached
def _slashes(text, ends):
    """(N,) twice, where a name's last slash is (-1: nowhere), and behind which place the folder before it begins."""
    slash, before = np.full(len(ends), -1, np.int64), np.zeros(len(ends), np.int64)
    start = 0
    for k in range(len(ends)):
        for j in range(ends[k] - 1, start - 1, -1):
            if text[j] == 47:
                slash[k] = j
                break
        before[k] = start
        for j in range(slash[k] - 1, start - 1, -1):
            if text[j] == 47:
                before[k] = j + 1
                break
        start = ends[k]
    return slash, before
