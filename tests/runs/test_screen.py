"""What a run shows while it trains, and whether it notices that its features fall together."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from saccade import train
from saccade.runs.collapse import Watch, spread
from saccade.runs.folder import RunFolder

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


@pytest.fixture(scope="module")
def alike(tmp_path_factory) -> Path:
    """160 times one picture."""
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    np.savez(file := tmp_path_factory.mktemp("data") / "alike.npz", images=np.repeat(image[None], 160, 0))
    return file


def test_a_run_logs_what_its_machine_and_its_features_do_and_says_that_all_pictures_are_one(alike, tmp_path, capfd):
    flags = ["--data", str(alike), "--out", str(tmp_path / "run"), *SMALL, "--steps", "4", "--log-every", "2"]
    assert train.main([*flags, "--log", "json"]) == 0
    out, err = capfd.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines == [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = lines[-1]
    assert {"grad_norm", "memory_gb", "time", "rank", "host", "feature_std", "feature_rank", "loss"} <= set(last)
    assert 0 < last["feature_std"] < 2 and 1 < last["feature_rank"] <= 16 and 0.05 < last["memory_gb"] < 100
    assert "8 of the 160 images were compared and are one and the same picture" in err and "run folder" in err


def test_a_log_that_is_no_terminal_gets_plain_lines(alike, tmp_path, capfd):
    assert train.main(["--data", str(alike), "--out", str(tmp_path / "run"), *SMALL, "--steps", "3"]) == 0
    err = capfd.readouterr().err
    lines = [line for line in err.splitlines() if " step " in line]
    assert "step 1 of 3 (33%): loss " in lines[0] and "step 3 of 3 (100%)" in lines[-1] and "\r" not in err


def test_effective_rank_is_that_of_directions_and_falls_to_one_where_all_are_alike():
    for rank in (1, 4, 16):
        directions = torch.linalg.qr(torch.randn(64, 64, generator=torch.manual_seed(0)))[0][:rank]
        std, found = spread(directions.repeat(64 // rank, 1) * 3)
        assert found == pytest.approx(rank, rel=0.01) and (std < 1e-6) == (rank == 1)
    assert spread(torch.randn(256, 64, generator=torch.manual_seed(0)))[0] == pytest.approx(1, rel=0.05)


def test_features_that_fall_together_are_said_once():
    watch = Watch(10)
    assert watch.look(0.5, 20) is None and watch.look(0.2, 4) is None
    assert "std is 0.004 (it was 0.500)" in (watch.look(0.004, 1.5) or "") and watch.look(0.001, 1.0) is None
    assert "collapse" in (Watch(10).look(0.0, 1.0) or "")
    watch = Watch(10_000)
    assert [step for step in range(1, 62) if watch.due(step)] == [1, 21, 41, 61]


def test_a_number_that_is_not_finite_is_null_in_the_file_and_nan_when_read(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN, "grad_norm": -Infinity}\n')  # of older versions
    folder.log({"step": 2, "loss": float("nan"), "grad_norm": float("inf"), "rank": 0})

    def refuse(token: str):
        raise AssertionError(f"{token} is not JSON")

    last = (tmp_path / "metrics.jsonl").read_text().splitlines()[1]
    assert json.loads(last, parse_constant=refuse) == {"step": 2, "loss": None, "grad_norm": None, "rank": 0}
    first, second = folder.metrics()
    assert math.isnan(first["loss"]) and math.isnan(second["loss"]) and second["rank"] == 0
    folder.rewind(1)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text() and len(folder.metrics()) == 1
