"""The index of one shard: which images a tar holds, where their bytes lie and what their labels are. Made once from its
headers, or from the .idx file beside it, and kept."""

from __future__ import annotations

import os
import tarfile
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from saccade.base.caches import cache_folder
from saccade.base.errors import UserError
from saccade.base.mapped import mapped
from saccade.pipelines.sources.account import Account, account_of
from saccade.pipelines.sources.decode import extensions
from saccade.pipelines.sources.index import Names
from saccade.pipelines.sources.kept import DAMAGE, load_columns, narrow, save_columns
from saccade.pipelines.sources.members import EACH, MAYBE_LABELS, LabelPlace, grouped, label_place, picture
from saccade.pipelines.sources.options import PLAIN, Options
from saccade.pipelines.sources.tar import Members, members_of
from saccade.pipelines.sources.texts import distinct, gathered

_LABEL_BYTES = 1 << 20  # of a member that are read for a label


@dataclass
class Shard:
    """The images of one shard: their names, and (N,) columns of where the bytes lie and which of `texts` is the label,
    -1 for none. cut: whether the shard ends in the middle; account: what else is in it."""

    names: Names
    offset: np.ndarray
    length: np.ndarray
    label: np.ndarray
    texts: list[str]
    cut: bool
    account: Account = field(default_factory=Account)

    def __len__(self) -> int:
        return len(self.names)


def index_of(shard: Path, options: Options = PLAIN) -> Shard:
    """What a shard holds; from the kept index if the shard has not changed."""
    image_key, label_key = options.image_key, options.label_key
    try:
        stat = shard.stat()
        key = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "keys": [image_key, label_key]}
        for place in () if options.recheck else _places(shard):
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
    return shard.with_name(shard.name + ".index"), cache_folder() / "index" / f"{name}.index"


def _load_index(place: Path, key: dict[str, Any]) -> Shard | None:
    try:
        found = load_columns(place, lambda about: about["key"] == key)
        if found is None:
            return None
        columns, about = found
        offset, length, label = (columns[name] for name in ("offset", "length", "label"))
        names, texts = Names(columns["text"], columns["ends"]), [str(text) for text in about["texts"]]
        return Shard(names, offset, length, label, texts, bool(about["cut"]), account_of(about["account"]))
    except DAMAGE:
        return None  # not one of ours


def _keep_index(shard: Path, key: dict[str, Any], found: Shard) -> None:
    columns = {"text": found.names.text, "ends": narrow(found.names.ends), "label": narrow(found.label)}
    columns |= {"offset": narrow(found.offset), "length": narrow(found.length)}
    about = {"key": key, "texts": found.texts, "cut": found.cut, "account": asdict(found.account)}
    for place in _places(shard):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.parent.stat().st_mode & 0o222:
                continue  # marked read-only, which would not stop root
            save_columns(place, columns, about)
            return
        except OSError:
            continue  # a read-only place; without any, the next run scans again


def _scan(shard: Path, image_key: str | None = None, label_key: str | None = None) -> Shard:
    account = Account()
    members = _listed(shard) or members_of(shard, account)
    account.see(len(members.names))
    samples = grouped(members.names, account, image_key == EACH)
    data = mapped(shard)
    image, label = np.full((2, len(samples.first)), -1, np.int64)
    texts: dict[str, int] = {}
    for rows in samples.of_shape():
        first = int(rows[0])
        endings = samples.endings_of(first)
        places = samples.rows[samples.first[rows][:, None] + np.arange(len(endings))]  # (samples, endings): members
        called = dict(zip(endings, places.T, strict=True))
        key = samples.key_of(members.names, first)
        chosen = picture(endings, key, str(shard), image_key)
        if chosen is None:
            _leave(called, members.names, account, "in samples without an image")
            continue
        image[rows] = called.pop(chosen)
        if (place := label_place(list(called), label_key)) is not None:
            told = called.pop(place.ending)
            label[rows] = found = _texts(data, members, told, place, texts)
            account.use("labels", len(rows) if place.sure else int((found >= 0).sum()))
            if not place.sure:
                called[place.ending] = told[found < 0]
        _leave(called, members.names, account, "beside the images")
    taken = np.flatnonzero(image >= 0)
    image, label = image[taken], label[taken]
    account.taken = len(image)
    names = _without_dot(members.names, image)
    return Shard(names, members.offset[image], members.length[image], label, list(texts), members.cut, account)


def _texts(
    data: np.ndarray, members: Members, told: np.ndarray, place: LabelPlace, texts: dict[str, int]
) -> np.ndarray:
    """(S,) int64, which of `texts`, which grow, each of the members tells; -1 for none."""
    starts = np.minimum(members.offset[told], len(data))
    stops = np.minimum(starts + np.minimum(members.length[told], _LABEL_BYTES), len(data))
    which, met = distinct(data, starts, stops)
    meant = [place.text(data[starts[k] : stops[k]].tobytes()) for k in met.tolist()]
    return np.array([-1 if text is None else texts.setdefault(text, len(texts)) for text in meant], np.int64)[which]


def _without_dot(names: Names, rows: np.ndarray) -> Names:
    """The names of these members without the "./" that tars of a folder have in front."""
    starts, stops = names.starts[rows], names.ends[rows]
    text, dotted = names.text, stops - starts > 1
    dotted[dotted] = (text[starts[dotted]] == ord(".")) & (text[starts[dotted] + 1] == ord("/"))
    return Names(*gathered(text, starts + 2 * dotted, stops))


def _leave(called: dict[str, np.ndarray], names: Names, account: Account, where: str) -> None:
    for ending, rows in called.items():
        way = f"--label-key {ending} takes them for labels" if ending in ("txt", "text") else ""
        if ending.rpartition(".")[2] in MAYBE_LABELS:
            way = f"--label-key {ending} takes them for labels"
        elif f".{ending.rpartition('.')[2]}" in extensions():
            way = f"--image-key {ending} takes them for the images"
        if len(rows):
            account.leave(f".{ending} {where}", names[int(rows[0])], len(rows), settled_by=way)


def _listed(shard: Path) -> Members | None:
    """The same from an .idx file (DALI's wds2idx and ours: "v1.2 N", then `extension offset bytes name` for each
    file)."""
    idx = shard.with_suffix(".idx")
    try:
        if idx.stat().st_mtime_ns < shard.stat().st_mtime_ns - 10**9:
            return None  # older than the shard
        version, *lines = idx.read_text().splitlines()
        if version.split()[0] != "v1.2" or int(version.split()[1]) != len(lines):
            return None
        names, places = [], []
        for line in lines:
            words = line.split(" ")
            if len(words) % 4:
                return None  # a name with a space
            names += words[3::4]
            places += [_place(int(offset), int(size)) for offset, size in zip(words[1::4], words[2::4], strict=True)]
        offset, length = np.array(places, np.int64).reshape(-1, 2).T
        return Members(Names.of(names), offset, length)
    except (OSError, ValueError, IndexError):
        return None


def _place(offset: int, length: int) -> tuple[int, int]:
    """Where something can lie in a file; ValueError for what is no place."""
    if offset >= 0 and length >= 0 and offset + length < 1 << 62:
        return offset, length
    raise ValueError(f"{offset}, {length}")
