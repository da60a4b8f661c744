"""Which member of a webdataset sample is the picture and which is its label: webdataset's grouping, a documented
preference."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from saccade.base.errors import UserError
from saccade.base.text import printable
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.decode import extensions

LABEL_ENDINGS = ("cls", "label", "labels", "class", "target", "category")  # in this order
MAYBE_LABELS = ("index", "id", "idx", "y")  # may be a label, may be a number of the sample: not taken unasked
IMAGE_WORDS = ("image", "img", "rgb", "photo", "picture", "input")
JSON_KEYS = ("label", "cls", "class", "target", "category")
EACH = "each"  # --image-key: every image file is a sample of its own
_META = re.compile(r"__[^/]*__($|/)")  # webdataset skips these


@dataclass(frozen=True)
class Part:
    """A file in a tar: its name and where its bytes lie."""

    name: str
    offset: int
    length: int


@dataclass
class Sample:
    """Members that follow each other under one key; parts: by lower-case ending."""

    key: str
    parts: dict[str, Part] = field(default_factory=dict)


def grouped(members: Iterable[Part], account: Account, each: bool = False) -> Iterator[Sample]:
    """webdataset's samples: consecutive members whose names agree up to the first dot of the base name (each: the
    last).

    A member that repeats an ending begins a new sample; webdataset stops there.
    """
    sample: Sample | None = None
    for part in members:
        folder, slash, base = part.name.rpartition("/")
        stem, dot, ending = base.rpartition(".") if each else base.partition(".")
        if not dot or not stem or _META.match(part.name):
            account.leave("without a key and an ending, or webdataset's own", part.name)
            continue
        key, ending = folder + slash + stem, ending.lower()
        if sample is not None and key == sample.key and ending in sample.parts:
            account.remark("keys repeat within their sample: each is taken as two (webdataset refuses them)", key)
        if sample is None or key != sample.key or ending in sample.parts:
            if sample is not None:
                yield sample
            sample = Sample(key)
        sample.parts[ending] = part
    if sample is not None:
        yield sample


def picture(sample: Sample, shard: str, wanted: str | None) -> str | None:
    """The ending of the sample's picture; None if it has none. UserError where two could be meant."""
    if wanted not in (None, EACH):
        return next((e for e in wanted.lower().lstrip(".").split(";") if e in sample.parts), None)
    images = [e for e in sample.parts if f".{e.rpartition('.')[2]}" in extensions()]
    if len(images) < 2:
        return images[0] if images else None
    plain = [e for e in images if "." not in e]  # KEY.jpg before KEY.depth.png
    for chosen in (plain, [e for e in plain or images if set(e.split(".")) & set(IMAGE_WORDS)]):
        if len(chosen) == 1:
            return chosen[0]
    raise UserError(
        f"{shard}: the sample {printable(sample.key)} holds {len(images)} images ({printable(', '.join(images[:4]))}"
        f"{' ...' if len(images) > 4 else ''}), and any of them could be meant: give --image-key ENDING, such as "
        f"{printable(images[0])}, or --image-key each to take every image file (a key ends at the first dot of a name)."
    )


def label(sample: Sample, wanted: str | None, read: Callable[[Part], str]) -> tuple[str | None, str | None]:
    """The text of the sample's label, and the ending of the member it came from."""
    if wanted is not None:
        ending, _, key = wanted.lower().partition(":")
        if ending in sample.parts:
            return _text(read(sample.parts[ending]), ending, (key,) if key else JSON_KEYS), ending
        if "json" in sample.parts:
            return _text(read(sample.parts["json"]), "json", (wanted,)), "json"
        return None, None
    endings = [e for known in LABEL_ENDINGS for e in sample.parts if e.rpartition(".")[2] == known]
    for ending in (*sorted(endings, key=lambda e: "." in e), "json"):  # KEY.cls before KEY.target.cls
        if ending in sample.parts:
            found = _text(read(sample.parts[ending]), ending, JSON_KEYS)
            if found is not None or ending != "json":
                return found, ending
    return None, None


def _text(text: str, ending: str, keys: tuple[str, ...]) -> str | None:
    if ending.rpartition(".")[2] != "json":
        return text or None
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
