"""docs/my_photos.md keeps its word: its commands run, one after another, on a small folder."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image

from saccade.cli import COMMANDS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "my_photos.md"
LINES = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for line in block.splitlines()
]
SMALL = {
    "train": "--backbone test_resnet --image-size 32 --batch-size 16 --steps 2 --device cpu --workers 1 --eval-every 0",
    "finetune": "--epochs 1 --folds 2 --workers 1",
    "eval": "--image-size 32 --k 3 --workers 1",
    "predict": "--workers 1",
    "embed": "--workers 1",
}


def write_photos(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for k in range(count):
        pixels = rng.normal((60 + 120 * (k % 2), 90, 200 - 120 * (k % 2)), 30, (40, 48, 3)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k:02d}.jpg")


@pytest.mark.slow
def test_the_commands_run_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    made = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **more: made(name, **more))  # no network
    write_photos(tmp_path / "PHOTOS", 32)
    write_photos(tmp_path / "NEW_PHOTOS", 8)
    labels = "".join(f"{k:02d}.jpg,{('warm', 'cold')[k % 2]}\n" for k in range(24))
    (tmp_path / "labels.csv").write_text("file,label\n" + labels)
    for words in LINES:
        assert words[0] == "saccade"
        flags = [*words[2:], *SMALL.get(words[1], "").split()]
        assert import_module(COMMANDS[words[1]][0]).main(flags) == 0, words
    capsys.readouterr()
    said = (tmp_path / "predictions.csv").read_text().splitlines()
    assert said[0] == "name,label,confidence" and len(said) == 9
    assert (tmp_path / "map.png").exists() and (tmp_path / "outputs/RUN/evaluations/knn-PHOTOS.json").exists()
    assert json.loads((tmp_path / "outputs/TUNED/finetuned.json").read_text())["labels"] == 24
    assert (tmp_path / "outputs/TUNED/exports/onnx/model.onnx").exists()


def test_the_page_shows_the_measured_numbers():
    rows = json.loads((PAGE.parent / "measurements" / "finetune-caltech20.json").read_text())["rows"]
    for row in rows:
        assert f"| {row['top1']:.1f} | {row['interval'][0]:.1f} to {row['interval'][1]:.1f} |" in PAGE.read_text()
