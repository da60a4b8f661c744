"""Which member of a webdataset sample is the picture and which is its label: webdataset's grouping, a documented
preference."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saccade.base.errors import UserError
from saccade.base.text import printable
from saccade.pipelines.kernels_cpu import cached
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.decode import extensions
from saccade.pipelines.sources.index import Names
from saccade.pipelines.sources.texts import distinct

LABEL_ENDINGS = ("cls", "label", "labels", "class", "target", "category")  # in this order
MAYBE_LABELS = ("index", "id", "idx", "y")  # may be a label, may be a number of the sample: not taken unasked
IMAGE_WORDS = ("image", "img", "rgb", "photo", "picture", "input")
JSON_KEYS = ("label", "cls", "class", "target", "category")
EACH = "each"  # --image-key: every image file is a sample of its own


@dataclass(frozen=True)
class Samples:
    """Runs of members under one key, (S,) each: which member is the first, behind which one the last stands, and the
    sample's shape: samples of one shape have the same endings in the same order. rows: (M,) the members that have a
    key and an ending; ending: (M,) int32, of them, a number of `endings`, which are in lower case."""

    first: np.ndarray
    stop: np.ndarray
    shape: np.ndarray
    rows: np.ndarray
    ending: np.ndarray
    endings: list[str]

    def of_shape(self) -> list[np.ndarray]:
        """The samples of each shape, in their order."""
        order = np.argsort(self.shape, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.shape[order])) + 1) if len(order) else []

    def key_of(self, names: Names, sample: int) -> str:
        first = int(self.first[sample])
        folder, slash, base = names[int(self.rows[first])].rpartition("/")
        return folder + slash + base[: len(base) - len(self.endings[self.ending[first]]) - 1]

    def endings_of(self, sample: int) -> list[str]:
        return [self.endings[k] for k in self.ending[self.first[sample] : self.stop[sample]].tolist()]


def grouped(names: Names, account: Account, each: bool = False) -> Samples:
    """webdataset's samples: consecutive members whose names agree up to the first dot of the base name (each: the
    last).

    A member that repeats an ending begins a new sample; webdataset stops there.
    """
    dots = _dots(names.text, names.ends, each)
    rows = np.flatnonzero(dots >= 0)
    if len(rows) < len(dots):
        first = names[int(np.argmin(dots))]
        account.leave("without a key and an ending, or webdataset's own", first, len(dots) - len(rows))
    starts, dots, ends = names.starts[rows], dots[rows], names.ends[rows]
    written, met = distinct(names.text, dots + 1, ends)
    lower = [os.fsdecode(names.text[dots[k] + 1 : ends[k]].tobytes()).lower() for k in met.tolist()]
    number = {text: k for k, text in enumerate(dict.fromkeys(lower))}
    ending = np.array([number[text] for text in lower], np.int32)[written] if lower else np.zeros(0, np.int32)
    new = _new_samples(names.text, starts, dots, ending)
    if len(repeated := np.flatnonzero(new == 2)):
        k = int(repeated[0])
        account.remark(
            "keys repeat within their sample: each is taken as two (webdataset refuses them)",
            os.fsdecode(names.text[starts[k] : dots[k]].tobytes()),
            len(repeated),
        )
    first = np.flatnonzero(new)
    stop = np.append(first[1:], len(rows))
    shape, _ = distinct(ending.view(np.uint8), 4 * first, 4 * stop)
    return Samples(first, stop, shape, rows, ending, list(number))


@cached
def _dots(text, ends, each):
    """(M,) int64, where in `text` the dot lies between a member's key and its ending; -1 for a member without, and for
    those that webdataset skips, in folders or files like __this__."""
    dots = np.empty(len(ends), np.int64)
    start = 0
    for k in range(len(ends)):
        end = ends[k]
        base = end
        while base > start and text[base - 1] != 47:
            base -= 1
        dot = -1
        for j in range(base, end):
            if text[j] == 46:
                dot = j
                if not each:
                    break
        top = start
        while top < end and text[top] != 47:
            top += 1
        own = top - start >= 4 and text[start] == 95 and text[start + 1] == 95
        own = own and text[top - 1] == 95 and text[top - 2] == 95
        dots[k] = -1 if own or dot <= base else dot
        start = end
    return dots


@cached
def _new_samples(text, starts, dots, ending):
    """(M,) uint8: 0 of a member that belongs to the sample before it, 1 of a new key, 2 of the same key with an ending
    that the sample has."""
    new = np.ones(len(starts), np.uint8)
    first = 0
    for k in range(1, len(starts)):
        length = dots[k] - starts[k]
        same = dots[k - 1] - starts[k - 1] == length
        for j in range(length):
            if not same or text[starts[k - 1] + j] != text[starts[k] + j]:
                same = False
                break
        if same:
            new[k] = 0
            for j in range(first, k):
                if ending[j] == ending[k]:
                    new[k] = 2
                    break
        if new[k]:
            first = k
    return new


def picture(endings: Sequence[str], key: str, shard: str, wanted: str | None) -> str | None:
    """The ending of the sample's picture; None if it has none. UserError where two could be meant."""
    if wanted not in (None, EACH):
        return next((e for e in wanted.lower().lstrip(".").split(";") if e in endings), None)
    images = [e for e in endings if f".{e.rpartition('.')[2]}" in extensions()]
    if len(images) < 2:
        return images[0] if images else None
    plain = [e for e in images if "." not in e]  # KEY.jpg before KEY.depth.png
    for chosen in (plain, [e for e in plain or images if set(e.split(".")) & set(IMAGE_WORDS)]):
        if len(chosen) == 1:
            return chosen[0]
    raise UserError(
        f"{shard}: the sample {printable(key)} holds {len(images)} images ({printable(', '.join(images[:4]))}"
        f"{' ...' if len(images) > 4 else ''}), and any of them could be meant: give --image-key ENDING, such as "
        f"{printable(images[0])}, or --image-key each to take every image file (a key ends at the first dot of a name)."
    )


@dataclass(frozen=True)
class LabelPlace:
    """Which member of a sample tells its label. keys: of a JSON object; sure: it is no more than a label even where it
    tells none."""

    ending: str
    keys: tuple[str, ...]
    sure: bool

    def text(self, content: bytes) -> str | None:
        text = content.decode("utf-8", "replace").strip()
        if self.ending.rpartition(".")[2] != "json":
            return text or None
        return _in_json(text, self.keys)


def label_place(endings: Sequence[str], wanted: str | None) -> LabelPlace | None:
    """Where samples with these endings have their label; None if they have none."""
    if wanted is not None:
        ending, _, key = wanted.lower().partition(":")
        if ending in endings:
            return LabelPlace(ending, (key,) if key else JSON_KEYS, True)
        return LabelPlace("json", (wanted,), True) if "json" in endings else None
    found = [e for known in LABEL_ENDINGS for e in endings if e.rpartition(".")[2] == known]
    if found:  # KEY.cls before KEY.target.cls
        return LabelPlace(sorted(found, key=lambda e: "." in e)[0], JSON_KEYS, True)
    return LabelPlace("json", JSON_KEYS, False) if "json" in endings else None


def _in_json(text: str, keys: tuple[str, ...]) -> str | None:
    try:
        content = json.loads(text)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return str(content) if isinstance(content, (int, str)) else None
    found = next((content[key] for key in keys if content.get(key) is not None), None)
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    return str(int(found) if isinstance(found, bool) else found) if isinstance(found, (int, str)) else None
