"""What a conversion will take, measured on a sample of the images, and whether there is room for it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from saccade.base.errors import UserError
from saccade.pipelines.sources import BadImage, Source
from saccade.pipelines.sources.open import DataSet
from saccade.tools.conversion.job import Job
from saccade.tools.conversion.journal import same_disk_free
from saccade.tools.conversion.prepare import Prepared, Settings, prepare
from saccade.tools.conversion.write_packed import PAGE

_SAMPLE = 64


def prepared_or_bad(reader: Source, i: int, settings: Settings) -> Prepared | BadImage:
    """Image i as the target stores it, or why it cannot."""
    try:
        image = prepare(reader.stored(i), i, settings, reader.decode)
        if settings.form != "file" and max(image.height, image.width) > 65535:
            raise BadImage(f"{image.width}x{image.height} is too large for this format")
        return image
    except BadImage as reason:
        return reason


def forecast(job: Job, data: DataSet, pool: ThreadPoolExecutor) -> int:
    """Print what is to be expected, from a sample prepared for real; returns the bytes it will take."""
    places: list[tuple[Source, int]] = []
    for reader in data.splits.values():
        count = min(len(reader), max(1, _SAMPLE * len(reader) // data.images))
        places += [(reader, int(i)) for i in np.linspace(0, len(reader) - 1, count)]

    def sample(place: tuple[Source, int]) -> Prepared | BadImage:
        return prepared_or_bad(*place, job.settings)

    list(pool.map(sample, places[: job.workers]))  # imports and caches
    start = time.perf_counter()
    prepared = list(pool.map(sample, places))
    each = (time.perf_counter() - start) / len(places)
    good = [p for p in prepared if isinstance(p, Prepared)]
    sizes = {(p.height, p.width) for p in good}
    if job.to == "npz" and len(sizes) > 1:
        raise UserError(
            f"{job.src}: an .npz holds images of one size, and these differ (--max-side keeps their proportions); "
            "use --to beton or --to wds."
        )
    size = int(sum(len(p.data) + 200 for p in good) / max(1, len(good)) * data.images)
    if job.to == "beton":
        size += PAGE * len(data.splits)  # its tables
    seconds = each * data.images * (2 if job.verify == "full" else 1)
    print(
        f"forecast: {data.images:,} images, {_bytes(size)}, about {_duration(seconds)} with {job.workers} threads; "
        f"{_bytes(same_disk_free(job.dst.absolute().parent))} free at {job.dst.absolute().parent}",
        flush=True,
    )
    return size


def check_space(job: Job, partial: Path, expected: int) -> None:
    done = sum(file.stat().st_blocks * 512 for file in partial.rglob("*") if file.is_file())
    needed = int(expected * 1.02) * (2 if job.to == "npz" else 1) + (1 << 20) - done
    free = same_disk_free(partial)
    if needed > free:
        raise UserError(
            f"{job.dst}: needs about {_bytes(needed)}{' more' if done > 1 << 20 else ''}, {_bytes(free)} are free; "
            "make room, choose another disk, or give --max-side or --quality."
        )


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return ""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
