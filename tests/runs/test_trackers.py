"""What --track writes is that of one run, however often it was killed and resumed."""

import csv
from pathlib import Path

import numpy as np
import pytest

from saccade import train

SMALL = [
    "--backbone",
    "test_resnet",
    "--batch-size",
    "16",
    "--image-size",
    "16",
    "--device",
    "cpu",
    "--eval-every",
    "0",
]


def test_trackers_go_back_to_the_checkpoint_that_a_run_goes_on_from(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "data.npz", images=images)
    out = tmp_path / "run"
    flags = ["--data", str(tmp_path / "data.npz"), "--out", str(out), *SMALL, "--steps", "6", "--log-every", "1"]
    assert train.main([*flags, "--checkpoint-every", "2", "--keep", "3", "--track", "csv,tensorboard"]) == 0
    for step in (4, 6):  # as killed after step 6, the last checkpoint that of step 2
        next((out / "checkpoints").glob(f"step-{step:08d}*")).unlink()
    with open(out / "metrics.csv", "a") as file:
        file.write("7,lo")  # half a line, as a kill leaves it
    assert train.main(["--resume", str(out)]) == 0
    with open(out / "metrics.csv", newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["name"] == "loss"]
    assert steps == [1, 2, 3, 4, 5, 6]
    events = EventAccumulator(str(next(_folders(out))))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def _folders(out: Path):
    return (file.parent for file in out.rglob("events.out.tfevents.*"))
