"""python -m benchmarks.standstill --json FILE: for how long training stands still when a checkpoint is written."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from saccade import train
from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.runs.checkpoint import checkpoints
from saccade.tools.benchmark.rows import environment

USUAL = 600.0  # seconds between two checkpoints where nothing else is asked for
STEPS_A_CHECKPOINT = 10


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", type=Path)
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--backbone", default="resnet18")
    flags = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        data, out = Path(scratch) / "data.npz", Path(scratch) / "run"
        np.savez(data, images=np.random.default_rng(0).integers(0, 256, (128, 32, 32, 3), np.uint8))
        words = f"--method byol --recipe cifar10 --backbone {flags.backbone} --batch-size 32 --steps {flags.steps}"
        words += f" --checkpoint-every {STEPS_A_CHECKPOINT} --eval-every 0 --no-report --device cpu"
        if train.main([*words.split(), "--data", str(data), "--out", str(out)]):
            raise UserError("the run did not end as it should.")
        summary, size = json.loads((out / "summary.json").read_text()), checkpoints(out)[-1].stat().st_size
    share = summary["checkpoint_wait"]
    stood = share * summary["seconds"] / (1 - share)
    each = stood / max(1, (flags.steps - 1) // STEPS_A_CHECKPOINT)
    told = {
        "command": "python -m benchmarks.standstill --json FILE",
        "backbone": flags.backbone,
        "checkpoint_mb": round(size / 1e6, 1),
        "seconds_of_training": summary["seconds"],
        "seconds_stood_still_for_one": round(each, 4),
        "share_in_this_run": round(share, 5),
        "share_at_one_in_ten_minutes": round(each / (USUAL + each), 7),
    }
    print(told)
    if flags.json:
        text = json.dumps({**told, **environment()}, indent=1) + "\n"
        write_atomically(flags.json, lambda f: f.write(text.encode()))
    return 0


if __name__ == "__main__":
    run_command("standstill", main)
