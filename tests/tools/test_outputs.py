"""What commands write: nothing that lies there is lost, and its letters can be read. One image is a set of one."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from saccade.base import letters
from saccade.base.errors import UserError
from saccade.evaluation.features import Features
from saccade.evaluation.plot import plot_features
from saccade.pipelines.data import open_data
from saccade.pipelines.sources.open import open_dataset
from saccade.pipelines.sources.options import Options
from saccade.runs.pictures import write
from saccade.tools import inspect, preview


@pytest.fixture
def photo(tmp_path):
    place = tmp_path / "photos" / "one.JPG"
    place.parent.mkdir()
    for name in ("one.JPG", "other.jpg"):
        Image.new("RGB", (40, 30), (200, 10, 10)).save(place.with_name(name), "JPEG")
    return place


@pytest.mark.parametrize("command", [inspect, preview])
def test_a_name_that_was_given_is_not_written_over_unless_that_is_said(photo, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.png").write_bytes(b"mine")
    data = [str(photo.parent)] if command is inspect else ["--data", str(photo.parent), "--image-size", "32"]
    with pytest.raises(UserError, match=r"--out mine\.png exists already; give another name, or --overwrite"):
        command.main([*data, "--out", "mine.png"])
    assert (tmp_path / "mine.png").read_bytes() == b"mine"


def test_it_is_written_over_where_that_is_said(photo, tmp_path):
    (tmp_path / "mine.png").write_bytes(b"mine")
    inspect.main([str(photo.parent), "--out", str(tmp_path / "mine.png"), "--overwrite"])
    assert Image.open(tmp_path / "mine.png").width > 40


def test_a_name_that_was_not_given_gets_a_number(photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inspect.png").write_bytes(b"mine")
    (tmp_path / "inspect-2.png").symlink_to(tmp_path / "nowhere")
    inspect.main([str(photo)])
    assert (tmp_path / "inspect.png").read_bytes() == b"mine" and not (tmp_path / "nowhere").exists()
    assert "inspect-3.png: 1 of the images" in capsys.readouterr().out


def test_one_image_is_a_set_of_one(photo, tmp_path):
    source = open_dataset(str(photo)).splits["train"]
    assert [source.key_of(i) for i in range(len(source))] == ["one.JPG"] and source.labels is None
    assert source.read(0).shape == (30, 40, 3) and source.size(0) == (30, 40)
    source.account.check(source.name)
    bare = photo.rename(photo.with_name("bare"))  # an image by what it holds
    assert len(open_data(str(bare))[0]) == 1
    (tmp_path / "labels.csv").write_text("bare,cat\n")
    assert open_data(str(bare), options=Options(labels=str(tmp_path / "labels.csv")))[0].classes == ("cat",)


def test_what_is_no_image_is_said_and_several_are_to_lie_in_a_folder(photo):
    (photo.parent / "notes.txt").write_text("none")
    with pytest.raises(UserError, match="an image, a folder of images, a file ending in"):
        open_data(str(photo.parent / "notes.txt"))
    with pytest.raises(UserError, match="2 images; put them into a folder of their own"):
        open_data(f"{photo}::{photo.parent / 'other.jpg'}")


TABLES = {
    "picture,species\n": ("a.jpg,cat\n", "b.jpg,dog\n"),
    "picture,width,species\n": ("a.jpg,9,cat\n", "b.jpg,9,dog\n"),
    "species,image\n": ("cat,a.jpg\n", "dog,b.jpg\n"),
    "width;species;Foto\n": ("9;cat;a.jpg\n", "9;dog;b.jpg\n"),
}


@pytest.mark.parametrize("head", TABLES)
@pytest.mark.parametrize("as_list", [False, True])
def test_columns_of_other_names_are_told_and_the_flag_that_is_named_reads_them(tmp_path, head, as_list):
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.jpg")
    table = tmp_path / "table.csv"
    table.write_text(head + "".join(TABLES[head]))
    if as_list and "image" in head:
        pytest.skip("a list whose images are known may have no label")
    data, options = (str(table), Options()) if as_list else (str(tmp_path), Options(labels=str(table)))
    columns = ", ".join(head.strip().lower().replace(";", ",").split(","))
    with pytest.raises(
        UserError, match=re.escape(f"which of its columns is the label? It has {columns}; give --label-key ")
    ):
        open_data(data, options=options)
    source = open_data(data, options=Options(labels=options.labels, label_key="species"))[0]
    assert source.classes == ("cat", "dog") and sorted(source.labels.tolist()) == [0, 1] and len(source) == 2


def test_a_list_of_images_alone_may_call_its_column_anything(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    (tmp_path / "list.csv").write_text("picture\na.jpg\n")
    source = open_data(str(tmp_path / "list.csv"))[0]
    assert len(source) == 1 and not source.account.left_out


WRITTEN = {"κόσμος": "κόσμος", "猫 cat": r"\u732b cat", "🐶": r"\U0001f436", "naïve": "naïve"}


@pytest.mark.parametrize("text", WRITTEN)
def test_letters_that_no_font_has_are_numbers_and_no_boxes(monkeypatch, text):
    monkeypatch.setattr(letters, "_of_the_system", lambda odd, whole: None)
    told, file = letters.drawable(text)
    assert told == WRITTEN[text] and file.name == "DejaVuSans.ttf"
    assert set(map(ord, told)) - {32} <= letters._letters_of(file)


def test_a_font_of_the_system_is_taken_where_it_has_all_letters(monkeypatch):
    dejavu = letters._dejavu()
    monkeypatch.setattr(letters, "_dejavu", lambda: dejavu.with_name("cmex10.ttf"))  # few letters
    found = letters._of_the_system.__wrapped__(frozenset([0x3BA]), frozenset([0x3BA]))
    if found is None:
        pytest.skip("fontconfig knows no font with Greek letters")
    assert letters.drawable("κ") == ("κ", found) and 0x3BA in letters._letters_of(found)


def test_sheets_and_maps_draw_any_class_name(tmp_path, recwarn):
    canvas = Image.new("RGB", (300, 20), "white")
    for text in ("猫 🐶", "plain"):
        write(ImageDraw.Draw(canvas), (0, 0), text, 11)
    assert np.asarray(canvas).min() < 100
    features = Features(torch.randn(12, 4), torch.arange(12) % 4)
    plot_features(features, ["猫", "🐶", "_x", "a$b$"], tmp_path / "map.png", "写真 $1")
    assert Image.open(io.BytesIO((tmp_path / "map.png").read_bytes())).width > 500
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
