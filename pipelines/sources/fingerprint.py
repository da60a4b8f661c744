"""What tells whether a resumed run has the images it was started with, wherever they lie now."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from saccade.base.text import printable
from saccade.pipelines.sources.decode import BadImage
from saccade.pipelines.sources.source import Source

CONTENT, FILES = 256, 16_384  # images whose bytes are read, loose files whose size is asked for; spread over all


def fingerprint(source: Source) -> dict[str, Any]:
    """Checksums of all names and labels, of the sizes and of sampled images' content: plain values, for a record."""
    return {
        "kind": source.kind,
        "identity": source.identity(),
        "names": source.index.fact("names"),
        "sizes": _sizes(source),
        "content": [_content(source, i) for i in spread(len(source), CONTENT)],
    }


def difference(before: Mapping[str, Any], now: Mapping[str, Any], source: Source) -> str | None:
    """In what the images of `source`, whose fingerprint is `now`, are others than before; None if they are not.

    In another format (a folder that was converted) only labels and pixels are compared.
    """
    found = ["labels or pixels"] if before["identity"] != now["identity"] else []
    if before["kind"] == now["kind"]:
        found += [what for what in ("names", "sizes") if before[what] != now[what]]
        places = spread(len(source), CONTENT)
        pairs = zip(places, before["content"], now["content"], strict=True)
        others = [place for place, old, new in pairs if old != new and None not in (old, new)]
        if others:
            first = printable(source.name_of(others[0]))
            found.append(f"{len(others)} of {len(places)} that were looked at, {first} for one")
    return f"other {', '.join(found)}" if found else None


def spread(count: int, most: int) -> list[int]:
    """At most so many of `count` numbers, evenly spread."""
    return np.linspace(0, count - 1, min(most, count)).astype(int).tolist()


def _sizes(source: Source) -> int:
    sizes = [source.reader.file_size(source.index, i) for i in spread(len(source), FILES)]
    return zlib.crc32(np.array(sizes, np.int64).data, source.index.fact("places"))


def _content(source: Source, i: int) -> int | None:
    with suppress(BadImage):
        stored = source.stored(i)
        return zlib.crc32(stored if isinstance(stored, bytes) else np.ascontiguousarray(stored).data)
    return None
