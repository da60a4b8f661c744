"""WebDataset shards as a source with random access: an index of where each image lies, then one read per image.

Shards are plain tars; a sample is the members that follow each other under one key (`members`). The index of a shard is
made once from its headers, or from the .idx file beside it, and kept.
"""

from __future__ import annotations

import json
import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from saccade.base.caches import cache_folder
from saccade.base.errors import UserError
from saccade.base.files import whole_file
from saccade.base.text import printable
from saccade.pipelines.header import jpeg_header
from saccade.pipelines.manifest import manifest_of
from saccade.pipelines.sources.account import Account, account_of
from saccade.pipelines.sources.decode import BadImage, extensions
from saccade.pipelines.sources.index import Index
from saccade.pipelines.sources.kept import kept_index
from saccade.pipelines.sources.labels import mixed_kinds, numbered
from saccade.pipelines.sources.members import EACH, MAYBE_LABELS, Part, grouped, label, picture
from saccade.pipelines.sources.options import NO_LABELS, PLAIN, Options
from saccade.pipelines.sources.source import Reader, Source

_OPEN_FILES = 128  # shards kept open at a time
_FORMAT = 4  # of the kept index


@dataclass(frozen=True)
class Member:
    """An image in a shard: its name, where its bytes lie, and the text of its label."""

    name: str
    offset: int
    length: int
    label: str | None


@dataclass
class Shard:
    """The images of one shard, whether it ends in the middle, and what else is in it."""

    members: list[Member]
    cut: bool
    account: Account = field(default_factory=Account)


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
        called = {"shards": [os.path.realpath(file) for file in files], "options": repr(options), "classes": classes}

        def make() -> tuple[Index, object]:
            before = _state(files)
            index, found = _read(files, name, options, classes)
            bad.update(found)
            return index, None if bad else before

        super().__init__(name, kept_index(called, lambda kept: kept == _state(files), make), ShardReader(files), "wds")
        if bad:
            self.report_bad(bad)


def _state(files: Sequence[Path]) -> list[list[int]]:
    """What tells that a shard is another one: bytes and time."""
    try:
        return [[stat.st_size, stat.st_mtime_ns] for stat in map(os.stat, files)]
    except OSError:
        return []  # index_of says what is wrong


def _read(
    files: Sequence[Path], name: str, options: Options, classes: Sequence[str] | None
) -> tuple[Index, dict[str, str]]:
    """The index of all shards, and the images and shards that are cut off."""
    account, opened, bad = Account(), [], {}
    for file in files:
        shard = index_of(file, options.image_key, options.label_key)
        opened.append(shard.members)
        account.add(shard.account)
        if shard.cut:
            bad[file.name] = f"the tar is cut short after {len(shard.members)} images"
            account.damaged.append(f"{file}: is cut short after {len(shard.members)} images; copy it again.")
        end = file.stat().st_size
        bad |= {f"{file.name}/{m.name}": _CUT for m in shard.members if m.offset + m.length > end}
    members = [member for found in opened for member in found]
    if not members:
        held = f"; it holds {printable(', '.join(account.left_out))}" if account.left_out else ""
        raise UserError(
            f"{name}: no sample with an image; members are named KEY.jpg (or .png, .webp ...) and KEY.cls{held}."
        )
    labels, classes = _numbered(members, classes, options, account)
    index = Index.of(
        [member.name for member in members],
        labels,
        classes,
        account,
        container=np.repeat(np.arange(len(opened)), [len(found) for found in opened]),
        offset=np.array([member.offset for member in members], dtype=np.int64),
        bytes=np.array([member.length for member in members], dtype=np.int64),
    )
    return index, bad


_CUT = "the tar is cut short"


def index_of(shard: Path, image_key: str | None = None, label_key: str | None = None) -> Shard:
    """What a shard holds; from the kept index if the shard has not changed."""
    try:
        stat = shard.stat()
        key = {"format": _FORMAT, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "keys": [image_key, label_key]}
        for place in _places(shard):
            kept = _load_index(place, key)
            if kept is not None:
                return kept
        found = _scan(shard, image_key, label_key)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{shard}: cannot be read as a plain tar ({getattr(error, 'strerror', None) or error}); unpack "
            "compressed tars, copy damaged ones again."
        ) from error
    _keep_index(shard, key, found)
    return found


def _places(shard: Path) -> tuple[Path, Path]:
    """Where a shard's index may be: beside it, or in the cache where that cannot be written."""
    name = sha256(os.fsencode(shard.resolve())).hexdigest()[:24]
    return shard.with_name(shard.name + ".index.json"), cache_folder() / "index" / f"{name}.json"


