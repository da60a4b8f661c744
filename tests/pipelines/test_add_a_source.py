"""docs/add_a_source.md keeps its word: its listing, a file of the user's own, trains, converts and keeps its
account."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from saccade import train
from saccade.base.errors import UserError
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.data import open_data
from saccade.pipelines.order import Order
from saccade.pipelines.views import View, Views
from saccade.tools.convert import main as convert

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_a_source.md"


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    """A folder of arrays, and the listing beside it as npy_folder.py."""
    (listing,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "npy_folder.py").write_text(listing)
    for k in range(24):
        file = tmp_path / "arrays" / ("cat", "dog", "eel")[k % 3] / f"{k}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.full((12, 10, 3), k, np.uint8))
    (tmp_path / "arrays" / "notes.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "arrays"
    sys.modules.pop("npy_folder", None)


def test_one_file_outside_of_the_project_is_a_source(arrays):
    source, val = open_data(f"npy_folder:{arrays}")
    assert val is None and source.classes == ("cat", "dog", "eel") and len(source) == 24
    assert sorted(int(source.read(i)[0, 0, 0]) for i in range(24)) == list(range(24))
    assert source.account.seen == 25 and "1 .txt files" in source.account.line()
    by_file, _ = open_data(f"{arrays.parent}/npy_folder.py:{arrays}")
    assert [by_file.key_of(i) for i in range(24)] == [source.key_of(i) for i in range(24)]
    few = source.subset([3, 1])
    assert few.key_of(0) == source.key_of(3) and few.labels.tolist() == source.labels[[3, 1]].tolist()
    for executor in ("resident", "reference"):
        with build_pipeline(source, Views((View("a", 8),)), Order(24, 8), executor, workers=0) as pipeline:
            assert sum(len(batch.index) for batch in pipeline) == 24


def test_it_trains_and_converts(arrays, tmp_path):
    flags = [
        "--backbone",
        "test_resnet",
        "--image-size",
        "32",
        "--batch-size",
        "8",
        "--steps",
        "2",
        "--eval-every",
        "0",
    ]
    assert (
        train.main(["--data", f"npy_folder:{arrays}", *flags, "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    )
    assert convert([f"npy_folder:{arrays}", str(tmp_path / "x.npz")]) == 0
    assert sorted(np.load(tmp_path / "x.npz")["images"][:, 0, 0, 0].tolist()) == list(range(24))


@pytest.mark.parametrize(
    ("listing", "words"),
    [("x = 1", "no function open_source"), ("def open_source(argument): return 3", "gave int, not a")],
)
def test_a_file_that_is_no_source_is_one_sentence(tmp_path, monkeypatch, listing, words):
    (tmp_path / "wrong_source.py").write_text(listing)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("wrong_source", None)
    with pytest.raises(UserError, match=words):
        open_data("wrong_source:x")
    sys.modules.pop("wrong_source", None)
