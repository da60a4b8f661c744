"""An index kept as columns in one file and mapped when the set is opened again: no object for an image, no copy for a
process. A safetensors file; what it was made from is in its metadata."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from saccade.base.caches import cache_folder
from saccade.base.files import swept, whole_file
from saccade.base.mapped import mapped
from saccade.pipelines.sources.account import account_of
from saccade.pipelines.sources.index import FACTS, Index, Names

MANY = 20_000  # images: fewer are found again as fast as they are looked up
LARGE = 64 << 20  # bytes: the sums of a larger file are looked at once, and again when it was written to
_FORMAT = 2
_TYPES = {"U8": np.dtype("u1"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}
_WIDE = ("offset", "size")  # columns of int64 that compiled code reads
_CODES = {kind: code for code, kind in _TYPES.items()}
DAMAGE = OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError  # of a foreign file


def kept_index(
    called: dict[str, Any], same: Callable[[Any], bool], make: Callable[[], tuple[Index, Any]], recheck: bool = False
) -> Index:
    """The index kept for what is `called` so, where what it was made from is the `same`; else what `make` gives.

    make: the index and what tells later whether it still holds, None where it must not be kept; plain values.
    recheck: make it anew.
    """
    name = json.dumps(called, sort_keys=True)
    place = cache_folder() / "index" / f"{sha256(os.fsencode(name)).hexdigest()[:24]}.safetensors"
    if not recheck and (kept := _loaded(place, name, same)) is not None:
        return kept
    index, made_from = make()
    if made_from is None or index.length < MANY or not _saved(place, index, {"called": name, "state": made_from}):
        return index
    return _loaded(place, name, lambda _: True) or index


def state_of(files: Sequence[Path]) -> list[list[int]]:
    """What tells that a file is another one: bytes and time. [] where one is not there, as whoever reads it says."""
    try:
        return [[stat.st_size, stat.st_mtime_ns] for stat in map(os.stat, files)]
    except OSError:
        return []


def _saved(place: Path, index: Index, about: dict[str, Any]) -> bool:
    facts = index.facts | {name: index.fact(name) for name in FACTS}
    columns = {f"column.{n}": column if n in _WIDE else narrow(column) for n, column in index.columns.items()}
    columns |= {"names.text": index.names.text, "names.ends": narrow(index.names.ends)}
    if index.labels is not None:
        columns["labels"] = index.labels
    about |= {"length": index.length, "classes": index.classes, "account": asdict(index.account)}
    about["facts"] = facts
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        swept(place.parent, older=3600)
        save_columns(place, columns, about)
        return True
    except OSError:  # a read-only place: the next process looks at everything again
        return False


def _loaded(place: Path, name: str, same: Callable[[Any], bool]) -> Index | None:
    try:
        found = load_columns(place, lambda about: about["called"] == name and same(about["state"]))
        if found is None:
            return None
        columns, about = found
        labels, names = columns.pop("labels", None), Names(columns.pop("names.text"), columns.pop("names.ends"))
        columns = {called.removeprefix("column."): column for called, column in columns.items()}
        classes = about["classes"] and tuple(about["classes"])
        return Index(about["length"], labels, classes, names, columns, account_of(about["account"]), about["facts"])
    except DAMAGE:
        return None  # not one of ours


def narrow(column: np.ndarray) -> np.ndarray:
    """Whole numbers in four bytes where they fit; (N, ...) of int64 or uint8 or bool."""
    if column.dtype != np.int64:
        return column.view(np.uint8) if column.dtype == np.bool_ else column
    fits = not column.size or (column.min() >= -(1 << 31) and column.max() < 1 << 31)
    return column.astype(np.int32) if fits else column


# --- the file --------------------------------------------------------------------------------------------------------


def save_columns(place: Path, columns: Mapping[str, np.ndarray], about: dict[str, Any]) -> None:
    """Write the columns and what is told about them, plain values. Raises OSError."""
    ordered = {name: np.ascontiguousarray(columns[name]) for name in sorted(columns, key=lambda n: _width(columns[n]))}
    text = json.dumps({**about, "format": _FORMAT, "sums": {name: _sum(column) for name, column in ordered.items()}})
    header: dict[str, Any] = {"__metadata__": {"about": text, "sum": str(zlib.crc32(text.encode()))}}
    at = 0
    for name, column in ordered.items():
        places = [at, at := at + column.nbytes]
        header[name] = {"dtype": _CODES[column.dtype], "shape": list(column.shape), "data_offsets": places}
    front = json.dumps(header).encode()
    front += b" " * (-len(front) % 8)
    with whole_file(place) as file:
        file.write(len(front).to_bytes(8, "little") + front)
        for column in ordered.values():
            file.write(column.reshape(-1).view(np.uint8).data)
    _note(place)


def _width(column: np.ndarray) -> int:
    return -column.dtype.itemsize  # wide ones first, so that each lies at a multiple of its own


def load_columns(
    place: Path, wanted: Callable[[dict[str, Any]], bool]
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The columns, mapped, and what is told about them; None where no such file is whole, ours and `wanted`."""
    try:
        whole = mapped(place)
        first = 8 + int(whole[:8].view("<u8")[0])
        header = json.loads(whole[8:first].tobytes())
        told = header.pop("__metadata__")
        about = json.loads(told["about"])
        if zlib.crc32(told["about"].encode()) != int(told["sum"]) or about["format"] != _FORMAT or not wanted(about):
            return None
        columns = {}
        for called, column in header.items():
            start, end = column["data_offsets"]
            columns[called] = whole[first + start : first + end].view(_TYPES[column["dtype"]]).reshape(column["shape"])
        if set(columns) != set(about["sums"]):
            return None
        if len(whole) <= LARGE or not _noted(place):
            if {name: _sum(column) for name, column in columns.items()} != about["sums"]:
                return None
            _note(place)
        return columns, about
    except DAMAGE:
        return None  # none there, cut short, or not one of ours


def _sum(column: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(column).reshape(-1).view(np.uint8).data)


def _note(place: Path) -> None:
    """Remember that a large file's sums were right as it is now."""
    if place.stat().st_size > LARGE:
        with suppress(OSError), whole_file(_beside(place)) as file:
            file.write(_stamp(place))


def _noted(place: Path) -> bool:
    with suppress(OSError):
        return _beside(place).read_bytes() == _stamp(place)
    return False


def _beside(place: Path) -> Path:
    return place.with_suffix(".whole")


def _stamp(place: Path) -> bytes:
    stat = place.stat()
    return repr((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)).encode()
