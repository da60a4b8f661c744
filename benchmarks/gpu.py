"""python -m benchmarks.gpu OUT.json: is a GPU right, and then how fast; every GPU number of docs/performance.md.

Each part is a process of its own with a time limit, so that a fault of the GPU, a hang or a full memory ends that part
alone; the file is rewritten, whole, after every part. What is right comes first. Without a GPU the same parts run in
miniature, to be tested; their rows say so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_right import RIGHT
from benchmarks.gpu_speed import SPEED
from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.base.machine import git_commit
from saccade.tools.benchmark.rows import columns, read_rows

Record = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12}  # FLOP/s, dense, data sheets
LEAST = 15  # seconds: a part with less is left out


@dataclass(frozen=True)
class Job:
    """A part as a process: `command` and, at its end, the file for its rows and the seconds it should take."""

    name: str
    command: tuple[str, ...]
    limit: float  # seconds after which it is killed


LIMITS = {  # seconds
    "kernels": 60,
    "parity": 120,
    "dali_buffer": 60,
    "steps": 60,
    "repeatable": 60,
    "ceilings": 40,
    "waits": 60,
    "stec_cifar10": 120,
    "large_views": 60,
    "simclr_cifar10": 100,
    "rsa_cifar100": 100,
    "launches": 100,
    "large_steps": 200,
    "photos": 150,
    "launches_compiled": 120,
    "what_helps": 300,
}


def jobs(names: list[str], quick: bool, miniature: bool) -> list[Job]:
    python = (sys.executable, "-m", "benchmarks.gpu_part")
    slower = 5 if miniature else 1
    return [Job(n, (*python, n, *(["--quick"] if quick else [])), slower * LIMITS[n]) for n in names]


def report(out: Path, parts: list[Job], minutes: float) -> int:
    """Run the parts until `minutes` are spent; 0 if all are right and measured, 1 if any failed or was left out.

    Rows that `out` already has of other parts are kept: several calls make one report.
    """
    names = {part.name for part in parts}
    records = [r for r in (read_rows(out) if out.exists() else []) if r.get("part") not in names]
    deadline = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="saccade-gpu-rows-") as folder:
        for part in parts:
            start = time.monotonic()
            records += _run(part, Path(folder) / f"{part.name}.json", deadline - start)
            records = finished(records)
            _write(out, records)
            made = [r for r in records if r["part"] == part.name]
            print(f"\n{part.name}: {time.monotonic() - start:.0f} s\n{table(made)}", flush=True)
    failed = [r for r in records if r["part"] in names and "error" in r]
    print(f"\n{len(parts)} parts, {len(records)} rows, {len(failed)} of them failed" + "".join(map(_line, failed)))
    return 1 if failed else 0


def _run(part: Job, rows: Path, left: float) -> list[Record]:
    """The part's rows, and one that says how it ended where that was not well."""
    if left < LEAST:
        return [_failed(part, f"left out: {max(0, left):.0f} s were left")]
    limit = min(part.limit, left)
    command = [*part.command, str(rows), "--seconds", f"{max(LEAST, limit - LEAST):.0f}"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True, cwd=ROOT)
        try:
            code = process.wait(limit)
            why = None if code == 0 else f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            why = f"still at work after {limit:.0f} s"
        finally:
            _end(process)  # and its workers, also where the report itself is interrupted
        said.seek(0)
        words = said.read().strip().splitlines()
    made = read_rows(rows) if rows.exists() else []
    if why is None:
        return made
    return [*made, _failed(part, f"{why}: {words[-1][:300]}" if words else why)]


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failed(part: Job, why: str) -> Record:
    date = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return {
        "kind": "failed",
        "recipe": part.name,
        "part": part.name,
        "error": why,
        "date": date,
        "commit": git_commit(),
    }


def _write(out: Path, records: list[Record]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda f: f.write((json.dumps(records, indent=1) + "\n").encode()))


def finished(records: list[Record]) -> list[Record]:
    """With what follows from several rows: each step's floor by the measured product, MFU, the loader by the step."""
    product = next((r["flop_per_second"] for r in records if "flop_per_second" in r), None)
    step = next(
        (r["images_per_second"] for r in records if r["kind"] == "model" and r.get("backbone") == "resnet50"), None
    )
    for r in records:
        if r.get("tflop_per_image") and r.get("images_per_second"):
            reached = r["tflop_per_image"] * 1e12 * r["images_per_second"]
            peak = next((p for name, p in PEAK_BF16.items() if name in str(r["device"])), None)
            r["mfu"] = round(reached / peak, 4) if peak else None
            if product:
                r["floor_ms"] = round(1e3 * r["batch_size"] * r["tflop_per_image"] * 1e12 / product, 3)
                r["share_of_product"] = round(reached / product, 4)
        if r["part"] == "photos" and step and r.get("images_per_second"):
            r["times_resnet50_step"] = round(r["images_per_second"] / step, 2)
    return records


TOLD = ("difference", "allowed", "different", "deterministic", "pipeline_waits", "host_waits", "launches", "step_ms")
MORE = ("busy_share", "bytes_per_second", "flop_per_second", "minutes_projected", "mfu", "floor_ms", "variant", "why")


def table(records: list[Record]) -> str:
    """Aligned text: what, its rate, and what else was found."""
    lines: list[tuple[str, ...]] = [("what", "executor", "recipe", "images/s", "found")]
    for r in records:
        found = {k: r[k] for k in (*TOLD, *MORE, "share_of_product", "error") if r.get(k) is not None}
        rate = f"{r['images_per_second']:,.0f}" if r.get("images_per_second") else ""
        told = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())
        lines.append((r["kind"], r.get("executor", ""), r.get("recipe", ""), rate, told))
    return columns(lines, left=5)


def _line(record: Record) -> str:
    return f"\n  {record['part']}, {record.get('recipe')}: {record['error']}"


def main(argv: list[str] | None = None) -> int:
    """Is a GPU right, and then how fast: every GPU number of docs/performance.md, a process for each part."""
    known = [*RIGHT, *SPEED]
    command = argparse.ArgumentParser(prog="benchmarks.gpu", description=main.__doc__)
    command.add_argument("out", type=Path)
    command.add_argument(
        "--parts", default=",".join(known), help=f"some of {','.join(known)} (default: all, in this order)"
    )
    command.add_argument("--minutes", type=float, default=9, help="begin nothing after these (default: 9)")
    command.add_argument("--quick", action="store_true", help="shorter turns and fewer rounds")
    flags = command.parse_args(argv)
    names = flags.parts.split(",")
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--parts {','.join(unknown)} is unknown; use some of {', '.join(known)}.")
    miniature = not torch.cuda.is_available()
    if miniature:
        print("no GPU here: the parts run in miniature; their numbers mean nothing", file=sys.stderr)
    return report(flags.out, jobs(names, flags.quick, miniature), flags.minutes)


if __name__ == "__main__":
    run_command("benchmarks.gpu", main)
