"""tools.inspect: what it says of a folder is what was put there."""

import json

import numpy as np
import pytest
from PIL import Image

from saccade.base.errors import UserError
from saccade.tools.inspect import main


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "p"
    for k in range(12):
        file = folder / ("cat", "dog")[k % 3 == 0] / f"{k}.{'png' if k % 2 else 'jpg'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if k == 5 else "RGB", (20 + k, 16), k * 10 if k == 5 else (k * 20, 0, 0)).save(file)
    (folder / "cat" / "again.png").write_bytes((folder / "cat" / "1.png").read_bytes())
    (folder / "dog" / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("")
    return folder


def test_it_counts_what_is_there(photos, tmp_path, capsys):
    assert main([str(photos), "--json", "--out", str(tmp_path / "sheet.png")]) == 0
    found = json.loads(capsys.readouterr().out)["splits"]["train"]
    assert found["images"] == found["opened"] == 14 and found["classes"] == {"cat": 9, "dog": 5}
    assert found["types"] == {"PNG": 7, "JPEG": 6} and found["modes"] == {"RGB": 12, "L": 1}
    assert found["width"][::2] == [20, 31] and found["height"] == [16, 16, 16]
    assert found["duplicates"] == {"images": 1, "first": [["cat/1.png", "cat/again.png"]]}
    assert list(found["unreadable"]) == ["dog/broken.jpg"]
    account = found["account"]
    assert account["seen"] == account["taken"] + sum(e["count"] for e in account["left_out"].values()) == 15
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert np.asarray(sheet).std() > 0 and sheet.width == 804


def test_its_text_has_a_bar_for_each_class(photos, tmp_path, capsys):
    assert main([str(photos), "--out", str(tmp_path / "sheet.png")]) == 0
    said = capsys.readouterr()
    bars = {line.split()[0]: line.count("#") for line in said.out.splitlines() if "#" in line}
    assert bars == {"cat": 40, "dog": 22} and "1 .txt" in said.out and "warning: 1 .txt" in said.err


@pytest.mark.parametrize("flags", [["--images", "0"], ["--out", "x.gif"], ["--split", "none"]])
def test_wrong_flags_are_one_sentence(photos, flags):
    with pytest.raises(UserError):
        main([str(photos), *flags])
