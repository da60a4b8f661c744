"""python -m benchmarks.opening: what a data set costs before its first step, at growing sizes, and at sizes beyond."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from saccade.base.command import run_command
from saccade.base.files import write_atomically
from saccade.base.machine import git_commit, hardware, versions

SIZES = 10_000, 100_000, 300_000
PROJECTED = 1_281_167, 14_000_000, 1_000_000_000
_PER_FOLDER, _PER_SHARD = 1_000, 10_000
_PROBE = """
import json, os, sys, time
import torch
from saccade.pipelines.order import Order
from saccade.pipelines.sources import FolderSource
from saccade.pipelines.sources.shards import ShardSource
from pathlib import Path

def held():  # bytes of this process's own, not shared with others or with a file
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

kind, place = sys.argv[1], Path(sys.argv[2])
Order(64, 8).batches(0)[0]  # compiled
before, started = held(), time.perf_counter()
source = FolderSource(place) if kind == "folder" else ShardSource(sorted(place.glob("*.tar")))
opened, size = time.perf_counter() - started, held() - before
batches, started = Order(len(source), 1024).batches(0), time.perf_counter()
first = batches[0]
ordered = time.perf_counter() - started
found = {"samples": len(source), "open_s": opened, "bytes": size, "order_s": ordered, "all_bytes": held() - before}
print(json.dumps(found))
"""


def main(argv: list[str] | None = None) -> int:
    """Empty files and tars of small members; each opened twice, in a process of its own: the first time, and known."""
    command = argparse.ArgumentParser(prog="benchmarks.opening", description=main.__doc__)
    command.add_argument("--sizes", default=",".join(map(str, SIZES)), help="samples, with commas between")
    command.add_argument("--kinds", default="folder,tar")
    command.add_argument("--json", metavar="FILE", help="also write all numbers as JSON")
    flags = command.parse_args(argv)
    sizes, rows = [int(size) for size in flags.sizes.split(",")], []
    print(f"{'':<8}{'samples':>14}{'first':>10}{'known':>10}{'own MB':>10}{'order ms':>10}")
    for kind in flags.kinds.split(","):
        found = [measure(kind, size) for size in sizes]
        rows += found + [projected(found, size) for size in PROJECTED]
        for row in rows[-len(found) - len(PROJECTED) :]:
            print(
                f"{kind:<8}{row['samples']:>14,}{row['first_s']:>9.2f}s{row['known_s']:>9.3f}s"
                f"{row['known_bytes'] / 1e6:>10.2f}{1e3 * row['order_s']:>10.2f}{'  projected' * row['projected']}",
                flush=True,
            )
    if flags.json:
        record = {"date": time.strftime("%Y-%m-%d"), "commit": git_commit(), "rows": rows}
        record |= {"hardware": hardware(), "versions": versions()}
        write_atomically(Path(flags.json), lambda file: file.write((json.dumps(record, indent=1) + "\n").encode()))
    return 0


def measure(kind: str, size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="saccade-opening-") as scratch:
        place = Path(scratch) / "data"
        (write_folder if kind == "folder" else write_tars)(place, size)
        first, known = (_opened(kind, place, Path(scratch) / "cache") for _ in range(2))
    return {
        "kind": kind,
        "samples": size,
        "projected": False,
        "first_s": first["open_s"],
        "known_s": known["open_s"],
        "first_bytes": first["bytes"],
        "known_bytes": known["all_bytes"],
        "order_s": known["order_s"],
    }


def projected(found: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """A straight line through what was measured."""
    samples, row = [one["samples"] for one in found], {"kind": found[0]["kind"], "samples": size, "projected": True}
    for name in ("first_s", "known_s", "first_bytes", "known_bytes", "order_s"):
        slope, start = np.polyfit(samples, [one[name] for one in found], 1)
        row[name] = float(max(0.0, slope * size + start))
    return row


def _opened(kind: str, place: Path, cache: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, kind, str(place)],
        env=os.environ | {"SACCADE_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def write_folder(place: Path, size: int) -> None:
    """Empty .jpg files, a thousand a class."""
    for first in range(0, size, _PER_FOLDER):
        folder = place / f"class{first // _PER_FOLDER:05d}"
        folder.mkdir(parents=True)
        for k in range(first, min(first + _PER_FOLDER, size)):
            os.close(os.open(folder / f"image_{k:09d}.jpg", os.O_CREAT))
    old = time.time() - 60  # as if written a minute ago
    for folder in (place, *place.iterdir()):
        os.utime(folder, (old, old))


def write_tars(place: Path, size: int) -> None:
    """KEY.jpg of 64 bytes and KEY.cls, ten thousand samples a shard."""
    place.mkdir()
    for first in range(0, size, _PER_SHARD):
        with tarfile.open(place / f"x-{first // _PER_SHARD:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for k in range(first, min(first + _PER_SHARD, size)):
                for ending, content in (("jpg", bytes(64)), ("cls", b"%d" % (k % 1000))):
                    member = tarfile.TarInfo(f"sample{k:09d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    run_command("benchmarks.opening", main)
