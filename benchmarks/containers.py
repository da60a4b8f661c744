"""How fast is each executor on photos in each container?  python -m benchmarks.containers [--json FILE]

512x384 JPEGs made here, as a folder, tar shards, parquet and .beton; decode and 2 x 224 (and 2 x 224 + 6 x 96) with
jitter, grey and blur. All take turns in one process. Beside images/s stands the CPU time of an image, which a busy
machine disturbs less.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import torch

from saccade.base.machine import available_cpus
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.data import open_data
from saccade.pipelines.order import Order
from saccade.pipelines.sources import Source
from saccade.pipelines.views import Views
from saccade.tools.benchmark.contenders import epochs
from saccade.tools.benchmark.measure import Contender, measure
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


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=5, help="of each loader, after one that is not counted")
    p.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    p.add_argument("--without", default="", help="executors to leave out, such as reference, which takes most of the time")
    p.add_argument("--copies", type=int, default=6, help="of each of 108 photos")
    p.add_argument("--json", type=Path)
    flags = p.parse_args(argv)
    torch.set_num_threads(available_cpus())
    with tempfile.TemporaryDirectory(prefix="saccade-containers-") as scratch:
        sources = contained(Path(scratch), flags.copies)
        contenders = [
            contender(executor, container, sources[container], recipe)
            for recipe in (photo_recipe(224), photo_recipe(224, crops=6))
            for container, executors in RUNS.items()
            for executor in executors
            if executor not in flags.without.split(",")
        ]
        rows = measure(contenders, torch.device("cpu"), flags.rounds, flags.seconds)
    print(table(rows))
    if flags.json:
        write_rows(flags.json, rows, environment())


def contained(scratch: Path, copies: int) -> dict[str, Source]:
    """The same photos in every container."""
    from saccade.tools.convert import main as convert

    folder = photos(scratch, copies)
    made: dict[str, Source] = {"folder": folder}
    kinds = {"tar": ["--to", "wds"], "parquet": ["--to", "parquet"], "beton jpg": [], "beton raw": ["--store", "raw"]}
    for name, flags in kinds.items():
        target = scratch / (f"{name[6:]}.beton" if name.startswith("beton") else name)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            convert([str(folder.folder), str(target), "--verify", "none", *flags])
        made[name] = open_data(str(target))[0]
    return made


def contender(executor: str, container: str, source: Source, recipe: Views) -> Contender:
    workers = available_cpus()
    pipeline = build_pipeline(source, recipe, Order(len(source), BATCH), executor, "cpu", workers=workers)
    row = Row("loader", f"{executor}, {container}", describe(recipe), "", "cpu", 224, BATCH, len(recipe), workers)
    bunch = workers if executor == "reference" else 1

    def batches():
        try:
            for batch in epochs(pipeline):
                yield len(batch.index)
        finally:
            pipeline.close()  # nothing works on during another's turn

    return Contender(row, batches, warm_up=max(2, bunch), stride=bunch)


def table(rows: list[Row]) -> str:
    lines: list[tuple[str, ...]] = [("loader", "views", "images/s", "(low - high)", "CPU ms an image")]
    for r in rows:
        low, high = (rate / r.views_per_image for rate in (r.views_per_second_low, r.views_per_second_high))
        cost = 10 * (r.cpu_percent or 0) / r.images_per_second
        rates = f"{r.images_per_second:,.0f}", f"({low:,.0f} - {high:,.0f})"
        lines.append((r.executor, r.recipe, *rates, f"{cost:.2f}"))
    return columns(lines, left=2)


if __name__ == "__main__":
    main()
