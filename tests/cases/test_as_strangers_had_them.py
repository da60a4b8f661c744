"""What people who had never seen the project threw at it: cut tars, sources that give no images, values that are no
numbers, and Python that is no Python of ours."""

import io
import tarfile
from typing import Any

import numpy as np
import pytest
from PIL import Image

import saccade
from saccade.base.errors import UserError
from saccade.pipelines.data import open_data
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.decode import BadImage
from saccade.pipelines.sources.index import Index
from saccade.pipelines.sources.source import Reader, Source


def png(i):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def whole_tar(path, images=24):
    with tarfile.open(path, "w") as tar:
        for i in range(images):
            for name, data in ((f"{i:03d}.png", png(i)), (f"{i:03d}.cls", str(i % 3).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("place", ["before a header", "in a header", "half"])
def test_a_tar_that_ends_early_is_said_wherever_it_is_opened(tmp_path, capsys, place):
    whole_tar(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        start = tar.getmembers()[24].offset
    size = {"before a header": start, "in a header": start + 100, "half": (tmp_path / "a.tar").stat().st_size // 2}
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[: size[place]])
    for _ in range(2):  # the second time from the kept index
        source, _ = open_data(str(tmp_path / "a.tar"))
        source.account.show()
        assert "is cut short after" in capsys.readouterr().err


class Given(Reader):
    def __init__(self, gives):
        self.gives = gives

    def pixels(self, index, i):
        return self.gives


@pytest.mark.parametrize(
    ("gives", "says"),
    [
        (np.zeros((24, 24), np.uint8), r"uint8 \(24, 24\), not uint8 \(H, W, 3\)"),
        (np.zeros((24, 24, 3)), r"float64 \(24, 24, 3\), not uint8"),
        (np.zeros((24, 24, 4), np.uint8), "not uint8"),
        (np.zeros((0, 24, 3), np.uint8), "not uint8"),
        (None, "gave a NoneType, not an array"),
    ],
)
def test_what_an_own_source_gives_that_is_no_image_is_a_bad_image(gives, says):
    source = Source("own", Index.of(["a", "b"], None, None, Account()), Given(gives))
    for look in (source.read, source.size, source.stored):
        with pytest.raises(BadImage, match=says):
            look(0)


def test_images_of_no_numbers_are_bad_and_pixels_of_none_are_black_and_said(tmp_path):
    for i in range(4):
        values = np.full((8, 8), np.nan if i == 0 else 0.5, np.float32)
        values[0, 0] = np.nan
        Image.fromarray(values).save(tmp_path / f"{i}.tif")
    source, _ = open_data(str(tmp_path))
    with pytest.raises(BadImage, match="not one of its values is a number"):
        source.read(0)
    assert source.read(1)[0, 0].tolist() == [0, 0, 0] and source.read(1)[1, 1, 0] in (127, 128)
    assert "are no numbers (NaN, infinite): black" in " ".join(source.account.guesses)
    images = np.full((3, 8, 8, 3), 0.5)
    images[1] = np.nan
    np.savez(tmp_path / "x.npz", images=images)
    with pytest.raises(UserError, match="image 1: not one of its values is a number"):
        open_data(str(tmp_path / "x.npz"))


def test_whole_numbers_beside_fractions_are_said(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(tmp_path / "a.tif")
    Image.fromarray(np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)).save(tmp_path / "b.tif")
    source, _ = open_data(str(tmp_path))
    assert "mixes images of whole numbers and of fractions" in " ".join(source.account.guesses)


@pytest.mark.parametrize("place", [3, np.zeros(3)])
def test_a_place_that_is_no_text_is_refused(place: Any):
    with pytest.raises(UserError, match="takes a place as text"):
        open_data(place)


def test_a_path_is_a_place(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 8, 8, 3), np.uint8))
    assert len(open_data(tmp_path / "x.npz")[0]) == 3


def test_python_is_told_like_the_command_line(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((8, 8, 8, 3), np.uint8))
    train, _ = open_data(str(tmp_path / "x.npz"))
    views = saccade.Views(saccade.View("weak", 8).times(2))
    wrongs: tuple[dict[str, Any], ...] = ({"batch_size": "8"}, {"batch_size": 2.5}, {"batch_size": 4, "seed": -1})
    for wrong in wrongs:
        with pytest.raises(UserError, match="takes whole numbers"):
            saccade.build_pipeline(train, views, **wrong)
    with pytest.raises(UserError, match="the device 'tpu' is unknown"):
        saccade.build_pipeline(train, views, batch_size=4, device="tpu")
    with pytest.raises(UserError, match="no such folder"):
        saccade.load_backbone("nope")
    with pytest.raises(UserError, match="argument --steps: invalid int value: 'x'"):
        saccade.pretrain(steps="x")


def test_a_recipes_protocol_is_one_that_there_is(tmp_path, capsys):
    from saccade import train

    flags = ["--data", "textures", "--backbone", "test_resnet", "--steps", "1", "--out", str(tmp_path / "r")]
    assert train.main([*flags, "--set", "protocol=rsa-smal"]) == 2 and not (tmp_path / "r").exists()
    assert "protocol 'rsa-smal' is unknown" in capsys.readouterr().err


def test_a_view_that_nothing_uses_is_said(tmp_path, capsys):
    from saccade import train

    flags = ["--method", "simclr", "--data", "textures", "--backbone", "test_resnet", "--image-size", "32"]
    flags += ["--batch-size", "8", "--steps", "1", "--eval-every", "0", "--out", str(tmp_path / "r")]
    assert train.main([*flags, "--set", 'views+={name="small", size=16}']) == 0
    assert "small is rendered for nothing: take it out with --set views.small=none" in capsys.readouterr().out
