"""WebDataset shards as a source with random access: an index of where each image lies, then one read per image.

Shards are plain tars; a sample is the members that share a name up to the first dot (KEY.jpg, KEY.cls, KEY.json). The
index of a shard is made once from its headers, or from the .idx file beside it, and kept.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from saccade.base.caches import cache_folder
from saccade.base.errors import UserError
from saccade.pipelines.header import jpeg_header
from saccade.pipelines.manifest import manifest_of
from saccade.pipelines.sources import EXTENSIONS, BadImage, Source, check_largest, decode, image_size

_OPEN_FILES = 128  # shards kept open at a time
_FORMAT = 1  # of the kept index


@dataclass(frozen=True)
class Member:
    """An image in a shard: its name, where its bytes lie, and the text of its label."""

    name: str
    offset: int
    length: int
    label: str | None


class ShardSource(Source):
    """The images of `shards`, in the order of the shards and of their members.

    shard: (N,) int64, the shard each image lies in. An image cut off by the shard's end is bad from the start; where
    only the shard knew what followed, the shard itself is listed.
    """

    def __init__(self, shards: Sequence[Path], name: str | None = None) -> None:
        super().__init__()
        self.files = list(shards)
        self.name = name or (
            str(self.files[0]) if len(self.files) == 1 else f"{self.files[0]} ... {self.files[-1].name}"
        )
        members, bad = [], {}
        for file in self.files:
            found, cut = index_of(file)
            members.append(found)
            if cut:
                bad[file.name] = f"the tar is cut short after {len(found)} images"
            end = file.stat().st_size
            bad |= {f"{file.name}/{m.name}": _CUT for m in found if m.offset + m.length > end}
        self._members = [member for found in members for member in found]
        if not self._members:
            raise UserError(
                f"{self.name}: no sample with an image; members are named KEY.jpg (or .png, .webp ...) and KEY.cls."
            )
        self.shard = np.repeat(np.arange(len(members)), [len(found) for found in members])
        manifest = manifest_of(self.files[0])
        self.labels, self.classes = _numbered(self._members, manifest.classes if manifest else None)
        self._opened: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()
        if bad:
            self.report_bad(bad)

    def __len__(self) -> int:
        return len(self._members)

    def __getstate__(self) -> dict:
        return {**vars(self), "_opened": OrderedDict(), "_lock": None}  # a worker process opens the shards itself

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def encoded(self, i: int) -> bytes:
        member, shard = self._members[i], int(self.shard[i])
        try:
            with self._lock:
                descriptor = os.dup(self._descriptor(shard))
            try:
                data = os.pread(descriptor, member.length, member.offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BadImage(f"{type(error).__name__}: {error.strerror}") from error
        if len(data) != member.length:
            raise BadImage(_CUT)
        return data

    def read(self, i: int) -> np.ndarray:
        return decode(io.BytesIO(self.encoded(i)))

    def size(self, i: int) -> tuple[int, int]:
        data = self.encoded(i)
        header = jpeg_header(data)
        return (header.height, header.width) if header else image_size(io.BytesIO(data))

    def name_of(self, i: int) -> str:
        return f"{self.files[self.shard[i]].name}/{self._members[i].name}"

    def close(self) -> None:
        """Close the shards; they open again when read."""
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


_CUT = "the tar is cut short"


def index_of(shard: Path) -> tuple[list[Member], bool]:
    """The images of a shard, and whether it ends in the middle; from the kept index if the shard has not changed."""
    try:
        stat = shard.stat()
        key = {"format": _FORMAT, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        for place in _places(shard):
            kept = _load_index(place, key)
            if kept is not None:
                return kept
        found = _scan(shard)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{shard}: cannot be read as a plain tar ({getattr(error, 'strerror', None) or error}); unpack "
            "compressed tars, copy damaged ones again."
        ) from error
    _keep_index(shard, key, *found)
    return found


def _places(shard: Path) -> tuple[Path, Path]:
    """Where a shard's index may be: beside it, or in the cache where that cannot be written."""
    name = sha256(str(shard.resolve()).encode()).hexdigest()[:24]
    return shard.with_name(shard.name + ".index.json"), cache_folder() / "index" / f"{name}.json"


