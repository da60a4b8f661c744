"""The same command again and again, as a scheduler gives it: it starts a run, continues it, leaves a whole one."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from saccade import train
from saccade.base.files import lock
from saccade.evaluation.online import OnlineKNN
from saccade.runs.checkpoint import load_checkpoint
from saccade.runs.session import Session

FLAGS = [
    "--data",
    "images.npz",
    "--backbone",
    "test_resnet",
    "--batch-size",
    "16",
    "--renderer",
    "torch",
    "--eval-every",
    "0",
    "--steps",
    "6",
]


@pytest.fixture(autouse=True)
def few_images(tmp_path, monkeypatch):
    """They are `images.npz` here."""
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(64) % 4)
    monkeypatch.chdir(tmp_path)


def command(out: Path) -> list[str]:
    return [*FLAGS, "--out", str(out), "--resume", "auto"]


def test_the_same_command_starts_continues_and_finishes_a_run_and_another_is_refused(tmp_path, monkeypatch, capsys):
    assert train.main([*FLAGS, "--out", str(tmp_path / "whole")]) == 0
    step = Session.step
    preempted = []

    def signalled(self, *args, **kwargs):
        if self.steps in (1, 3) and self.steps not in preempted:
            preempted.append(self.steps)
            signal.raise_signal(signal.SIGUSR1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Session, "step", signalled)
    out = tmp_path / "run"
    assert [train.main(command(out)) for _ in range(3)] == [75, 75, 0]
    assert f"--resume {out}" in capsys.readouterr().out
    whole, pieces = load_checkpoint(tmp_path / "whole")["learner"], load_checkpoint(out)["learner"]
    assert all(torch.equal(tensor, pieces[name]) for name, tensor in whole.items())
    assert train.main([*command(out), "--lr", "0.5"]) == 2
    assert "--lr" in capsys.readouterr().err


def test_a_signal_while_knn_is_measured_is_not_kept_waiting_and_the_next_run_measures_it(tmp_path, monkeypatch):
    score, asked = OnlineKNN._backbone_tried, []

    def signalled(self):
        asked.append(self._session.steps)
        if asked[-1] == 2 and asked.count(2) == 1:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("it went on measuring")
        return score(self)

    monkeypatch.setattr(OnlineKNN, "_backbone_tried", signalled)
    monkeypatch.setattr(train, "evaluation_steps", lambda *_: {2, 4})
    out, flags = tmp_path / "run", [*FLAGS[:-1], "4", "--resume", "auto", "--eval-every", "1", "--log-every", "1"]
    assert [train.main([*flags, "--out", str(out)]) for _ in range(2)] == [143, 0]
    assert asked == [0, 2, 2, 4]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], "knn_top1" in r) for r in lines if r["step"]] == [
        *((1, False), (2, False), (2, True), (3, False), (4, False), (4, True))
    ]


def test_a_second_member_of_an_array_does_not_write_over_the_first(tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    with open(out / ".lock", "w") as held:
        lock(held)
        assert train.main(command(out)) == 2
    assert "is being written by another process" in capsys.readouterr().err
    assert {p.name for p in out.iterdir()} == {".lock", "checkpoints"}


def test_without_a_folder_it_is_one_sentence(capsys):
    assert train.main([*FLAGS, "--resume", "auto"]) == 2
    assert "give --out" in capsys.readouterr().err