def _load_index(place: Path, key: dict) -> Shard | None:
    try:
        content = json.loads(place.read_text())
        if {name: content[name] for name in key} != key or content.pop("sha256") != _checksum(content):
            return None
        members = [Member(str(n), *_place(o, s), _text_or_none(label)) for n, o, s, label in content["members"]]
        return Shard(members, bool(content["cut"]), account_of(content["account"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
        return None  # none there, or not one of ours


def _checksum(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _place(offset: Any, length: Any) -> tuple[int, int]:
    """Where something can lie in a file; ValueError for what is no place."""
    if type(offset) is int and type(length) is int and offset >= 0 and length >= 0 and offset + length < 1 << 62:
        return offset, length
    raise ValueError(f"{offset}, {length}")


def _text_or_none(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is no text")


def _keep_index(shard: Path, key: dict, found: Shard) -> None:
    members = [[m.name, m.offset, m.length, m.label] for m in found.members]
    content = {**key, "cut": found.cut, "account": asdict(found.account), "members": members}
    content["sha256"] = _checksum(content)
    for place in _places(shard):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.parent.stat().st_mode & 0o222:
                continue  # marked read-only, which would not stop root
            with whole_file(place) as file:
                file.write(json.dumps(content).encode())
            return
        except OSError:
            continue  # a read-only place; without any, the next run scans again


def _scan(shard: Path, image_key: str | None = None, label_key: str | None = None) -> Shard:
    account, found = Account(), []
    parts, cut = _listed(shard) or _headers(shard, account)
    account.see(len(parts))
    with open(shard, "rb") as file:

        def text(part: Part) -> str:
            file.seek(part.offset)
            return file.read(min(part.length, 1 << 20)).decode("utf-8", "replace").strip()

        for sample in grouped(parts, account, image_key == EACH):
            ending = picture(sample, str(shard), image_key)
            if ending is None:
                _leave(sample.parts, account, "in samples without an image")
                continue
            image = sample.parts.pop(ending)
            value, source = label(sample, label_key, text)
            if source is not None:
                sample.parts.pop(source)
                account.use("labels")
            _leave(sample.parts, account, "beside the images")
            found.append(Member(image.name.removeprefix("./"), image.offset, image.length, value))
    account.taken = len(found)
    return Shard(found, cut, account)


def _leave(parts: dict[str, Part], account: Account, where: str) -> None:
    for ending, part in parts.items():
        way = f"--label-key {ending} takes them for labels" if ending in ("txt", "text") else ""
        if ending.rpartition(".")[2] in MAYBE_LABELS:
            way = f"--label-key {ending} takes them for labels"
        elif f".{ending.rpartition('.')[2]}" in extensions():
            way = f"--image-key {ending} takes them for the images"
        account.leave(f".{ending} {where}", part.name, settled_by=way)


def _headers(shard: Path, account: Account) -> tuple[list[Part], bool]:
    """Every file in the tar, the last of which may be cut off, and whether the tar ends in the middle."""
    parts, cut, end = [], False, 0
    with tarfile.open(shard, "r:") as tar:
        try:
            for member in tar:
                if member.issparse():
                    end = tar.offset  # of what follows it: less lies there than it is long
                    account.see()
                    account.leave("sparse files in the tar (pack them with tar without --sparse)", member.name)
                    continue
                end = max(end, member.offset_data + (member.size if member.isfile() else 0))
                if member.isfile():
                    parts.append(Part(member.name, member.offset_data, member.size))
                elif not member.isdir():
                    account.see()
                    account.leave("links and devices in the tar", member.name)
        except tarfile.ReadError:  # "unexpected end of data"
            cut = True
    return parts, cut or not _ends(shard, end)


def _ends(shard: Path, end: int) -> bool:
    """Whether a block of zeros, the mark of a tar's end, follows the last file's `end`."""
    with open(shard, "rb") as file:
        file.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _listed(shard: Path) -> tuple[list[Part], bool] | None:
    """The same from an .idx file (DALI's wds2idx and ours: "v1.2 N", then `extension offset bytes name` for each
    file)."""
    idx = shard.with_suffix(".idx")
    try:
        if idx.stat().st_mtime_ns < shard.stat().st_mtime_ns - 10**9:
            return None  # older than the shard
        version, *lines = idx.read_text().splitlines()
        if version.split()[0] != "v1.2" or int(version.split()[1]) != len(lines):
            return None
        members = []
        for line in lines:
            words = line.split(" ")
            if len(words) % 4:
                return None  # a name with a space
            members += [
                Part(name, *_place(int(offset), int(size)))
                for offset, size, name in zip(words[1::4], words[2::4], words[3::4], strict=True)
            ]
        return members, False
    except (OSError, ValueError, IndexError):
        return None


def _numbered(
    members: list[Member], classes: Sequence[str] | None, options: Options, account: Account
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Labels of the members, else the folders that hold the images."""
    if options.labels == NO_LABELS or options.table:
        return None, None
    labels, plain = [member.label for member in members], True
    if all(text is None for text in labels) and all("/" in member.name for member in members):
        labels, plain = [member.name.split("/")[-2] for member in members], False
    elif told := mixed_kinds(labels):
        account.guess(told)
    return numbered(labels, f"{members[0].name} and the others", classes, plain)
