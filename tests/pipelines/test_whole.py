"""A source that is kept in memory is decoded once, by all cores, and is what PIL says it is."""

import io
from multiprocessing import get_start_method

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from saccade.base.errors import UserError
from saccade.pipelines import whole
from saccade.pipelines.build import build_pipeline, choose_executor
from saccade.pipelines.sources import FolderSource
from saccade.pipelines.views import View, Views
from saccade.pipelines.whole import UnequalSizes, load_images
from tests.pipelines.files import picture, stored

COUNT = 40
WAYS = [0, "processes", "threads"]


def written(folder, **others: bytes) -> FolderSource:
    """JPEGs, PNGs, grey ones and ones that lie on their side."""
    folder.mkdir()
    for k in range(COUNT):
        exif = Image.Exif()
        exif[0x0112] = 1 + k % 8
        image = picture(k).convert("L" if k % 5 == 4 else "RGB")
        data = stored(image, "PNG") if k % 3 == 2 else stored(image, "JPEG", exif=exif)
        (folder / f"{k:02}.{'png' if k % 3 == 2 else 'jpg'}").write_bytes(data)
    for name, data in others.items():
        (folder / f"{name}.jpg").write_bytes(data)
    return FolderSource(folder)


@pytest.fixture(params=WAYS)
def workers(request, monkeypatch) -> int:
    monkeypatch.setattr(whole, "_PIECE", 8)
    monkeypatch.setattr(whole, "_WORTH", 0.0)
    monkeypatch.setattr(whole, "available_cpus", lambda: 2)
    if request.param == "processes" and get_start_method() != "fork":
        pytest.skip("processes are not forked here")
    if request.param == "threads":
        monkeypatch.setattr(whole.multiprocessing, "get_start_method", lambda: "spawn")
    return 2 * bool(request.param)


def test_the_pixels_are_pils_and_what_cannot_be_read_is_replaced_by_the_next(tmp_path, workers):
    source = written(tmp_path / "x", **{"07a": b"no image", "07b": stored(picture(3), "JPEG")[:500]})
    images, used = load_images(source, workers)
    expected, numbers = [], []
    for file in reversed(source.files):
        if not file.name.startswith("07a") and not file.name.startswith("07b"):
            pixels = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file.read_bytes()))).convert("RGB"))
            number = source.files.index(file)
        expected.insert(0, torch.from_numpy(pixels.copy()).permute(2, 0, 1))
        numbers.insert(0, number)
    assert torch.equal(images, torch.stack(expected)) and used.tolist() == numbers
    assert list(source.known_bad) == ["07a.jpg", "07b.jpg"]


def test_an_image_of_another_size_is_named_however_late_it_is_met(tmp_path, workers, monkeypatch):
    source = written(tmp_path / "x", **{"31a": stored(picture(side=20), "JPEG")})
    monkeypatch.setattr(whole, "_LOOKED_AT", 2)
    with pytest.raises(UnequalSizes, match=r"31a.jpg is 20x20 and 00.jpg is 48x48; use --pipeline auto"):
        load_images(source, workers)


def test_another_size_in_the_headers_is_met_before_anything_is_decoded(tmp_path, monkeypatch):
    source = written(tmp_path / "x", **{"31a": stored(picture(side=20), "JPEG")})
    monkeypatch.setattr(whole._Pieces, "__call__", lambda *_: 1 / 0)
    with pytest.raises(UnequalSizes, match=r"31a.jpg is 20x20"):
        load_images(source)


def test_more_than_a_tenth_of_unreadable_images_is_an_error(tmp_path, workers):
    source = written(tmp_path / "x", **{f"{k}a": b"" for k in (10, 15, 20, 25, 30)})
    with pytest.raises(UserError, match=r"5 images cannot be read so far, .* all 45; .*10a.jpg .*30a.jpg"):
        load_images(source, workers)


def test_how_long_it_will_take_is_said_before_where_that_is_long(tmp_path, monkeypatch, capsys):
    source = written(tmp_path / "x")
    load_images(source, 0, shown=True)
    assert not capsys.readouterr().err
    monkeypatch.setattr(whole, "_SAID", 0.0)
    monkeypatch.setattr(whole, "_PIECE", 8)
    load_images(source, 0, shown=True)
    assert "decoding 40 images once, about 0 s: they are kept in memory" in capsys.readouterr().err


def test_the_processes_of_a_run_share_the_cores(monkeypatch):
    monkeypatch.setattr(whole, "available_cpus", lambda: 8)
    assert [whole._how_many(n) for n in (0, 1, 4, 16)] == [0, 0, 4, 8]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [whole._how_many(n) for n in (1, 4)] == [0, 2]


def test_a_run_of_a_few_steps_decodes_only_what_it_shows(tmp_path):
    source, views = written(tmp_path / "x"), Views((View("a", 16),))
    assert choose_executor("auto", source).executor == "resident"
    assert choose_executor("resident", source, images=8).executor == "resident"
    with build_pipeline(source, views, batch_size=4, device="cpu", workers=1, steps=10) as long:
        assert long.choice.startswith("resident (40 images")
    with build_pipeline(source, views, batch_size=4, device="cpu", workers=1, steps=2) as short:
        told = "threads (small images, of which 8 are shown: fewer than decoding all 40 first)"
        assert short.choice == told
        few = next(iter(short))
    with build_pipeline(source, views, batch_size=4, device="cpu", executor="resident") as whole_set:
        many = next(iter(whole_set))
    assert torch.equal(few.index, many.index)
    assert torch.allclose(few.views["a"], many.views["a"], atol=2e-5)
