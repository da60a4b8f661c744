"""python -m benchmarks.soak PICTURE --json FILE: what 2,000 short epochs leave behind in memory, files and threads.

A real run as a process of its own, looked at from outside: a second one that ends and is continued would hide what
grows. Its TMPDIR is a folder of its own, so that nothing of others is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.files import TEMPORARY, write_atomically
from saccade.runs.folder import RunFolder
from saccade.tools.benchmark.picture import new_axes, save_figure
from saccade.tools.benchmark.rows import environment

IMAGES, SIDE, BATCH = 64, 32, 32  # two steps an epoch
KINDS = {  # name: flags; the executors that start threads and worker processes of their own
    "resident": ["--pipeline", "resident"],
    "reference, 2 workers": ["--pipeline", "reference", "--workers", "2"],
}
SHOWN = {  # of a sample: title of its panel
    "rss_mb": "memory of the run, MB",
    "workers_pss_mb": "its workers' own share (PSS), MB",
    "descriptors": "open files",
    "threads": "threads",
    "temporary": "temporary files",
}
COLOURS = "#1f77b4", "#e69f00"
SETTLED = 0.25  # of the run: until then caches fill and libraries set themselves up


def soak(epochs: int, every: int, scratch: Path) -> dict[str, list[dict[str, float]]]:
    """kind -> samples, one each `every` epochs."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, SIDE, SIDE, 3), np.uint8)
    np.savez(scratch / "train.npz", images=images, labels=np.arange(IMAGES) % 4)
    found = {}
    for kind, flags in KINDS.items():
        out = scratch / kind.replace(", ", "-").replace(" ", "-")
        found[kind] = list(watched(command(scratch / "train.npz", out, epochs, every, flags), out, every))
        print(f"{kind}: {len(found[kind])} samples, to epoch {found[kind][-1]['epoch']:.0f}", flush=True)
    return found


def command(data: Path, out: Path, epochs: int, every: int, flags: list[str]) -> list[str]:
    """train.py with everything on that happens again and again: lines, kNN, checkpoints, a tracker."""
    steps = every * IMAGES // BATCH
    words = f"--method byol --backbone test_resnet --batch-size {BATCH} --image-size {SIDE} --device cpu --no-report"
    words += f" --epochs {epochs} --log-every {steps} --eval-every {2 * every} --checkpoint-every {steps} --track csv"
    where = ["--data", str(data), "--val-data", str(data), "--out", str(out)]
    return [sys.executable, "-m", "saccade.train", *words.split(), *where, *flags]


def watched(argv: list[str], out: Path, every: int) -> Iterator[dict[str, float]]:
    """A sample whenever the run has written another line."""
    temporary = Path(tempfile.mkdtemp(dir=out.parent))
    environ = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    log = out.with_suffix(".log")
    with log.open("wb") as said, subprocess.Popen(argv, stdout=said, stderr=said, env=environ) as run:
        folder, seen = RunFolder(out), 0
        while run.poll() is None:
            time.sleep(0.05)
            lines = [record for record in folder.metrics() if "loss" in record]
            if len(lines) > seen:
                seen = len(lines)
                try:
                    yield {"epoch": lines[-1]["epoch"], **sample(run.pid, out, temporary)}
                except OSError:  # it has ended in between
                    continue
    if run.returncode:
        raise UserError(f"the run ended with {run.returncode}: {log.read_text()[-2000:]}")


def sample(process: int, out: Path, temporary: Path) -> dict[str, float]:
    """What the process and its children hold now, and what lies in its temporary places."""
    proc, children = Path(f"/proc/{process}"), list(descendants(process))
    unfinished = [path for path in out.rglob(".*") if TEMPORARY.fullmatch(path.name)]
    return {
        "rss_mb": kilobytes(proc / "smaps_rollup", "Rss") / 1e3,
        "workers_pss_mb": sum(kilobytes(Path(f"/proc/{child}/smaps_rollup"), "Pss") for child in children) / 1e3,
        "workers": len(children),
        "descriptors": len(os.listdir(proc / "fd")),
        "threads": len(os.listdir(proc / "task")),
        "temporary": len(list(temporary.rglob("*"))) + len(unfinished),
        "checkpoints": len(list(out.glob("checkpoints/*"))),
    }


def descendants(process: int) -> Iterator[int]:
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from descendants(child)


def kilobytes(file: Path, name: str) -> float:
    return next(float(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(f"{name}:"))


def growth(samples: list[dict[str, float]], name: str) -> float:
    """How much more a thousand epochs bring, by a line through what came after SETTLED of the run."""
    kept = samples[int(len(samples) * SETTLED) :]
    slope, _ = np.polyfit([s["epoch"] for s in kept], [s[name] for s in kept], 1)
    return round(1000 * float(slope), 3)


def draw(found: dict[str, list[dict[str, float]]], epochs: int, file: Path) -> None:
    figure, panels = new_axes(len(SHOWN), 8.0)
    figure.suptitle(f"{epochs:,} short epochs, a kNN evaluation and a checkpoint every few", fontsize=10)
    for axes, (name, title) in zip(panels, SHOWN.items(), strict=True):
        for colour, (kind, samples) in zip(COLOURS, found.items(), strict=True):
            axes.plot([s["epoch"] for s in samples], [s[name] for s in samples], color=colour, label=kind)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_ylim(0, 1.3 * max(1.0, *(s[name] for samples in found.values() for s in samples)))
    panels[0].legend(frameon=False, fontsize=8, loc="lower right")
    panels[-1].set_xlabel("epochs", fontsize=9)
    save_figure(figure, file)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("picture", type=Path)
    p.add_argument("--json", type=Path)
    p.add_argument("--epochs", type=int, default=2000)
    p.add_argument("--every", type=int, default=20, help="epochs between two samples")
    flags = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        found = soak(flags.epochs, flags.every, Path(scratch))
    grown = {kind: {name: growth(samples, name) for name in SHOWN} for kind, samples in found.items()}
    for kind, rates in grown.items():
        print(f"{kind}, more in 1,000 epochs: " + ", ".join(f"{name} {rate:+.3f}" for name, rate in rates.items()))
    draw(found, flags.epochs, flags.picture)
    if flags.json:
        words = "python -m benchmarks.soak PICTURE --json FILE"
        kept = {kind: {name: [s[name] for s in samples] for name in samples[0]} for kind, samples in found.items()}
        record = {"command": words, **environment(), "more_in_1000_epochs": grown, "samples": kept}
        text = re.sub(r"(?<=[\[,])\s+(?=[\d.])|(?<=\d)\s+(?=\])", "", json.dumps(record, indent=1))  # a row, a line
        write_atomically(flags.json, lambda f: f.write((text + "\n").encode()))
    return 0


if __name__ == "__main__":
    run_command("soak", main)
