"""python -m tools.survey --data PATH --steps 300: every method for a few steps on the same data; does each one learn?

Trains each method with the small embedded recipe (timm's test_resnet) in a process of its own and prints a table: the
loss at the start, at its highest (it rises while a queue fills with real keys) and at the end, kNN top-1 of raw pixels,
of the untrained and the trained backbone, and two signs of collapse, the spread and the effective rank of the features.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import BinaryIO

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.base.machine import git_commit, hardware, versions
from saccade.base.program import command_parser
from saccade.losses.registry import find_method, methods
from saccade.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = (
    ("method", "{}"),
    ("loss_first", "{:.3f}"),
    ("loss_highest", "{:.3f}"),
    ("loss_last", "{:.3f}"),
    ("raw_pixel_knn_top1", "{:.1f}"),
    ("untrained_knn_top1", "{:.1f}"),
    ("knn_top1", "{:.1f}"),
    ("feature_std", "{:.2f}"),
    ("effective_rank", "{:.1f}"),
)
HEADS = ("method", "loss, first", "highest", "last", "raw kNN %", "untrained %", "trained %", "std", "rank")


EXAMPLES = {
    "--data images.npz": "every method for 300 steps on your labelled images",
    "--methods simclr,stec --steps 100 --json survey.json": "two of them, the rows kept",
}


def parser() -> argparse.ArgumentParser:
    p = command_parser("python -m tools.survey", main.__doc__ or "", EXAMPLES)
    p.add_argument("--data", default="textures", help="labelled images with an evaluation split (default: textures)")
    p.add_argument("--steps", type=int, default=300, help="optimizer steps of each method (default: 300)")
    p.add_argument("--batch-size", type=int, default=64, help="images per step (default: 64)")
    p.add_argument("--methods", help="comma-separated (default: all)")
    p.add_argument("--json", help="also write the rows there")
    return p


def main(argv: list[str] | None = None) -> int:
    """Train every method for a few steps on the same data and print what became of it."""
    flags = parser().parse_args(argv)
    if flags.steps < 2:
        raise UserError(f"--steps {flags.steps} shows no trend; give 2 or more.")
    names = flags.methods.split(",") if flags.methods else list(methods())
    for name in names:
        find_method(name)
    rows, started = [], time.monotonic()
    for done, name in enumerate(names):
        left = (
            f", about {(time.monotonic() - started) / done * (len(names) - done) / 60:.0f} minutes left" if done else ""
        )
        print(f"[{done + 1}/{len(names)}] {name}{left}", file=sys.stderr, flush=True)
        rows.append(survey(name, flags.data, flags.steps, flags.batch_size))
        if flags.json:
            record = {
                "command": f"python -m tools.survey --data {Path(flags.data).name} --steps {flags.steps} "
                f"--batch-size {flags.batch_size}",
                "rows": rows,
                "hardware": hardware(),
                "versions": versions(),
                "commit": git_commit(),
                "date": time.strftime("%Y-%m-%d"),
            }
            write_atomically(Path(flags.json), partial(_dump, record))
    print("| " + " | ".join(HEADS) + " |\n|" + "---|" * len(HEADS))
    for row in rows:
        print("| " + " | ".join(form.format(row[key]) for key, form in COLUMNS) + " |")
    return 0


def _dump(record: dict[str, object], file: BinaryIO) -> None:
    file.write((json.dumps(record, indent=1) + "\n").encode())


def survey(method: str, data: str, steps: int, batch_size: int) -> dict[str, object]:
    """Train one method in a process of its own; what its run folder and eval.py say of it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        _run(
            "train.py",
            "--method",
            method,
            "--data",
            data,
            "--recipe",
            "textures",
            "--steps",
            str(steps),
            "--batch-size",
            str(batch_size),
            "--eval-every",
            str(steps),
            "--out",
            str(out),
        )  # as many epochs as steps: at the end only
        quality = json.loads(_run("eval.py", str(out), "--protocol", "knn").splitlines()[-1])
        run = RunFolder(out)
        losses = [r["loss"] for r in run.metrics() if "loss" in r]
        return {
            **run.read_json("summary.json"),
            "loss_first": losses[0],
            "loss_highest": max(losses),
            "loss_last": losses[-1],
            "feature_std": quality["feature_std"],
            "effective_rank": quality["effective_rank"],
        }


def _run(script: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, str(ROOT / script), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"{script} {' '.join(arguments)} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    return done.stdout


if __name__ == "__main__":
    run_command("tools.survey", main)
