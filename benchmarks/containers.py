"""How fast is each executor on photos in each container, and what does --cache give?

    python -m benchmarks.containers [--only threads,dali] [--json FILE]

512x384 JPEGs made here, as a folder, tar shards, parquet and .beton; decode and 2 x 224 (and 2 x 224 + 6 x 96) with
jitter, grey and blur. Whole epochs in turns, in one process: what is made ahead is counted to who made it. Beside
images/s stands the CPU time of an image, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from saccade.base.allocator import keep_freed_memory
from saccade.base.machine import available_cpus
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.data import open_data
from saccade.pipelines.order import Order
from saccade.pipelines.pipeline import Pipeline
from saccade.pipelines.sources import Source
from saccade.pipelines.views import Views
from saccade.tools.benchmark.measure import cpu_seconds
from saccade.tools.benchmark.rows import Row, columns, environment, write_rows
from saccade.tools.benchmark.suites import describe, photo_recipe, photos

BATCH = 64
RUNS = {  # container -> executors
    "folder": ("threads", "dali", "reference"),
    "tar": ("threads", "dali"),
    "parquet": ("threads", "dali"),
    "beton jpg": ("ffcv",),
    "beton raw": ("ffcv",),
}
CACHES = ("ram", "disk")
Spent = tuple[float, float]  # images/s, CPU seconds an image


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=5, help="of all, after one that is not counted")
    p.add_argument("--copies", type=int, default=6, help="of each of 108 photos")
    p.add_argument("--only", default="threads,dali,reference,ffcv,cache", help="some of these")
    p.add_argument("--containers", default=",".join(RUNS), help="some of these")
    p.add_argument("--json", type=Path)
    flags = p.parse_args(argv)
    torch.set_num_threads(available_cpus())
    keep_freed_memory()  # as train.py does
    found: dict[tuple[str, Views], list[Spent]] = {}
    with tempfile.TemporaryDirectory(prefix="saccade-containers-") as scratch:
        sources = contained(Path(scratch), flags.copies, flags.containers.split(","))
        for number in range(flags.rounds + 1):
            for recipe in (photo_recipe(224), photo_recipe(224, crops=6)):
                for name, spent in one_round(sources, recipe, flags.only.split(","), Path(scratch)):
                    found.setdefault((name, recipe), []).extend([spent] * bool(number))
            print(f"round {number} of {flags.rounds} ended", file=sys.stderr, flush=True)
    rows = [_row(name, recipe, spent) for (name, recipe), spent in found.items()]
    print(table(rows))
    if flags.json:
        write_rows(flags.json, rows, environment())


def contained(scratch: Path, copies: int, wanted: list[str]) -> dict[str, Source]:
    """The same photos in the containers that are wanted."""
    from saccade.tools.convert import main as convert

    folder = photos(scratch, copies)
    made: dict[str, Source] = {"folder": folder}
    kinds = {"tar": ["--to", "wds"], "parquet": ["--to", "parquet"], "beton jpg": [], "beton raw": ["--store", "raw"]}
    for name, flags in kinds.items():
        target = scratch / (f"{name[6:]}.beton" if name.startswith("beton") else name)
        if name not in wanted:
            continue
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            convert([str(folder.folder), str(target), "--verify", "none", *flags])
        made[name] = open_data(str(target))[0]
    return {name: source for name, source in made.items() if name in wanted}


def one_round(sources: dict[str, Source], recipe: Views, only: list[str], scratch: Path) -> Iterator[tuple[str, Spent]]:
    """An epoch of each executor on each container, two of each cache: the one that fills it and the one after."""
    for container, source in sources.items():
        for executor in RUNS[container]:
            if executor in only:
                with _built(source, recipe, executor) as pipeline:
                    yield f"{executor}, {container}", _epoch(pipeline)
    for kind in CACHES if "cache" in only and "folder" in sources else ():
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            asked = "ram" if kind == "ram" else f"disk:{folder}"
            with _built(sources["folder"], recipe, "threads", cache=asked) as pipeline:
                yield f"threads, folder, --cache {kind}: first epoch", _epoch(pipeline)
                yield f"threads, folder, --cache {kind}: second epoch", _epoch(pipeline)


def _built(source: Source, recipe: Views, executor: str, cache: str | None = None) -> Pipeline:
    order = Order(len(source), BATCH)
    return build_pipeline(source, recipe, order, executor, "cpu", workers=available_cpus(), cache=cache)


def _epoch(pipeline: Pipeline) -> Spent:
    images, cpu, start = 0, cpu_seconds(), time.perf_counter()
    for batch in pipeline:
        images += len(batch.index)
    return images / (time.perf_counter() - start), (cpu_seconds() - cpu) / images


def _row(name: str, recipe: Views, spent: list[Spent]) -> Row:
    rates, costs = ([each[k] for each in spent] for k in (0, 1))
    row = Row("loader", name, describe(recipe), "synthetic photos 512x384", "cpu", 224, BATCH, len(recipe))
    row.workers, row.rounds, row.images_per_second = available_cpus(), len(spent), statistics.median(rates)
    row.views_per_second, row.views_per_second_low, row.views_per_second_high = (
        len(recipe) * rate for rate in (row.images_per_second, min(rates), max(rates))
    )
    row.more = {"cpu_ms_per_image": 1000 * statistics.median(costs), "cpu_ms_lowest": 1000 * min(costs)}
    return row


def table(rows: list[Row]) -> str:
    lines: list[tuple[str, ...]] = [("loader", "views", "images/s", "(low - high)", "CPU ms an image", "(lowest)")]
    for r in rows:
        low, high = (rate / r.views_per_image for rate in (r.views_per_second_low, r.views_per_second_high))
        cost = f"{r.more['cpu_ms_per_image']:.2f}", f"({r.more['cpu_ms_lowest']:.2f})"
        lines.append((r.executor, r.recipe, f"{r.images_per_second:,.0f}", f"({low:,.0f} - {high:,.0f})", *cost))
    return columns(lines, left=2)


if __name__ == "__main__":
    main()
