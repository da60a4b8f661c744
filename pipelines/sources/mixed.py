"""Several data sets as one, of any kinds together: `--data A B:2` shows each image of B twice an epoch, under other
views."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from saccade.base.errors import UserError
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.index import Index
from saccade.pipelines.sources.labels import share_classes
from saccade.pipelines.sources.own import is_own
from saccade.pipelines.sources.source import Reader, Source

PLUS = " + "  # between the parts, in a run's record
_WEIGHT = re.compile(r"^(.+):(\d+(?:\.\d+)?)$", re.DOTALL)
_MOST = 1000.0


def parts_of(data: str) -> list[tuple[str, float]]:
    """(data, weight) of each part of A + B:2; [] for what is no mixture."""
    if Path(data).expanduser().exists() or data.startswith("pipe:"):
        return []
    parts = [_weighted(part) for part in data.split(PLUS)]
    return parts if len(parts) > 1 or parts[0][1] != 1 else []


def _weighted(part: str) -> tuple[str, float]:
    written = _WEIGHT.match(part)
    if not written or Path(part).expanduser().exists() or "://" in part or is_own(part):
        return part, 1.0
    weight = float(written[2])
    if not 0 < weight <= _MOST:
        raise UserError(f"--data {part}: a weight is above 0 and up to {_MOST:g}.")
    return written[1], weight


class MixedReader(Reader):
    """Asks the reader of the part that an image lies in."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = list(parts)
        ranges = {str(part.reader.value_range): part.reader.value_range for part in parts}
        if len(ranges) > 1:
            raise UserError(
                f"{parts[0].name} and the others have deep images of several ranges ({', '.join(ranges)}); give "
                f"one with "
                "--value-range LOW,HIGH."
            )
        self.value_range = next(iter(ranges.values()))
        self.channels = parts[0].channels

    @property
    def gives_files(self) -> bool:
        return all(part.reader.gives_files for part in self.parts)

    def _at(self, index: Index, i: int) -> tuple[Source, int]:
        return self.parts[int(index.columns["part"][i])], int(index.columns["row"][i])

    def encoded(self, index: Index, i: int) -> bytes:
        part, row = self._at(index, i)
        return part.reader.encoded(part.index, row)

    def pixels(self, index: Index, i: int) -> np.ndarray:
        part, row = self._at(index, i)
        return part.read(row)

    def stored(self, index: Index, i: int) -> bytes | np.ndarray:
        part, row = self._at(index, i)
        return part.stored(row)

    def size(self, index: Index, i: int) -> tuple[int, int]:
        part, row = self._at(index, i)
        return part.size(row)

    def lies_in(self, index: Index, i: int) -> str | Path | None:
        part, row = self._at(index, i)
        return part.reader.lies_in(part.index, row)

    def name(self, index: Index, i: int) -> str:
        part, row = self._at(index, i)
        return f"{part.name}: {part.name_of(row)}"

    def key(self, index: Index, i: int) -> str:
        part, row = self._at(index, i)
        return f"{int(index.columns['part'][i])}/{part.key_of(row)}"

    def close(self) -> None:
        for part in self.parts:
            part.close()


def mixed(sources: Sequence[Source], weights: Sequence[float]) -> Source:
    """The sources behind each other, each image as often as its weight says, a fraction of a weight for a hashed share.

    It is a longer source, so an epoch's order, its split over processes and its restart obey the one law.
    """
    account = Account()
    for source in sources:
        account.add(source.account)
    parts = _of_one_list(sources, account)
    rows = [_repeated(len(part), weight) for part, weight in zip(parts, weights, strict=True)]
    part = np.repeat(np.arange(len(parts)), [len(r) for r in rows])
    labels = [p.labels[r] if p.labels is not None else np.full(len(r), -1) for p, r in zip(parts, rows, strict=True)]
    together = np.concatenate(labels)
    classes = next((p.classes for p in parts if p.classes), None)
    index = Index(
        len(part),
        together if (together >= 0).any() else None,
        classes,
        columns={"part": part, "row": np.concatenate(rows)},
        account=account,
    )
    return Source(PLUS.join(source.name for source in sources), index, MixedReader(parts), "mixed")


def _of_one_list(sources: Sequence[Source], account: Account) -> list[Source]:
    """The sources under one list of classes, by the classes' names."""
    numbered = [source for source in sources if source.labels is not None]
    unnamed = [source for source in numbered if not source.classes]
    if unnamed and len(unnamed) < len(numbered):
        raise UserError(
            f"{unnamed[0].name} has labels without names beside sets whose classes have names; give --labels none, or "
            "convert it with class names."
        )
    if len(unnamed) > 1:
        account.guess("the labels of all sets are taken for the same numbers; --labels none drops them")
    return list(share_classes({str(k): source for k, source in enumerate(sources)}).values())


def _repeated(count: int, weight: float) -> np.ndarray:
    """(round(weight * count),) rows: each whole times, and a share of them once more."""
    whole, share = int(weight), weight - int(weight)
    more = np.random.default_rng(0).permutation(count)[: round(share * count)]
    return np.concatenate([np.tile(np.arange(count), whole), np.sort(more)]).astype(np.int64)
