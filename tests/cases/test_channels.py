"""Images of other than three channels, from files and arrays through training to evaluation; tifffile and numpy say
what is right."""

import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import eval as evaluation
from saccade import load_backbone, train
from saccade.base.errors import UserError
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.data import open_data
from saccade.pipelines.operations import Blur, Grey, Jitter, Solarise
from saccade.pipelines.operations.registry import known_operations
from saccade.pipelines.order import Order
from saccade.pipelines.sources import ArraySource, Options
from saccade.pipelines.sources.options import read_value_range
from saccade.pipelines.views import View, Views, check_channels
from tests.present import present

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_many_channels_is_read_as_tifffile_reads_it(tmp_path, planar, order):
    pixels = RNG.integers(0, 256, (9, 7, 5), np.uint8)
    kinds = {"planarconfig": "separate", "photometric": "minisblack"} if planar else {"photometric": "minisblack"}
    stored = np.moveaxis(pixels, 2, 0) if planar else pixels
    for k in range(3):
        tifffile.imwrite(tmp_path / f"{k}.tif", stored, byteorder=order, **kinds)
    source, _ = open_data(str(tmp_path), options=Options(channels=5))
    assert (source.read(0) == pixels).all() and source.size(1) == (9, 7) and source.channels == 5


def test_deep_channels_share_one_range(tmp_path):
    deep = RNG.integers(100, 4100, (6, 8, 8, 4)).astype(np.uint16)
    for k, image in enumerate(deep):
        tifffile.imwrite(tmp_path / f"{k}.tif", image, photometric="minisblack")
    source, _ = open_data(str(tmp_path), options=Options(channels=4, value_range=read_value_range("0,4095")))
    np.savez(tmp_path / "x.npz", images=deep)
    packed, _ = open_data(str(tmp_path / "x.npz"), options=Options(channels=4, value_range=read_value_range("0,4095")))
    want = np.clip(deep * (255 / 4095) + 0.5, 0, 255).astype(np.uint8)
    for i in range(6):
        assert (source.read(i) == want[i]).all() and (packed.read(i) == want[i]).all()
    told, _ = open_data(str(tmp_path / "x.npz"), options=Options(channels=4))
    assert any("--value-range LOW,HIGH settles it" in line for line in told.account.warnings())


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((4, 8, 8, 13), np.uint8), "have 13 channels, not 3; --channels 13 trains on all"),
        (np.zeros((4, 8, 8), np.uint8), "--channels 1 takes them as grey"),
        (np.array([{}, {}], dtype=object), "holds no plain arrays"),
        (np.zeros((4, 8, 8, 3), np.complex64), "its images are complex64"),
    ],
)
def test_arrays_of_another_shape_are_told_the_flag(tmp_path, images, words):
    np.savez(tmp_path / "x.npz", images=images)
    with pytest.raises(UserError, match=words):
        open_data(str(tmp_path / "x.npz"))


@pytest.mark.parametrize(
    ("images", "want", "told"),
    [
        (np.arange(96, dtype=np.int64).reshape(2, 4, 4, 3), np.arange(96), "taken for bytes"),
        (np.arange(96).reshape(2, 4, 4, 3) % 2 == 1, np.arange(96) % 2 * 255, None),
        ((np.arange(96) / 95).astype(np.float16).reshape(2, 4, 4, 3), np.arange(96) / 95 * 255, "values 0 to 1 become"),
        (np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3).transpose(0, 3, 1, 2), np.arange(96), "channels before"),
    ],
)
def test_arrays_of_other_types_are_read_and_said(tmp_path, images, want, told):
    np.savez(tmp_path / "x.npz", images=images)
    source, _ = open_data(str(tmp_path / "x.npz"))
    assert np.abs(present(source.array()).reshape(-1).astype(float) - want).max() <= 0.6
    assert (told is None) == (not source.account.warnings()) and (told or "") in " ".join(source.account.warnings())


