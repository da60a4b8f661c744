"""The values of deep images (16 bits, floats) that become 0 and 255: one range for a whole set, told by a sample of
it."""

from __future__ import annotations

import io

import numpy as np

from saccade.base.errors import UserError
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.bands import is_deep_colour, more_than_told, values
from saccade.pipelines.sources.decode import BadImage, ValueRange, deep_values
from saccade.pipelines.sources.source import Source

_CLIPPED, _USED = 0.01, 0.05  # shares worth a word


def with_range(source: Source, wanted: ValueRange | None = None) -> Source:
    """Give the source's reader one range for its deep images, and say it; sources of 8-bit images stay as they are."""
    if not source.reader.gives_files or source.kind in ("beton", "mixed"):
        return source
    looked_at = _sample(source)
    if looked_at is None and wanted is not None and wanted.asked:
        source.account.guess(f"--value-range {wanted} changes nothing: no image of more than 8 bits was met")
    source.reader.value_range = (
        wanted if looked_at is None else choose_range(looked_at, wanted, source.name, source.account)
    )
    return source


def choose_range(looked_at: list[np.ndarray], wanted: ValueRange | None, name: str, account: Account) -> ValueRange:
    """The range asked for, or the one that the looked-at images tell; the account says it, and what it clips."""
    chosen = wanted or told_by(looked_at)
    flat = np.concatenate([v.ravel() for v in looked_at])
    known = np.isfinite(flat)
    if not known.all():
        account.guess(f"{1 - known.mean():.1%} of the looked-at pixels of {name} are no numbers (NaN, infinite): black")
        flat = flat[known] if known.any() else np.full(1, chosen.low)
    if wanted is not None and not wanted.asked:
        account.guess(
            f"{name}: values {chosen} become 0 to 255, as the backbone saw its images; --value-range gives others"
        )
    clipped = float(((flat < chosen.low) | (flat > chosen.high)).mean())
    used = float(np.ptp(np.clip(flat, chosen.low, chosen.high))) / (chosen.high - chosen.low)
    if wanted is None:
        account.guess(
            f"{name} has images of more than 8 bits: values {chosen.low:g} to {chosen.high:g} become 0 to "
            f"255, told "
            f"by {len(looked_at)} of them; --value-range LOW,HIGH settles it"
        )
    kinds = sorted({"whole numbers" if v.dtype.kind in "iu" else "fractions" for v in looked_at})
    if wanted is None and len(kinds) > 1:
        account.guess(
            f"{name} mixes images of whole numbers and of fractions, and one range of values serves both; convert "
            "them to one kind, or give --value-range LOW,HIGH"
        )
    if clipped > _CLIPPED:
        account.guess(f"{clipped:.1%} of the looked-at pixels lie outside of --value-range {chosen} and are clipped")
    if used < _USED:
        account.guess(f"only {used:.1%} of --value-range {chosen} is used by the looked-at images")
    return chosen


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


def _deep(data: bytes, channels: int) -> np.ndarray | None:
    """Values of an image of more than 8 bits, None of any other. Raises BadImage."""
    if channels == 3 and not is_deep_colour(data):
        return deep_values(io.BytesIO(data))
    pixels = values(io.BytesIO(data), channels)
    return None if pixels.dtype == np.uint8 else pixels


def _sample(source: Source) -> list[np.ndarray] | None:
    """Values of some deep images, evenly spread among those whose names allow it; None without."""
    if len(source.index.names):
        candidates = source.index.fact("deep")
    else:
        candidates = np.unique(np.linspace(0, len(source) - 1, 4).astype(int)).tolist()
    found, unsaid = [], {}
    for i in candidates:
        try:
            data = source.reader.encoded(source.index, i)
            found_one = _deep(data, source.channels)
            if source.channels == 3 and (more := more_than_told(data, lambda i=i: source.read(i))):
                unsaid.setdefault(more, []).append(source.name_of(i))
        except BadImage:
            continue  # met again, and counted, when it is read
        if found_one is not None:
            found.append(found_one)
    for (what, way), named in unsaid.items():
        told = f"{len(named)} of {len(candidates)} looked-at images, such as {named[0]}, hold"
        source.account.guess(f"{told} {what}; {way}")
    return found or None


# --- channels ---------------------------------------------------------------------------------------------------------


def with_channels(source: Source, wanted: int) -> Source:
    """Give the source's reader the number of channels; UserError from a kind that has another."""
    if source.reader.gives_files and source.kind not in ("beton", "mixed"):
        source.reader.channels = wanted
    if source.channels != wanted:
        raise UserError(
            f"--channels {wanted}: {source.name} holds images of {source.channels} channels; leave the flag out "
            f"or give "
            "the data's own number."
        )
    return source


def channel_statistics(source: Source, images: int = 256) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of each channel over some images evenly spread, of pixels 0 to 1, to four digits."""
    sums, squares, count = np.zeros(source.channels), np.zeros(source.channels), 0
    for i in np.unique(np.linspace(0, len(source) - 1, images).astype(int)).tolist():
        try:
            pixels = source.read(i).reshape(-1, source.channels) / 255
        except BadImage:
            continue  # met again, and counted, when it is read
        sums, squares, count = sums + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = sums / max(count, 1)
    std = np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 1e-4))
    return tuple(float(round(m, 4)) for m in mean), tuple(float(round(s, 4)) for s in std)
