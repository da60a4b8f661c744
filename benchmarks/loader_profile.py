"""python -m benchmarks.loader_profile: where a loader's CPU time goes: decode and crop, then each operation of a view.

CPU time, not the clock's, in turns of growing recipes: a busy machine disturbs it little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from saccade.base.allocator import keep_freed_memory
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.order import Order
from saccade.pipelines.pipeline import Pipeline
from saccade.pipelines.views import Views
from saccade.tools.benchmark.contenders import entrants, epochs
from saccade.tools.benchmark.rows import columns, environment
from saccade.tools.benchmark.suites import Work, build_suite

STAGES = ("crop", "jitter", "grey", "blur")  # crop: with decoding and normalising
CPU = torch.device("cpu")


def main(argv: list[str]) -> int:
    """Print, for each of our loaders of photos, milliseconds of CPU time an image by stage; --json keeps them."""
    parser = argparse.ArgumentParser(prog="benchmarks.loader_profile", description=main.__doc__)
    parser.add_argument("--photos", help="a folder of JPEGs (default: made-up ones)")
    parser.add_argument("--suite", choices=("photos", "multicrop"), default="photos")
    parser.add_argument("--batches", type=int, default=6, help="of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args(argv)
    keep_freed_memory()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="saccade-profile-") as scratch:
        work = build_suite(flags.suite, Path(scratch), None, None, False, copies=2, data=flags.photos)
        found = profile(work, flags.batches, flags.turns)
    lines = [("loader", *(f"{'+ ' * bool(i)}{stage}" for i, stage in enumerate(STAGES)), "all, ms")]
    lines += [(name, *(f"{spent:.2f}" for spent in stages), f"{sum(stages):.2f}") for name, stages in found.items()]
    print(columns(lines, left=1))
    if flags.json:
        flags.json.write_text(json.dumps({"suite": flags.suite, "ms": found, **environment()}, indent=1) + "\n")
    return 0


def profile(work: Work, batches: int, turns: int) -> dict[str, list[float]]:
    """Milliseconds of CPU time an image that each stage adds, of every executor with threads."""
    makers: dict[tuple[str, int], Callable[[], float]] = {}
    pipelines: list[Pipeline] = []
    for entrant in entrants(work, (), CPU):
        if entrant.executor == "reference" or entrant.is_cached:  # in processes; and no decoding
            continue
        for stage in range(len(STAGES)):
            order = Order(len(entrant.source), work.batch_size)
            recipe = up_to(work.recipe, stage)
            pipelines.append(build_pipeline(entrant.source, recipe, order, entrant.name, CPU, torch.float32, 1))
            makers[entrant.label, stage] = lambda p=pipelines[-1]: turn(p, batches)
    spent: dict[tuple[str, int], list[float]] = {key: [] for key in makers}
    for number in range(turns + 1):
        for key, made in makers.items():
            milliseconds = made()
            if number:
                spent[key].append(milliseconds)
    for pipeline in pipelines:
        pipeline.close()
    whole = {key: statistics.median(each) for key, each in spent.items()}
    return {
        name: [whole[name, 0], *(whole[name, k] - whole[name, k - 1] for k in range(1, len(STAGES)))]
        for name in dict.fromkeys(name for name, _ in makers)
    }


def up_to(recipe: Views, stage: int) -> Views:
    """The recipe with its operations up to this one of STAGES."""
    kept = STAGES[: stage + 1]
    return replace(
        recipe, views=tuple(replace(v, operations=tuple(o for o in v.operations if o.name in kept)) for v in recipe)
    )


def turn(pipeline: Pipeline, batches: int) -> float:
    """Milliseconds of CPU time an image, of all threads."""
    made = epochs(pipeline)
    next(made)
    start, images = time.process_time(), 0
    for _ in range(batches):
        images += len(next(made).index)
    spent = time.process_time() - start
    made.close()
    return 1000 * spent / images


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
