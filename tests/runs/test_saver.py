"""Checkpoints by time, written while training goes on; one before an error; a write that fails is tried again."""

import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from saccade import train
from saccade.base.errors import UserError
from saccade.models.learner import Learner
from saccade.pipelines.resident import ResidentPipeline
from saccade.runs import saver as saver_module
from saccade.runs.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from saccade.runs.folder import RunFolder
from saccade.runs.interval import Interval
from saccade.runs.session import Session

SMALL = ["--method", "byol", "--backbone", "test_resnet", "--batch-size", "12", "--device", "cpu", "--steps", "10"]
SMALL += ["--eval-every", "0", "--log-every", "1", "--seed", "3", "--keep", "20"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.npz"
    images = np.random.default_rng(0).integers(0, 256, (48, 16, 16, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(48) % 4)
    return path


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train.main(["--data", str(data), "--out", str(out), *SMALL]) == 0
    return load_checkpoint(out)


def saved(out: Path) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in checkpoints(out)]


def assert_equals(out: Path, whole: dict) -> None:
    found = load_checkpoint(out)
    assert found["pipeline"] == whole["pipeline"]
    assert all(torch.equal(tensor, found["learner"][name]) for name, tensor in whole["learner"].items())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10m", (600, 0, 0)), ("30s", (30, 0, 0)), ("0.5h", (1800, 0, 0)), ("500", (0, 500, 0)), ("2ep", (0, 0, 2))],
)
def test_intervals_are_times_steps_or_epochs(text, expected):
    assert Interval.parse(text) == Interval(*expected)


@pytest.mark.parametrize("text", ["0", "0m", "-5", "10d", "1.5ep", "", "ep", "9" * 400, "inf"])
def test_what_is_no_interval_is_refused_before_anything_is_made(text, tmp_path, capsys):
    assert train.main([f"--checkpoint-every={text}", "--out", str(tmp_path / "run")]) == 2
    assert "is no interval" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_time_counts_the_end_of_an_epoch_too():
    every = Interval.parse("10m")
    assert not every.due(7, 4, 599) and every.due(7, 4, 600)
    assert not every.due(8, 4, 59) and every.due(8, 4, 60)
    assert [step for step in range(1, 13) if Interval.parse("1ep").due(step, 4, 0)] == [4, 8, 12]


def test_training_goes_on_while_a_checkpoint_is_written_and_its_state_is_that_step_s(
    data, whole, tmp_path, monkeypatch
):
    written, go_on = [], threading.Event()

    def slow(folder, step, state, keep):
        if threading.current_thread() is not threading.main_thread():
            assert go_on.wait(60)
        written.append(step)
        return save_checkpoint(folder, step, state, keep)

    def step(self, *args, **kwargs):
        if self.steps == 6:
            assert not written and saved(out) == []
            go_on.set()
        return take(self, *args, **kwargs)

    take, out = Session.step, tmp_path / "run"
    monkeypatch.setattr(Session, "step", step)
    monkeypatch.setattr(saver_module, "save_checkpoint", slow)
    flags = ["--data", str(data), "--out", str(out), *SMALL, "--checkpoint-every", "0.000001s"]
    assert train.main(flags) == 0
    assert written[0] == 1 and written[-1] == 10 and len(written) >= 3  # none was begun while one was written
    assert_equals(out, whole)
    monkeypatch.undo()
    for path in checkpoints(out)[1:]:
        path.unlink()
    assert train.main(["--resume", str(out)]) == 0
    assert_equals(out, whole)


class Broken(Exception):
    pass


@pytest.mark.parametrize("where", ["data", "forward"])
def test_an_unexpected_error_is_preceded_by_a_checkpoint(data, whole, tmp_path, monkeypatch, capsys, where):
    make, forward, out = ResidentPipeline._batches, Learner.forward, tmp_path / "run"

    def batches(self, epoch, shards):
        for k, batch in enumerate(make(self, epoch, shards)):
            if where == "data" and epoch == 1 and k == 3:
                raise Broken("a decoder's")
            yield batch

    def looked(self, *args, **kwargs):
        losses = forward(self, *args, **kwargs)
        if where == "forward" and self._step == 7:
            raise Broken("after teacher and running statistics have moved")
        return losses

    monkeypatch.setattr(ResidentPipeline, "_batches", batches)
    monkeypatch.setattr(Learner, "forward", looked)
    with pytest.raises(Broken):
        train.main(["--data", str(data), "--out", str(out), *SMALL])
    assert saved(out) == [7]
    assert f"saved step 7; continue with: saccade train --resume {out}" in capsys.readouterr().err
    monkeypatch.undo()
    assert train.main(["--resume", str(out)]) == 0
    assert_equals(out, whole)


def test_half_a_step_is_not_saved(data, tmp_path, monkeypatch):
    def broken(self):
        raise Broken("inside the update")

    monkeypatch.setattr("saccade.models.learner.Learner.end_step", broken)
    with pytest.raises(Broken):
        train.main(["--data", str(data), "--out", str(tmp_path / "run"), *SMALL])
    assert saved(tmp_path / "run") == []


def failing(times: int):
    """save_checkpoint, which fails so often at first."""
    left = [times]

    def save(folder, step, state, keep):
        left[0] -= 1
        if left[0] >= 0:
            raise UserError(f"{folder} cannot be written (No space left on device).")
        return save_checkpoint(folder, step, state, keep)

    return save


@pytest.mark.slow
def test_a_checkpoint_that_fails_is_tried_again_while_training_goes_on(data, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saver_module, "PAUSE", 0.0)
    monkeypatch.setattr(saver_module, "save_checkpoint", failing(3))
    out = tmp_path / "run"
    assert train.main(["--data", str(data), "--out", str(out), *SMALL, "--checkpoint-every", "2"]) == 0
    error = capsys.readouterr().err
    assert "No space left on device). Step 0 is saved, training goes on; trying again in 0 s, 2 of 5" in error
    assert "4 of 5" in error and len(saved(out)) >= 2
    assert_equals(out, whole)


def test_it_gives_up_after_five_times(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saver_module, "PAUSE", 0.0)
    monkeypatch.setattr(saver_module, "save_checkpoint", failing(1000))
    assert train.main(["--data", str(data), "--out", str(tmp_path / "run"), *SMALL, "--checkpoint-every", "1"]) == 2
    assert "5 of 5" in (error := capsys.readouterr().err) and "Traceback" not in error


@pytest.mark.slow
def test_the_last_checkpoint_is_tried_again_too(data, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saver_module, "LAST_PAUSE", 0.0)
    monkeypatch.setattr(saver_module, "save_checkpoint", failing(2))
    assert train.main(["--data", str(data), "--out", str(tmp_path / "run"), *SMALL]) == 0
    assert "Trying again in 0 s, 3 of 3" in capsys.readouterr().err
    assert_equals(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(data, whole, tmp_path, monkeypatch):
    """Hours forward and years back at every look; what is timed is timed by a clock that does not."""
    true, jumps = time.time, iter(lambda: random.choice((-1e8, -3600.0, 0.0, 7200.0, 1e8)), None)
    monkeypatch.setattr(time, "time", lambda: true() + next(jumps))
    out = tmp_path / "run"
    assert train.main(["--data", str(data), "--out", str(out), *SMALL, "--checkpoint-every", "1h"]) == 0
    assert saved(out) == [10]
    assert_equals(out, whole)
    with RunFolder(out) as held:
        held.create(resume=True)
        assert train.main(["--resume", str(out)]) == 2