def test_grey_files_are_one_channel(tmp_path):
    pixels = RNG.integers(0, 256, (6, 7), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(np.repeat(pixels[..., None], 3, 2)).save(tmp_path / "b.png")
    source, _ = open_data(str(tmp_path), options=Options(channels=1))
    assert (source.read(0)[..., 0] == pixels).all() and (source.read(1)[..., 0] == pixels).all()


RECIPE = (View("a", 12, operations=(Jitter(0.4, 0.4, 0.0, 0.0), Blur(0.5), Solarise(0.3))),)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_executors_agree_and_each_channel_is_cut_alike(channels):
    pixels = RNG.integers(0, 256, (12, 16, 20, channels), np.uint8)
    source, recipe = ArraySource("x", pixels), Views(RECIPE, (0.4,) * channels, (0.2,) * channels)
    made = []
    for executor in ("resident", "reference"):
        with build_pipeline(source, recipe, Order(12, 6), executor, workers=0) as pipeline:
            made.append(torch.cat([batch.views["a"] for batch in pipeline]))
    assert made[0].shape == (12, channels, 12, 12) and (made[0] - made[1]).abs().max() < 2e-4
    plain = Views((View("a", 12),), (0.0,) * channels, (1.0,) * channels)
    with build_pipeline(source, plain, Order(12, 6), "resident") as pipeline:
        ours = torch.cat([batch.views["a"] for batch in pipeline])
    for c in range(channels):  # each as the first of a colour image
        colour = ArraySource("c", np.repeat(pixels[..., c : c + 1], 3, 3))
        with build_pipeline(colour, Views((View("a", 12),)), Order(12, 6), "resident", renderer="torch") as pipeline:
            assert torch.cat([batch.views["a"] for batch in pipeline])[:, 0].sub(ours[:, c]).abs().max() < 1e-6


@pytest.mark.parametrize("name", sorted(known_operations()))
def test_an_operation_takes_any_channels_or_says_what_needs_colour(name):
    operation = replace(known_operations()[name](), p=1.0)
    recipe = Views((View("v", 8, operations=(operation,)),), (0.0,) * 4, (1.0,) * 4)
    if operation.of_colour():
        with pytest.raises(UserError, match=rf"{name}.*--set views.v.{name}"):
            check_channels(recipe, 4)
        return
    source = ArraySource("x", RNG.integers(0, 256, (4, 9, 9, 4), np.uint8))
    with build_pipeline(source, recipe, Order(4, 4), "resident") as pipeline:
        assert next(iter(pipeline)).views["v"].shape == (4, 4, 8, 8)


def test_a_recipe_with_colour_is_refused_with_flags_that_work(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", images=RNG.integers(0, 256, (16, 16, 16, 6), np.uint8), labels=np.arange(16) % 2)
    argv = ["--method", "stec", "--data", str(tmp_path / "x.npz"), "--channels", "6", "--backbone", "test_resnet"]
    argv += ["--image-size", "32", "--batch-size", "8", "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "r")]
    assert train.main(argv) == 2 and not (tmp_path / "r").exists()
    flags = capsys.readouterr().err.rpartition("; give ")[2].strip().rstrip(".").split()
    assert train.main([*argv, *flags]) == 0
    backbone, description = load_backbone(tmp_path / "r")
    assert backbone(torch.zeros(1, 6, 32, 32)).ndim == 2 and description["options"]["in_chans"] == 6
    assert len(description["mean"]) == 6
    assert evaluation.main([str(tmp_path / "r"), "--protocol", "knn", "--k", "3", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n_test"] == 16
    np.savez(tmp_path / "rgb.npz", images=np.zeros((4, 16, 16, 3), np.uint8), labels=[0, 1, 0, 1])
    assert evaluation.main([str(tmp_path / "r"), "--data", str(tmp_path / "rgb.npz"), "--device", "cpu"]) == 2
    assert "takes images of 6 channels" in capsys.readouterr().err


def test_executors_of_colour_refuse_in_one_sentence():
    source = ArraySource("x", np.zeros((4, 8, 8, 5), np.uint8))
    recipe = Views((View("a", 8),), (0.0,) * 5, (1.0,) * 5)
    for executor, renderer in (("dali", "auto"), ("threads", "auto"), ("resident", "numba")):
        with pytest.raises(UserError, match="makes images of 3 channels"):
            build_pipeline(source, recipe, Order(4, 4), executor, renderer=renderer)
    with pytest.raises(UserError, match=r"grey.*--set views.g.grey=none"):
        check_channels(Views((View("g", 8, operations=(Grey(0.2),)),)), 5)


@pytest.mark.parametrize(
    ("shape", "kind", "told"),
    [
        ((8, 9, 5), {"photometric": "minisblack", "planarconfig": "contig"}, "TIFF of 5 channels; --channels 5"),
        ((13, 8, 9), {"photometric": "minisblack", "planarconfig": "separate"}, "TIFF of 13 channels; --channels 13"),
        ((8, 9, 4), {"photometric": "rgb"}, "hold a fourth channel, which is not read; --channels 4"),
        ((6, 8, 9), {"photometric": "minisblack"}, "hold 6 pages, of which the first is read; --channels 6"),
    ],
)
def test_more_than_three_channels_without_the_flag_are_told_it(tmp_path, shape, kind, told):
    for k in range(4):
        tifffile.imwrite(tmp_path / f"{k}.tif", RNG.integers(0, 256, shape, np.uint8), **kind)
    try:
        source, _ = open_data(str(tmp_path))
        source.read_or_replace(0)
        said = " ".join(source.account.warnings())
    except UserError as error:
        said = str(error)
    assert told in said


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_deep_colour_keeps_its_values(tmp_path, kind):
    pixels = (RNG.integers(0, 4096, (4, 8, 9, 3)) / (1 if kind == np.uint16 else 4095)).astype(kind)
    for k, image in enumerate(pixels):
        tifffile.imwrite(tmp_path / f"{k}.tif", image, photometric="rgb")
    top = 4095 if kind == np.uint16 else 1
    source, _ = open_data(str(tmp_path), options=Options(value_range=read_value_range(f"0,{top}")))
    assert np.abs(source.read(2).astype(float) - pixels[2].astype(float) * 255 / top).max() <= 0.51
    with tifffile.TiffFile(tmp_path / "2.tif") as file:
        assert (file.asarray() == pixels[2]).all() and source.size(2) == (8, 9)


def test_a_16_bit_colour_png_of_few_values_is_said(tmp_path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for k in range(3):
        pixels = RNG.integers(0, 4096, (6, 8, 3)).astype(">u2")
        header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
        lines = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
        png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
        (tmp_path / f"{k}.png").write_bytes(png)
    source, _ = open_data(str(tmp_path))
    assert "3 of 3 looked-at images, such as 0.png, hold 16 bits a colour" in " ".join(source.account.warnings())
