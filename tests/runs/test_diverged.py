"""A step that goes wrong changes nothing, and the run ends with what it was and how to go on."""

import copy
import re
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from saccade import train
from saccade.models.learner import Learner
from saccade.runs import monitor as monitor_module
from saccade.runs import session as session_module
from saccade.runs.checkpoint import load_checkpoint
from saccade.runs.folder import RunFolder
from saccade.runs.guard import Guard
from saccade.runs.monitor import Monitor
from saccade.tools.benchmark.suites import noise
from saccade.tools.benchmark.trainer import Trainer

SMALL = ["--backbone", "test_resnet", "--batch-size", "16", "--seed", "1", "--image-size", "16", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8)
    np.savez(file := tmp_path_factory.mktemp("data") / "train.npz", images=images)
    return file


def state(trainer: Trainer) -> list[torch.Tensor]:
    """Every number of weights, statistics, queue and optimizer."""
    slots = [v for slot in trainer.session.optimizer.state_dict()["state"].values() for v in slot.values()]
    return copy.deepcopy([*trainer.learner.state_dict().values(), *(v for v in slots if isinstance(v, torch.Tensor))])


@pytest.mark.parametrize(("method", "optimizer"), [("moco-v2", "lars"), ("ressl", "sgd"), ("ressl", "adamw")])
def test_a_step_without_a_finite_gradient_changes_no_weight_statistic_or_queue(method, optimizer):
    more = ["--set", f"optimizer.name={optimizer}", "--set", "options.queue_size=32"]
    trainer = Trainer(["--method", method, "--recipe", "cifar10", *SMALL, *more], noise(32, 16))
    batch = next(iter(trainer.pipeline))
    names = list(trainer.learner.state_dict())
    for known in range(2):  # the first good step makes the optimizer's state
        before = state(trainer)
        views = {name: view.clone() for name, view in batch.views.items()}
        for view in views.values():
            view[0, 0, 0, 0] = float("nan")
        trainer.step(replace(batch, views=views))
        assert bool(trainer.session.diverged) and not bool(trainer.session.gradient_norm.isfinite())
        after = state(trainer)
        moved = [not torch.equal(old, new) for old, new in zip(before, after, strict=bool(known))]
        assert not any(m for m, name in zip_longest(moved, names) if not (name or "").startswith("teacher"))
        assert all(bool(t.isfinite().all()) for t in after)
        trainer.step(batch)
        assert not bool(trainer.session.diverged)
        assert not all(map(torch.equal, before, state(trainer)))


def test_a_loss_beyond_all_measure_is_absurd_and_one_that_falls_is_not():
    guard = Guard(torch.nn.Linear(1, 1))
    said = [bool(guard.absurd(torch.tensor(x))) for x in (7.0, 70.0, 0.0, -3.0, 5.8e23, float("nan"), float("-inf"))]
    assert said == [False, False, False, False, True, True, True]
    assert bool(Guard(torch.nn.Linear(1, 1)).absurd(torch.tensor(float("inf"))))


def failing(monkeypatch: pytest.MonkeyPatch, step: int, wrong: float) -> None:
    """The loss times `wrong` from this step (1-based) on."""
    forward = Learner.forward

    def scaled(self: Learner, *args, **kwargs):
        losses = forward(self, *args, **kwargs)
        return losses if self._step + 1 < step else {**losses, "loss": losses["loss"] * wrong}

    monkeypatch.setattr(Learner, "forward", scaled)


@pytest.mark.parametrize("wrong", [float("nan"), pytest.param(1e23, marks=pytest.mark.slow)])
def test_a_run_that_diverges_names_step_losses_and_checkpoint_and_goes_on_from_it(
    data, tmp_path, capsys, monkeypatch, wrong
):
    out = tmp_path / "run"
    flags = ["--data", str(data), *SMALL, "--eval-every", "0", "--log-every", "1000"]
    flags += ["--checkpoint-every", "2", "--steps", "12", "--out", str(out)]
    with monkeypatch.context() as patched:
        failing(patched, 7, wrong)
        assert train.main(flags) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "the run diverged at step 7: loss " in said and "manipulation " in said and "gradient norm " in said
    assert f"the last good checkpoint is {out}/checkpoints/step-00000006.safetensors" in said
    assert not (out / "backbone.safetensors").exists() and load_checkpoint(out)["step"] == 6
    found = re.search(r"--resume (\S+) --lr (\S+) --allow-changes", said)
    assert found is not None
    assert train.main(["--resume", found[1], "--lr", found[2], "--allow-changes"]) == 0
    assert (out / "backbone.safetensors").exists()


def test_a_run_that_diverges_before_its_first_checkpoint_saves_nothing(data, tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--data", str(data), "--out", str(out), *SMALL, "--steps", "12", "--lr", "1e30", "--eval-every", "0"]
    assert train.main(flags) == 2
    said = capsys.readouterr().err
    assert "the run diverged at step " in said and "nothing was saved of it; start again with a lower --lr" in said
    assert not (out / "backbone.safetensors").exists() and not list((out / "checkpoints").glob("*.safetensors"))


def test_gradients_that_overflow_in_fp16_for_ever_end_the_run_and_those_of_a_while_do_not(data, tmp_path, monkeypatch):
    """torch's own scaler, which works on a CPU too: it skips steps and halves its scale."""
    trainer = Trainer(["--method", "byol", "--recipe", "cifar10", *SMALL], noise(32, 16))
    session, batch = trainer.session, next(iter(trainer.pipeline))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    monkeypatch.setattr(session.accelerator, "scaler", scaler)
    monkeypatch.setattr(session, "optimizer", AcceleratedOptimizer(session._plain_optimizer, False, scaler))
    weight, overflows = next(p for p in trainer.learner.student.parameters()), True
    weight.register_hook(lambda gradient: gradient * float("inf") if overflows else gradient)
    before = weight.detach().clone()
    for module in (session_module, monitor_module):
        monkeypatch.setattr(module, "SKIPS", few := 4)
    for _ in range(few - 1):
        trainer.step(batch)
        assert not bool(session.diverged)
    overflows = False
    trainer.step(batch)
    assert not torch.equal(weight, before) and not bool(session.diverged)
    overflows = True
    with Monitor(RunFolder(tmp_path), session) as monitor:
        for _ in range(few):
            assert not bool(session.diverged)
            monitor.step(session.step(batch, lr=1e-4))
        assert bool(session.diverged)
        assert f"in fp16, whose gradients overflowed in each of {few} steps" in str(monitor.diverged())
