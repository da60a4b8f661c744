"""docs/add_a_protocol.md keeps its word: its listings, files of the user's own, measure a run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from saccade import eval as evaluate
from saccade.evaluation import kinds
from saccade.evaluation.kinds.prototypes import Prototypes
from saccade.evaluation.registry import find_protocol, protocols
from tests.test_eval import write_images, write_run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_a_protocol.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's listings as ours.py and ridge.py, beside a run."""
    folder = tmp_path_factory.mktemp("outside")
    row, kind = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (folder / "ours.py").write_text(row)
    (folder / "ridge.py").write_text(kind)
    write_images(folder / "test.npz", 32, 1)
    write_run(folder / "run", write_images(folder / "train.npz", 64, 0))
    return folder


def measure(capsys, folder, protocol, *flags) -> tuple[dict, str]:
    code = evaluate.main([str(folder / "run"), "--protocol", str(protocol), *flags])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out.splitlines()[-1]), out


def test_a_row_outside_measures(folder, capsys):
    result, out = measure(capsys, folder, folder / "ours.py", "--epochs", "2")
    assert result["protocol"] == "ours" and "kNN, k = 10" in out and "linear, last epoch (2), reported" in out
    assert result["top1"] == result["last_top1"] and "epochs = 2" in result["deviations"]


def test_a_kind_outside_measures_as_numpy_does(folder, capsys, tmp_path):
    features = tmp_path / "features.npz"
    result, out = measure(
        capsys, folder, f"{folder / 'ridge.py'}:ridge", "--features-out", str(features), "--epochs", "1"
    )
    with np.load(features) as f:
        x, y = (
            f[f"{s}_features"] / np.linalg.norm(f[f"{s}_features"], axis=1, keepdims=True) for s in ("train", "test")
        )
        labels, wanted = f["test_labels"], np.eye(4)[f["train_labels"]]
    a = np.vstack([x - x.mean(0), np.sqrt(64e-3) * np.eye(x.shape[1])])  # ridge as least squares on more rows
    weights = np.linalg.lstsq(a, np.vstack([wanted - wanted.mean(0), np.zeros((x.shape[1], 4))]), rcond=None)[0]
    right = ((y - x.mean(0)) @ weights + wanted.mean(0)).argmax(1) == labels
    assert result["top1"] == pytest.approx(100 * right.mean()) and result["strength"] == 1e-3
    assert re.search(r"^ +ridge +\d", out, re.MULTILINE) and "--epochs changes nothing" in out


def test_a_kind_is_one_file_of_the_room(folder, monkeypatch):
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(folder)])
    protocols.cache_clear()
    try:
        assert {"ours", "ridge", "ridge-strong", "5-shot"} <= set(protocols())
    finally:
        monkeypatch.undo()
        protocols.cache_clear()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ridge.py", "has ridge, ridge-strong; say which"),
        ("ridge.py:bridge", "has no bridge; it has ridge, ridge-strong"),
        ("rigde.py", "there is no file"),
        ("json.tool", "defines no PROTOCOLS, a tuple of saccade.evaluation.protocol.Protocol"),
        ("5-shots", "did you mean 5-shot"),
    ],
)
def test_what_is_no_protocol_is_one_sentence(folder, capsys, monkeypatch, name, says):
    monkeypatch.chdir(folder)
    assert evaluate.main([str(folder / "run"), "--protocol", name]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_few_shots_are_drawn_by_the_seed_and_too_few_images_are_said(folder, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "noise.npz", images=noise, labels=np.arange(64) % 4)
    hard = ["--val-data", str(folder / "noise.npz"), "--data", str(folder / "noise.npz"), "--seed"]
    one, same, other = (measure(capsys, folder, "5-shot", *hard, seed)[0] for seed in ("1", "1", "2"))
    assert one["top1"] == same["top1"] != other["top1"] and one["draws"] == 100 and one["top1_std"] > 0
    assert one["top1"] <= measure(capsys, folder, "prototypes", *hard, "1")[0]["top1"]
    write_images(folder / "few.npz", 8, 3)
    data = ["--data", str(folder / "few.npz"), "--val-data", str(folder / "test.npz")]
    assert evaluate.main([str(folder / "run"), "--protocol", "5-shot", *data]) == 2
    assert "needs 5 labelled training images of every class, and one has 2" in capsys.readouterr().err
    assert isinstance(find_protocol("5-shot").measures[0], Prototypes)
