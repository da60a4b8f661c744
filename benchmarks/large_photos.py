"""python -m benchmarks.large_photos: what --decode scaled saves on photos of 12 million pixels, and what it changes.

Photos of 4096x3072, each a mosaic of 64 smaller ones: as much detail as a JPEG of that size can have, so what decoding
saves here is the least, and what views differ by the most. CPU time, not the clock's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from saccade.base.allocator import keep_freed_memory
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.draw import draw
from saccade.pipelines.order import Order
from saccade.pipelines.pipeline import Pipeline
from saccade.pipelines.scale import DECODES
from saccade.pipelines.sources import FolderSource
from saccade.pipelines.views import Views
from saccade.tools.benchmark.rows import columns, environment
from saccade.tools.benchmark.suites import describe, photo_recipe, photos

WIDTH, HEIGHT, ACROSS = 4096, 3072, 8


def main(argv: list[str]) -> int:
    """Print CPU time an image of both ways to decode, by recipe, and how far their views are apart."""
    parser = argparse.ArgumentParser(prog="benchmarks.large_photos", description=main.__doc__)
    parser.add_argument("--photos", help="a folder of JPEGs to make the mosaics of (default: made-up ones)")
    parser.add_argument("--count", type=int, default=16, help="mosaics")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args(argv)
    keep_freed_memory()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="saccade-large-") as scratch:
        source = mosaics(photos(Path(scratch), 1, flags.photos), Path(scratch) / "large", flags.count)
        found = [measured(source, views, flags.turns) for views in (photo_recipe(224), photo_recipe(224, crops=6))]
    print(columns([tuple(found[0]), *(tuple(map(_shown, row.values())) for row in found)], left=1))
    unused = unused_shares(photo_recipe(224), 384, 512)
    print(f"two crops of a 512x384 photo: {_told(unused)}")
    if flags.json:
        flags.json.write_text(json.dumps({"rows": found, "unused": unused, **environment()}, indent=1) + "\n")
    return 0


def mosaics(small: FolderSource, folder: Path, count: int) -> FolderSource:
    rng, (height, width) = np.random.default_rng(0), (HEIGHT // ACROSS, WIDTH // ACROSS)
    folder.mkdir()
    for k in range(count):
        sheet = Image.new("RGB", (WIDTH, HEIGHT))
        for place in range(ACROSS**2):
            photo = Image.fromarray(small.read(int(rng.integers(len(small))))).resize((width, height))
            sheet.paste(photo, (place % ACROSS * width, place // ACROSS * height))
        sheet.save(folder / f"{k:03}.jpg", quality=90)
    return FolderSource(folder)


def measured(source: FolderSource, views: Views, turns: int) -> dict[str, str | float]:
    """A row: CPU time an image of both, and the differences of cuts and of whole views, of 255."""
    spent = cost(source, views, turns)
    row: dict[str, str | float] = {"views": describe(views), **{f"{way}, CPU ms": ms for way, ms in spent.items()}}
    row["ratio"] = spent["exact"] / spent["scaled"]
    cut = replace(views, views=tuple(replace(view, operations=()) for view in views))
    for name, recipe in (("cut", cut), ("coloured", views)):
        plain = replace(recipe, mean=(0.0,) * 3, std=(1.0,) * 3)
        row |= {f"{name}: {key}": value for key, value in differences(source, plain).items()}
    return row


def cost(source: FolderSource, views: Views, turns: int) -> dict[str, float]:
    """Milliseconds of CPU time an image: the median of whole epochs in turns, the first of which is not counted."""
    pipelines = {way: _built(source, views, way) for way in DECODES}
    spent: dict[str, list[float]] = {way: [] for way in pipelines}
    for turn in range(turns + 1):
        for way, pipeline in pipelines.items():
            start = time.process_time()
            images = sum(len(batch.index) for batch in pipeline)
            if turn:
                spent[way].append(1000 * (time.process_time() - start) / images)
    for pipeline in pipelines.values():
        pipeline.close()
    return {way: statistics.median(each) for way, each in spent.items()}


def differences(source: FolderSource, views: Views) -> dict[str, float]:
    """Of scaled from exact, over one epoch: the mean, the mean of the worst photo, the largest of all, of 255."""
    means, largest = [], 0.0
    with _built(source, views, "exact") as exact, _built(source, views, "scaled") as scaled:
        for one, other in zip(exact, scaled, strict=True):
            apart = [255 * (one.views[name] - other.views[name]).abs().flatten(1) for name in views.names]
            of_photos = torch.cat(apart, dim=1)
            means += of_photos.mean(dim=1).tolist()
            largest = max(largest, float(of_photos.max()))
    return {"mean": statistics.mean(means), "worst photo": max(means), "largest": largest}


def unused_shares(views: Views, height: int, width: int, images: int = 10_000) -> dict[str, float]:
    """What decoding only a part of a photo could save: the share of its rows below the lowest crop, of rows that no
    crop shows, and of pixels outside the crops' common box."""
    drawn = draw(views, 0, 0, torch.arange(images), torch.tensor([[height, width]]).expand(images, 2))
    boxes = torch.stack([drawn[view.name].box for view in views]).double()
    top, left = boxes[..., 0].amin(0), boxes[..., 1].amin(0)
    bottom, right = (boxes[..., 0] + boxes[..., 2]).amax(0), (boxes[..., 1] + boxes[..., 3]).amax(0)
    return {
        "rows below the lowest crop": float((1 - bottom / height).mean()),
        "rows above the highest": float((top / height).mean()),
        "pixels outside the crops' box": float((1 - (bottom - top) * (right - left) / (height * width)).mean()),
    }


def _built(source: FolderSource, views: Views, way: str) -> Pipeline:
    order = Order(len(source), min(16, len(source)))
    return build_pipeline(source, views, order, "threads", "cpu", workers=1, decode=way)


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"


def _told(shares: dict[str, float]) -> str:
    return ", ".join(f"{share:.1%} {what}" for what, share in shares.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
