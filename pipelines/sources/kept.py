"""An index kept as columns in one file of the cache and mapped when the set is opened again: no object for an image, no
copy for a process. A safetensors file; what it was made from is in its metadata."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save

from saccade.base.caches import cache_folder
from saccade.base.files import swept, whole_file
from saccade.base.mapped import mapped
from saccade.pipelines.sources.account import account_of
from saccade.pipelines.sources.index import Index, Names

MANY = 20_000  # images: fewer are found again as fast as they are looked up
_FORMAT = 1
_TYPES = {"I64": np.int64, "U8": np.uint8}


def kept_index(called: dict[str, Any], same: Callable[[Any], bool], make: Callable[[], tuple[Index, Any]]) -> Index:
    """The index kept for what is `called` so, where what it was made from is the `same`; else what `make` gives.

    make: the index and what tells later whether it still holds, None where it must not be kept; plain values.
    """
    name = json.dumps({"format": _FORMAT, **called}, sort_keys=True)
    place = cache_folder() / "index" / f"{sha256(os.fsencode(name)).hexdigest()[:24]}.safetensors"
    if (kept := _load(place, name, same)) is not None:
        return kept
    index, made_from = make()
    if made_from is None or index.length < MANY or not _save(place, index, {"called": name, "state": made_from}):
        return index
    return _load(place, name, lambda _: True) or index


def _save(place: Path, index: Index, about: dict[str, Any]) -> bool:
    columns = {f"column.{name}": column for name, column in index.columns.items()}
    columns |= {"names.text": index.names.text, "names.ends": index.names.ends}
    if index.labels is not None:
        columns["labels"] = index.labels
    about |= {"length": index.length, "classes": index.classes, "account": asdict(index.account)}
    about["sums"] = {name: _sum(column) for name, column in columns.items()}
    text = json.dumps(about)
    told = {"about": text, "sum": str(zlib.crc32(text.encode()))}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        swept(place.parent, older=3600)
        with whole_file(place) as file:
            file.write(save({name: np.ascontiguousarray(c) for name, c in columns.items()}, told))
        return True
    except (OSError, SafetensorError):  # a read-only place: the next process looks at everything again
        return False


def _load(place: Path, name: str, same: Callable[[Any], bool]) -> Index | None:
    try:
        whole = mapped(place)
        first = 8 + int(whole[:8].view("<u8")[0])
        header = json.loads(whole[8:first].tobytes())
        told = header.pop("__metadata__")
        about = json.loads(told["about"])
        if (
            zlib.crc32(told["about"].encode()) != int(told["sum"])
            or about["called"] != name
            or not same(about["state"])
        ):
            return None
        columns = {}
        for called, column in header.items():
            start, end = column["data_offsets"]
            columns[called] = whole[first + start : first + end].view(_TYPES[column["dtype"]]).reshape(column["shape"])
        if {name: _sum(column) for name, column in columns.items()} != about["sums"]:
            return None
        labels, text, ends = columns.pop("labels", None), columns.pop("names.text"), columns.pop("names.ends")
        columns = {called.removeprefix("column."): column for called, column in columns.items()}
        classes = about["classes"] and tuple(about["classes"])
        return Index(about["length"], labels, classes, Names(text, ends), columns, account_of(about["account"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
        return None  # none there, cut short, or not one of ours


def _sum(column: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(column).reshape(-1).view(np.uint8).data)
