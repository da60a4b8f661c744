"""The values of deep images (16 bits, floats) that become 0 and 255: one range for a whole set, told by a sample of
it."""

from __future__ import annotations

import io
import os

import numpy as np

from saccade.pipelines.sources.decode import BadImage, ValueRange, deep_values
from saccade.pipelines.sources.source import Source

_PROBED = 64  # images
_MAY_BE_DEEP = {".png", ".tif", ".tiff", ".jp2", ".j2k", ".pgm", ".pfm", ".fits", ".fit", ".img", ""}
_CLIPPED, _USED = 0.01, 0.05  # shares worth a word


def with_range(source: Source, wanted: ValueRange | None = None) -> Source:
    """Give the source's reader one range for its deep images, and say it; sources of 8-bit images stay as they are."""
    if not source.reader.gives_files or source.kind in ("beton", "mixed"):
        return source
    values = _sample(source)
    if values is None:
        source.reader.value_range = wanted
        return source
    chosen = wanted or told_by(values)
    source.reader.value_range = chosen
    flat = np.concatenate([v.ravel() for v in values])
    clipped = float(((flat < chosen.low) | (flat > chosen.high)).mean())
    used = float(np.ptp(np.clip(flat, chosen.low, chosen.high))) / (chosen.high - chosen.low)
    if wanted is None:
        source.account.guess(
            f"{source.name} has images of more than 8 bits: values {chosen.low:g} to {chosen.high:g} become 0 to "
            f"255, told "
            f"by {len(values)} of them; --value-range LOW,HIGH settles it"
        )
    if clipped > _CLIPPED:
        source.account.guess(
            f"{clipped:.1%} of the looked-at pixels lie outside of --value-range {chosen} and are clipped"
        )
    if used < _USED:
        source.account.guess(f"only {used:.1%} of --value-range {chosen} is used by the looked-at images")
    return source


def told_by(values: list[np.ndarray]) -> ValueRange:
    """Integers: all 16 bits where they are used, else the 0.1 and 99.9 percentile; floats: 0 to 1, 0 to 255, or
    percentiles."""
    flat = np.concatenate([v.ravel()[:: max(1, v.size // 65536)].astype(np.float64) for v in values])
    flat = flat[np.isfinite(flat)]
    if not flat.size:
        return ValueRange(0, 1)
    low, high = np.percentile(flat, [0.1, 99.9])
    smallest, largest = flat.min(), flat.max()
    if values[0].dtype.kind in "iu":
        if smallest >= 0 and high >= 32768 and largest <= 65535:
            return ValueRange(0, 65535)
    elif smallest >= 0 and largest <= 1:
        return ValueRange(0, 1)
    elif smallest >= 0 and largest <= 255:
        return ValueRange(0, 255)
    return ValueRange(float(low), float(high)) if high > low else ValueRange(float(smallest), float(smallest) + 1)


def _sample(source: Source) -> list[np.ndarray] | None:
    """Values of some deep images, evenly spread among those whose names allow it; None without."""
    names = source.index.names
    if not len(names):
        candidates = np.unique(np.linspace(0, len(source) - 1, 4).astype(int))
    else:
        candidates = [i for i in range(len(source)) if os.path.splitext(names[i])[1].lower() in _MAY_BE_DEEP]
        candidates = (
            [candidates[k] for k in np.unique(np.linspace(0, len(candidates) - 1, _PROBED).astype(int))]
            if candidates
            else []
        )
    found = []
    for i in candidates:
        try:
            values = deep_values(io.BytesIO(source.reader.encoded(source.index, int(i))))
        except BadImage:
            continue  # met again, and counted, when it is read
        if values is not None:
            found.append(values)
    return found or None
