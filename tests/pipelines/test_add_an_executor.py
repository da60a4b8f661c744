"""docs/add_an_executor.md keeps its word: its listing, in a file outside, trains, resumes and agrees with reference."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import saccade
from saccade import train
from saccade.base import own
from saccade.pipelines import build
from saccade.pipelines.sources.options import Options
from saccade.tools import parity, parity_cases

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_an_executor.md"


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    """The page's listing as a file in an empty folder, as --pipeline names it."""
    (listing,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    file = tmp_path_factory.mktemp("outside") / "plain.py"
    file.write_text(listing)
    return f"{file}:Plain"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for k in range(24):
        size = (40 + k, 60 - k, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{k:02}.jpg")
    (folder / "05.jpg").write_bytes(b"broken")
    return folder


def test_it_agrees_with_reference_and_parity_notices_where_one_does_not(plain, tmp_path, capsys, monkeypatch):
    few = {name: views for name, views in parity_cases.operations(48).items() if name in ("crop bicubic", "grey")}
    monkeypatch.setattr(parity, "operations", lambda size: few)
    monkeypatch.setattr(parity, "method_recipes", lambda *sizes: {})
    assert parity.main(["--executor", plain, "--images", "3"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^grey .* 0\.00\d/0\.\d +$", shown, re.MULTILINE) and "all within tolerance" in shown
    place, _, name = plain.rpartition(":")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(Path(place).read_text().replace("view.to(self.device)", "view.flip(3).to(self.device)"))
    assert parity.main(["--executor", f"{wrong}:{name}", "--images", "3"]) == 1
    assert "outside of tolerance: Plain" in capsys.readouterr().out


def test_it_makes_every_batch_of_every_epoch_and_counts_what_is_broken(plain, photos):
    images, _ = saccade.open_data(str(photos))
    views = saccade.Views(saccade.View("a", 16).times(2))
    with saccade.build_pipeline(images, views, batch_size=8, executor=plain, workers=2) as pipeline:
        assert pipeline.choice == f"{plain} (as asked)" and len(pipeline) == 3
        epochs = [torch.cat([batch.index for batch in pipeline]) for _ in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(24)) for epoch in epochs)
    assert not torch.equal(*epochs) and "05.jpg" in images.known_bad


def test_it_trains_and_a_resume_asks_for_it_again(plain, photos, tmp_path, capsys):
    small = ["--backbone", "test_resnet", "--image-size", "32", "--batch-size", "8", "--eval-every", "0"]
    flags = [*small, "--data", str(photos), "--device", "cpu", "--workers", "1", "--steps", "2"]
    assert train.main([*flags, "--pipeline", plain, "--out", str(tmp_path / "run")]) == 0
    assert train.main(["--resume", str(tmp_path / "run")]) == 2
    assert f"which would run; if you trust them, say so: --pipeline {plain}." in capsys.readouterr().err
    moved = tmp_path / "plain.py"
    moved.write_text(Path(plain.rpartition(":")[0]).read_text())
    assert train.main(["--resume", str(tmp_path / "run"), "--pipeline", f"{moved}:Plain"]) == 0
    assert train.main(["--resume", str(tmp_path / "run"), "--pipeline", "reference"]) == 2


def test_a_package_offers_it_by_an_entry_point(plain, monkeypatch):
    kind = build.find_executor(plain)
    good = SimpleNamespace(name="plain", value="somewhere:Plain", load=lambda: kind)
    bad = SimpleNamespace(name="broken", value="nowhere:Plain", load=lambda: 1 / 0)
    monkeypatch.setattr(own, "entry_points", lambda group: [bad, good] if group == "saccade.executors" else [])
    build._offered.cache_clear()
    try:
        assert build.executors()[-1] == "plain" and build.find_executor("plain") is kind
        assert build.find_executor("resident") is None
    finally:
        monkeypatch.undo()
        build._offered.cache_clear()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("thread", "is unknown; use one of auto, resident"),
        ("{place}:Plane", "is no executor; derive a class from saccade.pipelines.pipeline.Pipeline"),
        ("{place}:Pipeline", "is no executor"),
        ("nowhere.py:Plain", "there is no file"),
    ],
)
def test_what_is_no_executor_is_one_sentence(plain, name, says, capsys):
    assert train.main(["--pipeline", name.format(place=plain.rpartition(":")[0])]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_a_source_that_it_refuses_is_one_sentence(plain, photos):
    grey, _ = saccade.open_data(str(photos), options=Options(channels=1))
    with pytest.raises(saccade.UserError, match=r"--pipeline .*plain\.py:Plain: .* has 1 channels; use --pipeline"):
        saccade.build_pipeline(grey, saccade.Views((saccade.View("a", 16),)), batch_size=8, executor=plain)