def _load_index(place: Path, key: dict[str, int]) -> tuple[list[Member], bool] | None:
    try:
        content = json.loads(place.read_text())
        if {name: content[name] for name in key} != key:
            return None
        return [Member(str(n), int(o), int(s), label) for n, o, s, label in content["members"]], bool(content["cut"])
    except (OSError, ValueError, TypeError, KeyError):
        return None  # none there, or not one of ours


def _keep_index(shard: Path, key: dict[str, int], members: list[Member], cut: bool) -> None:
    content = {**key, "cut": cut, "members": [[m.name, m.offset, m.length, m.label] for m in members]}
    for place in _places(shard):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.parent.stat().st_mode & 0o222:
                continue  # marked read-only, which would not stop root
            partial = place.with_name(f"{place.name}.{os.getpid()}")
            partial.write_text(json.dumps(content))
            partial.replace(place)
            return
        except OSError:
            continue  # a read-only place; without any, the next run scans again


def _scan(shard: Path) -> tuple[list[Member], bool]:
    samples: dict[str, dict[str, tuple[str, int, int]]] = {}  # key -> extension -> name, offset, length
    members, cut = _listed(shard) or _headers(shard)
    for name, offset, length in members:
        folder, slash, base = name.rpartition("/")
        key, _, extension = base.partition(".")
        samples.setdefault(folder + slash + key, {})[extension.lower()] = (name, offset, length)
    found = []
    with open(shard, "rb") as file:
        for files in samples.values():
            image = next((f for e, f in files.items() if f".{e.rpartition('.')[2]}" in EXTENSIONS), None)
            if image is not None:
                found.append(Member(image[0].removeprefix("./"), image[1], image[2], _label(file, files)))
    return found, cut


def _headers(shard: Path) -> tuple[list[tuple[str, int, int]], bool]:
    """(name, offset, length) of every file in the tar, the last of which may be cut off."""
    members, cut = [], False
    with tarfile.open(shard, "r:") as tar:
        try:
            for member in tar:
                if member.isfile():
                    members.append((member.name, member.offset_data, member.size))
        except tarfile.ReadError:  # "unexpected end of data"
            cut = True
    return members, cut or not _ends(shard, max((offset + length for _, offset, length in members), default=0))


def _ends(shard: Path, end: int) -> bool:
    """Whether a block of zeros, the mark of a tar's end, follows the last file's `end`."""
    with open(shard, "rb") as file:
        file.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _listed(shard: Path) -> tuple[list[tuple[str, int, int]], bool] | None:
    """The same from an .idx file (DALI's wds2idx and ours: "v1.2 N", then `extension offset bytes name` a file)."""
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
                (name, int(offset), int(size))
                for offset, size, name in zip(words[1::4], words[2::4], words[3::4], strict=True)
            ]
        return members, False
    except (OSError, ValueError, IndexError):
        return None


def _label(file: io.BufferedReader, files: dict[str, tuple[str, int, int]]) -> str | None:
    """The text of KEY.cls, or `label`, `cls` or `class` of KEY.json."""
    for extension in ("cls", "json"):
        if extension in files:
            _, offset, length = files[extension]
            file.seek(offset)
            text = file.read(min(length, 1 << 20)).decode("utf-8", "replace").strip()
            if extension == "cls":
                return text or None
            try:
                content = json.loads(text)
                return next((str(content[k]) for k in ("label", "cls", "class") if content.get(k) is not None), None)
            except (ValueError, AttributeError):
                return None
    return None


def _numbered(members: list[Member], classes: list[str] | None) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Labels that are numbers as they are, names numbered in sorted order, else the folders that hold the images.

    An image without a label among labelled ones gets -1.
    """
    labels = [member.label for member in members]
    if all(label is None for label in labels) and all("/" in member.name for member in members):
        labels = [member.name.split("/")[-2] for member in members]
    known = {label for label in labels if label is not None}
    if not known:
        return None, None
    if all(label.isdecimal() for label in known):
        check_largest(max(map(int, known)), f"{members[0].name} and the others")
        numbers = np.array([-1 if label is None else int(label) for label in labels], dtype=np.int64)
        return numbers, tuple(classes) if classes and numbers.max() < len(classes) else None
    number = {name: k for k, name in enumerate(classes if classes and known <= set(classes) else sorted(known))}
    return np.array([-1 if label is None else number[label] for label in labels], dtype=np.int64), tuple(number)
