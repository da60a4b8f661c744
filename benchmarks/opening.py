"""python -m benchmarks.opening: what a data set costs before its first step, at growing sizes, and at sizes beyond;
with --train also twenty steps on 300,000 files, on tars of a million samples and on a sparse .beton of 60 GB."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.made_sets import WRITERS, write_beton, write_folder, write_tars
from saccade.base.command import run_command
from saccade.base.files import write_atomically
from saccade.base.machine import git_commit, hardware, versions
from saccade.pipelines.data import open_data
from saccade.pipelines.order import Order
from saccade.pipelines.sources import Index, Reader, Source
from saccade.pipelines.sources.fingerprint import spread
from saccade.pipelines.sources.table import read_table
from saccade.pipelines.sources.table_source import with_table

FORK = get_context("fork")  # the libraries are in memory already: what grows is the data's

SIZES = 30_000, 100_000, 300_000
PROJECTED = 1_281_167, 14_000_000, 1_000_000_000
TRAINED = {  # by executors that read images when they are due; auto takes threads for so few steps
    "300,000 files": ("reference", partial(write_folder, size=300_000)),
    "tars of 1,000,000 samples": ("reference", partial(write_tars, size=1_000_000)),
    "a sparse .beton of 60 GB": ("ffcv", partial(write_beton, size=20_000, length=60 * 10**9)),
}
COLUMNS = {  # of the table: name -> (its unit, what a number is divided by)
    "first_s": ("first s", 1),
    "first_cpu_us": ("us/sample", 1),
    "known_s": ("known s", 1),
    "own_bytes": ("own MB", 1e6),
    "two_bytes": ("2nd MB", 1e6),
    "worker_bytes": ("worker MB", 1e6),
    "order_s": ("order ms", 1e-3),
    "knn_s": ("kNN s", 1),
    "knn_bytes": ("kNN MB", 1e6),
}
ROWS = "{}.jpg", "{}", "/moved/set/{}.jpg"  # how a CSV names the images: paths, without the extension, from elsewhere
BOUNDED = ("first_cpu_us", "worker_bytes", "order_s", "knn_s", "knn_bytes")


def own_bytes() -> int:
    """Bytes of this process that it shares neither with others nor with a file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def look(place: Path, cache: Path, answer: Connection) -> None:
    """In a process of its own: what opening costs, an order, what online kNN reads, and a worker forked from it."""
    os.environ["SACCADE_CACHE"] = str(cache)
    before, started, used = own_bytes(), time.perf_counter(), time.process_time()
    source, _ = open_data(str(place))
    found: dict[str, float] = {"open_s": time.perf_counter() - started, "cpu_s": time.process_time() - used}
    _ = source.name_of(len(source) // 2), source.label_of(len(source) // 2)
    started = time.perf_counter()
    Order(len(source), 1024).batches(0)[0]
    found |= {"order_s": time.perf_counter() - started, "own_bytes": own_bytes() - before}
    started = time.perf_counter()
    few = source.subset(spread(len(source), 10_000))
    for i in range(0, len(few), 10):  # a tenth of what online kNN reads, once in a run
        few.read(i)
    found |= {"knn_s": time.perf_counter() - started, "knn_bytes": own_bytes() - before - found["own_bytes"]}
    here, there = FORK.Pipe()
    worker = FORK.Process(target=work, args=(source, there))
    worker.start()
    found["worker_bytes"] = here.recv()
    worker.join()
    answer.send(found)
    answer.recv()  # another process of the run opens it beside this one


def work(source: Source, answer: Connection) -> None:
    before = own_bytes()
    for i in range(0, len(source), len(source) // 1000):
        _ = source.label_of(i), source.name_of(i)
    answer.send(own_bytes() - before)


def labels(size: int, row: str, folder: Path, answer: Connection) -> None:
    """In a process of its own: a CSV of labels for a set of so many names, matched and numbered."""
    for count in (100, size):  # the first: compiled
        names = [f"{k % 1000:04d}/{k:08d}" for k in range(count)]
        table = folder / "labels.csv"
        table.write_text("file,label\n" + "".join(f"{row.format(n)},class {n[:4]}\n" for n in names))
        source = Source("names", Index.of([f"{name}.jpg" for name in names]), Reader())
        del names
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before, used = _peak(), time.process_time()
        with_table(source, read_table(table))
        found = {"cpu_s": time.process_time() - used, "peak_bytes": _peak() - before}
    answer.send(found)


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main(argv: list[str] | None = None) -> int:
    """Sets of small images, opened by processes of their own: the first time; then known, by two of a run together."""
    command = argparse.ArgumentParser(prog="benchmarks.opening", description=main.__doc__)
    command.add_argument("--sizes", default=",".join(map(str, SIZES)), help="samples, with commas between")
    command.add_argument("--kinds", default=",".join(WRITERS))
    command.add_argument(
        "--train", action="store_true", help="also train for twenty steps on large sets (4 GB of disk)"
    )
    command.add_argument("--labels", type=int, default=0, metavar="ROWS", help="also a CSV of labels of so many rows")
    command.add_argument("--json", metavar="FILE", help="also write all numbers as JSON")
    flags = command.parse_args(argv)
    sizes, rows = [int(size) for size in flags.sizes.split(",")], []
    print(f"{'':<8}{'samples':>14}" + "".join(f"{title:>11}" for title, _ in COLUMNS.values()))
    for kind in filter(None, flags.kinds.split(",")):
        found = [measure(kind, size) for size in sizes]
        rows += found + [projected(found, size) for size in PROJECTED]
        for row in rows[-len(found) - len(PROJECTED) :]:
            cells = "".join(f"{row[name] / unit:>11.3f}" for name, (_, unit) in COLUMNS.items())
            print(f"{kind:<8}{row['samples']:>14,}{cells}{'  projected' * row['projected']}", flush=True)
    tables = {row: _labelled(flags.labels, row) for row in ROWS} if flags.labels else {}
    trained = {name: train(name) for name in TRAINED} if flags.train else {}
    if flags.json:
        record = {"date": time.strftime("%Y-%m-%d"), "commit": git_commit(), "load": os.getloadavg()[0]}
        record |= {"rows": rows, "labels": tables, "trained": trained, "hardware": hardware(), "versions": versions()}
        write_atomically(Path(flags.json), lambda file: file.write((json.dumps(record, indent=1) + "\n").encode()))
    return 0


def measure(kind: str, size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="saccade-opening-") as scratch:
        small, place, cache = (Path(scratch) / name for name in ("small", "data", "cache"))
        WRITERS[kind](small, 64)
        WRITERS[kind](place, size)
        open_data(str(small))  # compiled
        (first,) = _looked(place, cache, 1)
        known, second = _looked(place, cache, 2)
    row = {"kind": kind, "samples": size, "projected": False, "first_s": first["open_s"], "known_s": known["open_s"]}
    row |= {"first_cpu_us": 1e6 * first["cpu_s"] / size, "two_bytes": second["own_bytes"]}
    return row | {name: known[name] for name in ("own_bytes", "worker_bytes", "order_s", "knn_s", "knn_bytes")}


def _labelled(size: int, row: str) -> dict[str, float]:
    here, there = FORK.Pipe()
    with tempfile.TemporaryDirectory(prefix="saccade-opening-") as scratch:
        process = FORK.Process(target=labels, args=(size, row, Path(scratch), there))
        process.start()
        found = here.recv()
        process.join()
    told = f"{found['cpu_s']:.1f} s of CPU, {found['peak_bytes'] / 1e6:.0f} MB at most"
    print(f"--labels, {size:,} rows {row.format('CLASS/NAME')}: {told}", flush=True)
    return found


def projected(found: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """A straight line through what was measured; of what does not grow, the most."""
    samples, row = [one["samples"] for one in found], {"kind": found[0]["kind"], "samples": size, "projected": True}
    for name in COLUMNS:
        slope, start = np.polyfit(samples, [one[name] for one in found], 1)
        most = max(one[name] for one in found)
        row[name] = most if name in BOUNDED else float(max(0.0, slope * size + start))
    return row


def _looked(place: Path, cache: Path, processes: int) -> list[dict[str, float]]:
    pipes = [FORK.Pipe() for _ in range(processes)]
    running = [FORK.Process(target=look, args=(place, cache, there)) for _, there in pipes]
    for process in running:
        process.start()
    found = [here.recv() for here, _ in pipes]
    for (here, _), process in zip(pipes, running, strict=True):
        here.send(None)
        process.join()
    return found


def train(name: str) -> dict[str, Any]:
    """Twenty steps of 32 images of 32 pixels; the run's own lines last. Twice: fresh, and known."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="saccade-opening-") as scratch:
        place = Path(scratch) / "data"
        executor, write = TRAINED[name]
        write(place)
        for when in ("fresh", "known"):
            words = ["-m", "saccade.train", "--data", str(place), "--method", "simclr", "--backbone", "test_resnet"]
            words += ["--batch-size", "32", "--image-size", "32", "--steps", "20", "--eval-every", "0", "--no-report"]
            words += [
                "--device",
                "cpu",
                "--workers",
                "1",
                "--pipeline",
                executor,
                "--out",
                f"{scratch}/{when}",
                "--log",
                "lines",
            ]
            environment = os.environ | {"SACCADE_CACHE": f"{scratch}/cache"}
            started = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            assert process.stdout is not None
            said = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise RuntimeError(
                    f"training on {name} ended with {os.waitstatus_to_exitcode(status)}:\n{said[-2000:]}"
                )
            config = json.loads((Path(scratch) / when / "config.json").read_text())
            found[when] = {"seconds": time.perf_counter() - started, "peak_bytes": 1024 * usage.ru_maxrss}
            found["data"] = next((line.strip() for line in said.splitlines() if line.strip().startswith("data ")), "")
            found["steps"] = config["steps"]
            print(
                f"{name}, {when}: 20 steps in {found[when]['seconds']:.1f} s, {usage.ru_maxrss / 1e6:.2f} GB",
                flush=True,
            )
    return found


if __name__ == "__main__":
    run_command("benchmarks.opening", main)
