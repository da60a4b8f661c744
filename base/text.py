"""Text from outside on its way to a terminal, a list or JSON: whatever bytes a name has, one printable line."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any


def printable(text: str) -> str:
    """`text` with line breaks, terminal escapes and bytes that are no UTF-8 written as \\n, \\x1b, \\xfb; the rest
    as it is."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def json_line(record: Mapping[str, Any]) -> str:
    """A record as JSON in one line: what is not finite is null, since JSON has no NaN.

    Examples:
        >>> json_line({"step": 3, "loss": float("nan")})
        '{"step": 3, "loss": null}'
    """
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(plain, allow_nan=False)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " (did you mean X?)" with the nearest of the known names, "" where none is near.

    Examples:
        >>> did_you_mean("linaer", ["knn", "linear"])
        ' (did you mean linear?)'
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def duration(seconds: float) -> str:
    """
    Examples:
        >>> duration(8.2), duration(100), duration(5000), duration(1e6)
        ('8 s', '2 minutes', '1.4 hours', '11.6 days')
    """
    for above, unit, name in ((172_800, 86_400, "days"), (5_000 - 1, 3_600, "hours")):
        if seconds > above:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def _escaped(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte that the file system's encoding could not read (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
