"""Reads what was written back by its own reader and compares it with the source, image by image."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from saccade.base.errors import UserError
from saccade.pipelines.sources import FolderSource, Source
from saccade.pipelines.sources.arrays import load_npz
from saccade.pipelines.sources.beton import BetonSource
from saccade.pipelines.sources.parquet import ParquetSource
from saccade.pipelines.sources.shards import ShardSource
from saccade.tools.conversion.prepare import RAW, Settings, prepare
from saccade.tools.conversion.writers import Row

SAMPLE = 1000

_SOURCES: dict[str, Callable[[Path, str], Source]] = {
    "folder": lambda folder, split: FolderSource(folder / split),
    "npz": lambda folder, split: load_npz(folder / f"{split}.npz"),
    "beton": lambda folder, split: BetonSource(folder / f"{split}.beton"),
    "wds": lambda folder, split: ShardSource(sorted(folder.glob(f"{split}-*.tar"))),
    "parquet": lambda folder, split: ParquetSource(sorted(folder.glob(f"{split}-*.parquet"))),
}


def verify_split(
    to: str,
    folder: Path,
    split: str,
    source: Source,
    rows: list[Row],
    settings: Settings,
    sample: bool,
    pool: ThreadPoolExecutor,
    bar: tqdm,
) -> None:
    """UserError unless there are as many images as rows, and all (or a sample) have the same bytes and labels."""
    target = _SOURCES[to](folder, split)
    if len(target) != len(rows):
        raise _failed(folder, f"{split} has {len(target)} images, {len(rows)} were written")
    numbers = range(len(rows))
    position = {target.key_of(i): i for i in numbers} if to == "folder" else None
    if sample:
        numbers = np.random.default_rng(0).permutation(len(rows))[:SAMPLE].tolist()

    def check(number: int) -> str | None:
        row = rows[number]
        at = number if position is None else position.get(row.place[0])
        if at is None:
            return f"{row.place[0]} is missing"
        wanted, found = prepare(source.stored(row.index), row.index, settings, source.decode), target.stored(at)
        same = np.array_equal(wanted.pixels(), found) if wanted.kind == RAW else wanted.data == found
        if not same:
            return f"image {at} of {split} differs from {source.key_of(row.index)}"
        label, other = source.label_of(row.index), target.label_of(at)
        name, other_name = (r.classes[n] if r.classes and n >= 0 else n for r, n in ((source, label), (target, other)))
        if to == "folder" and label >= 0 and source.classes is None and target.classes is not None:
            other_name = int(target.classes[other])
        return None if name == other_name else f"image {at} of {split} has the label {other_name}, {name} was given"

    for problem in pool.map(check, numbers):
        if problem:
            raise _failed(folder, problem)
        bar.update()


def _failed(folder: Path, what: str) -> UserError:
    return UserError(
        f"{folder}: reading back failed, {what}. Has the source changed meanwhile? Delete the folder and convert "
        f"again; "
        "if that ends the same, please report it."
    )
