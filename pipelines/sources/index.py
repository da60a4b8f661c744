"""The index of a source: what there is, one row an image, as columns. How the bytes come is the reader's part."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from saccade.base.mapped import lying, received, sent
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.texts import Pieces, distinct, extension_starts, gathered

AT_ONCE = 1 << 16  # names


class Names:
    """Many names as one array of bytes: no Python object a name. Any bytes a file's name may have come back as they
    were."""

    def __init__(self, text: np.ndarray, ends: np.ndarray, rows: np.ndarray | None = None) -> None:
        """rows: which of the names, in which order (None: all); they are laid out when all are asked for."""
        self._parts = text, ends, rows

    def __getstate__(self) -> dict[str, Any]:
        text, ends, rows = self._parts
        far = lying(text), lying(ends)
        return {"_parts": (*far, rows) if all(far) else self._laid()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        text, ends, rows = state["_parts"]
        self._parts = received(text), received(ends), rows

    def _laid(self) -> tuple[np.ndarray, np.ndarray, None]:
        text, ends, rows = self._parts
        if rows is not None:
            text, ends = gathered(text, np.where(rows > 0, ends[rows - 1], 0), ends[rows])
            self._parts = text, ends, None  # at once: threads read it
        return text, ends, None

    @property
    def text(self) -> np.ndarray:
        return self._laid()[0]

    @property
    def ends(self) -> np.ndarray:
        return self._laid()[1]

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        names, laid = iter(names), NamesWriter()
        while some := list(islice(names, AT_ONCE)):
            laid.add(some)
        return laid.done()

    def __len__(self) -> int:
        _, ends, rows = self._parts
        return len(ends if rows is None else rows)

    def __getitem__(self, i: int) -> str:
        text, ends, rows = self._parts
        i = i if rows is None else int(rows[i])
        return os.fsdecode(text[int(ends[i - 1]) if i else 0 : int(ends[i])].tobytes())

    def checksum(self) -> int:
        """CRC-32 of all names in their order."""
        return zlib.crc32(
            np.ascontiguousarray(self.ends, np.int64).data, zlib.crc32(np.ascontiguousarray(self.text).data)
        )

    @classmethod
    def joined(cls, parts: Sequence[Names]) -> Names:
        """All names behind each other."""
        before = np.cumsum([0, *(len(part.text) for part in parts)])
        ends = [part.ends.astype(np.int64) + start for part, start in zip(parts, before, strict=False)]
        return cls(np.concatenate([part.text for part in parts]), np.concatenate(ends))

    @property
    def pieces(self) -> Pieces:
        return Pieces(self.text, self.starts, self.ends)

    @property
    def starts(self) -> np.ndarray:
        return np.concatenate([np.zeros(min(1, len(self.ends)), np.int64), self.ends[:-1]])

    def end_in(self, extensions: Collection[str]) -> np.ndarray:
        """(N,) bool, whether a name's extension, as os.path.splitext has it but in lower case, is one of these."""
        dots = extension_starts(self.text, self.ends)
        which, met = distinct(self.text, dots, self.ends)
        found = [os.fsdecode(self.text[dots[k] : self.ends[k]].tobytes()).lower() in extensions for k in met.tolist()]
        return np.array(found, np.bool_)[which]

    def take(self, rows: np.ndarray) -> Names:
        text, ends, mine = self._parts
        return Names(text, ends, rows if mine is None else mine[rows])


class NamesWriter:
    """Names laid behind each other as they come, some thousands at a time: what lies is not copied once more."""

    def __init__(self) -> None:
        self._text, self._ends = np.empty(0, np.uint8), np.empty(0, np.int64)
        self._bytes = self._count = 0

    def add(self, names: Sequence[str]) -> None:
        if not names:
            return
        text = np.frombuffer(os.fsencode("\0".join(names)), np.uint8)
        ends = np.append(np.flatnonzero(text == 0), len(text))
        if len(ends) == len(names):
            text, ends = text[text != 0], ends - np.arange(len(ends))
        else:  # a name with a NUL, which no file has
            encoded = [os.fsencode(name) for name in names]
            text, ends = np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([len(e) for e in encoded])
        self._text = _grown(self._text, self._bytes + len(text))
        self._ends = _grown(self._ends, self._count + len(ends))
        self._text[self._bytes : self._bytes + len(text)] = text
        self._ends[self._count : self._count + len(ends)] = ends + self._bytes
        self._bytes, self._count = self._bytes + len(text), self._count + len(ends)

    def done(self) -> Names:
        self._text.resize(self._bytes, refcheck=False)
        self._ends.resize(self._count, refcheck=False)
        return Names(self._text, self._ends)


