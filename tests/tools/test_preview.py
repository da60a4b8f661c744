"""tools.preview: a picture of every view, or one sentence."""

import pytest
import torch
from PIL import Image

from saccade.base.errors import UserError
from saccade.losses.registry import find_method
from saccade.pipelines.draw import draw
from saccade.runs.pictures import describe
from saccade.tools import preview


def test_a_row_for_each_image_and_a_column_for_each_view(tmp_path, capsys):
    for rows in (1, 3):
        assert preview.main(["--rows", str(rows), "--out", str(tmp_path / f"{rows}.png")]) == 0
    one, three = (Image.open(tmp_path / f"{rows}.png").size for rows in (1, 3))
    assert one[0] == three[0] and three[1] > 2 * one[1] and "views view_1, view_2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rows", "0"], "--rows 0 shows nothing"),
        (["--epoch", "-1"], "--epoch -1 is negative"),
        (["--out", "views.txt"], "a file ending in .png"),
        (["--image-size", "1000000"], "8 to 4096 pixels"),
        (["--data", "/nowhere"], "no such file or folder"),
    ],
)
def test_bad_input_is_one_sentence_and_makes_nothing(flags, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        preview.main(flags)
    assert not any(tmp_path.iterdir())


def test_no_caption_is_wider_than_its_picture():
    views = find_method("ressl").recipe("textures-strong", None).views  # RandAugment's captions are the longest
    params = draw(views, 0, 0, torch.arange(200), torch.full((200, 2), 32))["contrastive"]
    lines = [line for i in range(200) for line in describe(views["contrastive"], params, i)]
    assert max(map(len, lines)) <= 28 and any("autocontrast" in line for line in lines)
