"""docs/add_a_method.md keeps its word: its listings, put where it says, are a method that trains."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from saccade import losses, train
from saccade.losses.registry import methods
from saccade.tools import recipes

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_a_method.md"


@pytest.fixture
def simsiam(tmp_path, monkeypatch):
    """The first listing as losses/simsiam.py, in a folder that is gone again after the test; gives the second."""
    method, test = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "simsiam.py").write_text(method)
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path)])
    methods.cache_clear()
    yield test
    methods.cache_clear()
    sys.modules.pop("saccade.losses.simsiam", None)


def test_its_own_test_passes(simsiam):
    names = {}
    exec(compile(simsiam, str(PAGE), "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_the_file_trains_from_anywhere_under_its_name(tmp_path, capsys):
    (tmp_path / "simsiam.py").write_text(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0])
    np.savez(tmp_path / "train.npz", images=np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8))
    small = ["--data", str(tmp_path / "train.npz"), "--backbone", "test_resnet", "--eval-every", "0"]
    flags = [*small, "--steps", "1", "--batch-size", "8", "--set", "options.projector_dim=32"]
    assert train.main(["--method", str(tmp_path / "simsiam.py"), *flags, "--out", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]
    assert (record["method"], record["data"], record["options"]["projector_dim"]) == ("simsiam", "small", 32)
    capsys.readouterr()
    assert recipes.main([str(tmp_path / "simsiam.py"), "cifar10"]) == 0
    assert "simsiam on cifar10: predict the other view's projection" in capsys.readouterr().out


def test_one_file_is_enough_to_train(simsiam, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(32) % 4)
    out = tmp_path / "run"
    assert (
        train.main(
            [
                "--method",
                "simsiam",
                "--data",
                str(tmp_path / "train.npz"),
                "--backbone",
                "test_resnet",
                "--steps",
                "3",
                "--batch-size",
                "8",
                "--log-every",
                "1",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in logged if "loss" in record] == [1, 2, 3]
    assert all(-1 <= record["loss"] <= 1 for record in logged if "loss" in record)


def test_a_bad_option_is_one_sentence(simsiam, capsys):
    assert train.main(["--method", "simsiam", "--set", "options.predictor_hidden=0"]) == 2
    assert "predictor_hidden is 0" in capsys.readouterr().err