def _grown(array: np.ndarray, length: int) -> np.ndarray:
    """With room for so many, where it lay: the system moves pages, not bytes."""
    if length > len(array):
        array.resize(max(length, len(array) + len(array) // 4), refcheck=False)
    return array


class Taken(Mapping[str, np.ndarray]):
    """Rows of columns, each taken when it is asked for: a part of a part copies nothing in between."""

    def __init__(self, columns: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
        self._columns, self._rows, self._found = columns, rows, {}

    def __getstate__(self) -> dict[str, Any]:
        far = {name: lying(column) for name, column in self._columns.items()}
        if all(far.values()):
            return {"_columns": far, "_rows": self._rows, "_found": {}}
        found = dict(self)
        return {"_columns": found, "_rows": np.arange(len(self._rows)), "_found": found}

    def __setstate__(self, state: dict[str, Any]) -> None:
        columns = {name: received(column) for name, column in state["_columns"].items()}
        self.__dict__.update(state, _columns=columns)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._found:
            self._found[name] = self._columns[name][self._rows]
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def take(self, rows: np.ndarray) -> Taken:
        return Taken(self._columns, self._rows[rows])


@dataclass(frozen=True)
class Index:
    """length: images; labels: (N,) int64, -1 where an image has none, or None; classes: names by label or None.

    names: of the images, or none at all where the reader numbers them; columns: (N, ...) arrays that tell the
    reader where an image lies, such as container (which file), offset and bytes; account: what was seen and left out;
    facts: plain values that are looked for once in a whole set, and kept with it.
    """

    length: int
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    names: Names = field(default_factory=lambda: Names.of(()))
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    account: Account = field(default_factory=Account)
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        labels: Sequence[int] | np.ndarray | None = None,
        classes: Sequence[str] | None = None,
        account: Account | None = None,
        **columns: np.ndarray,
    ) -> Index:
        """An index of named images, all of them taken."""
        account = account or Account()
        account.taken = len(names)
        labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        return cls(len(names), labels, tuple(classes) if classes else None, Names.of(names), columns, account)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: what lies in a mapped file is mapped there too, and copied nowhere."""
        columns = self.columns
        if not isinstance(columns, Taken):
            columns = {name: sent(column) for name, column in columns.items()}
        return vars(self) | {"labels": None if self.labels is None else sent(self.labels), "columns": columns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        labels, columns = state["labels"], state["columns"]
        if not isinstance(columns, Taken):
            columns = {name: received(column) for name, column in columns.items()}
        self.__dict__.update(state, labels=None if labels is None else received(labels), columns=columns)

    def take(self, rows: np.ndarray) -> Index:
        """The index of these rows, in this order."""
        return replace(
            self,
            length=len(rows),
            labels=None if self.labels is None else self.labels[rows],
            names=self.names.take(rows) if len(self.names) else self.names,
            columns=self.columns.take(rows) if isinstance(self.columns, Taken) else Taken(self.columns, rows),
            account=Account(len(rows), len(rows), guesses=list(self.account.guesses)),
            facts={},
        )

    def fact(self, name: str) -> Any:
        """One of FACTS, looked for where it is not known yet."""
        if name not in self.facts:
            self.facts[name] = FACTS[name](self)
        return self.facts[name]


def _places(index: Index) -> int:
    checksum = 0
    for name in _TOLD:
        if name in index.columns:
            checksum = zlib.crc32(np.ascontiguousarray(index.columns[name], np.int64).data, checksum)
    return checksum


def _may_be_deep(index: Index) -> list[int]:
    rows = np.flatnonzero(index.names.end_in(_DEEP_TYPES))
    return rows[np.unique(np.linspace(0, len(rows) - 1, _PROBED).astype(int))].tolist() if len(rows) else []


_TOLD = ("part", "row", "bytes", "size")  # columns that say which images, and how large; not where they lie
_PROBED = 64  # images
_DEEP_TYPES = {".png", ".tif", ".tiff", ".jp2", ".j2k", ".pgm", ".pfm", ".fits", ".fit", ".img", ""}
FACTS: dict[str, Callable[[Index], Any]] = {
    "names": lambda index: index.names.checksum(),
    "places": _places,  # a checksum
    "deep": _may_be_deep,  # some images, evenly spread, whose names allow more than 8 bits
}
