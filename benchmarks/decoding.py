"""python -m benchmarks.decoding: what decoding a whole set of small images once costs, by whom; in turns."""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from saccade.base.command import run_command
from saccade.base.files import write_atomically
from saccade.base.machine import available_cpus, git_commit, hardware, versions
from saccade.pipelines import whole
from saccade.pipelines.data import open_data
from saccade.pipelines.sources import Source

SETS = {
    "JPEG, 32 px": ("JPEG", 32),
    "PNG, 32 px": ("PNG", 32),
    "JPEG, 96 px": ("JPEG", 96),
    "PNG, 32 px, parquet": ("PNG", 32),
}
FEW = 10  # of so many images one is decoded by one thread of PIL, the others' time is taken for equal
_DIFFERENT = 500


def files(form: str, side: int) -> list[bytes]:
    made = []
    for k in range(_DIFFERENT):
        rough = np.random.default_rng(k).integers(0, 256, (side // 4, side // 4, 3), np.uint8)
        image = Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC)
        image.save(file := io.BytesIO(), form)
        made.append(file.getvalue())
    return made


def write_files(place: Path, form: str, side: int, count: int) -> None:
    """A folder of files, links to a few hundred different ones."""
    for k, data in enumerate(files(form, side)):
        folder = place / f"class{k:03}"
        folder.mkdir(parents=True)
        (folder / f"0.{form.lower()}").write_bytes(data)
        for n in range(1, count // _DIFFERENT):
            os.link(folder / f"0.{form.lower()}", folder / f"{n}.{form.lower()}")


def write_parquet(place: Path, form: str, side: int, count: int) -> None:
    import pyarrow
    from pyarrow import parquet

    place.mkdir()
    images = [{"bytes": data, "path": None} for data in files(form, side)]
    for k in range(count // 10_000):
        table = pyarrow.table({"image": images * (10_000 // _DIFFERENT)})
        parquet.write_table(table, place / f"train-{k:03}.parquet", row_group_size=1_000)


def one_thread(source: Source, _: int) -> None:
    """PIL, an image after the other, into the array."""
    few = source.subset(np.arange(0, len(source), FEW))
    images = np.empty((len(few), *few.read(0).shape), np.uint8)
    for i in range(len(few)):
        images[i] = few.read_or_replace(i)[0]


def by(way: str) -> Callable[[Source, int], None]:
    def decode(source: Source, workers: int) -> None:
        with patch.object(whole.multiprocessing, "get_start_method", lambda: way):
            whole.load_images(source, workers)

    return decode


WAYS = {
    "one thread, PIL": one_thread,
    "this process": lambda s, _: by("fork")(s, 0),
    "threads": by("spawn"),
    "processes": by("fork"),
}


def cost(way: str, source: Source, workers: int) -> dict[str, float]:
    """Seconds by the clock and of CPU time, this process's and its children's."""
    before, started = used(), time.perf_counter()
    WAYS[way](source, workers)
    times = FEW if way == "one thread, PIL" else 1
    return {"s": (time.perf_counter() - started) * times, "cpu_s": (used() - before) * times}


def used() -> float:
    return sum(sum(getrusage(who)[:2]) for who in (RUSAGE_SELF, RUSAGE_CHILDREN))


def main(argv: list[str] | None = None) -> int:
    """Decode sets of small images whole: median seconds, and CPU time an image."""
    command = argparse.ArgumentParser(prog="benchmarks.decoding", description=main.__doc__)
    command.add_argument("--images", type=int, default=100_000, help="a multiple of 10,000")
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--json", metavar="FILE", help="also write all numbers as JSON")
    flags, rows, workers = command.parse_args(argv), [], available_cpus()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="saccade-decoding-") as scratch:
        os.environ["SACCADE_CACHE"] = f"{scratch}/cache"
        for name, (form, side) in SETS.items():
            place = Path(scratch) / name.replace(", ", "-")
            (write_parquet if "parquet" in name else write_files)(place, form, side, flags.images)
            source, _ = open_data(str(place))
            for turn in range(flags.rounds):
                rows += [{"set": name, "way": way, "round": turn, **cost(way, source, workers)} for way in WAYS]
            for way in WAYS:
                found = [row for row in rows if (row["set"], row["way"]) == (name, way)]
                taken, cpu = (median(row[unit] for row in found) for unit in ("s", "cpu_s"))
                print(
                    f"{name:<22}{way:<18}{taken:8.1f} s, of CPU {1e6 * cpu / flags.images:4.0f} us an image", flush=True
                )
    if flags.json:
        record = {
            "date": time.strftime("%Y-%m-%d"),
            "commit": git_commit(),
            "load": os.getloadavg()[0],
            "images": flags.images,
        }
        record |= {"rows": rows, "hardware": hardware(), "versions": versions()}
        write_atomically(Path(flags.json), lambda file: file.write((json.dumps(record, indent=1) + "\n").encode()))
    return 0


if __name__ == "__main__":
    run_command("benchmarks.decoding", main)
