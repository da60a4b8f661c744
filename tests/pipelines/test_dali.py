"""The dali executor against reference: same samples, same parameters, same pixels; damaged files; its header reader."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.base.errors import UserError
from saccade.pipelines.build import build_pipeline, dali_installed
from saccade.pipelines.header import jpeg_header
from saccade.pipelines.operations import Blur, Grey, Jitter, Solarise
from saccade.pipelines.order import Order
from saccade.pipelines.sources import ArraySource, FolderSource, image_size
from saccade.pipelines.views import Crop, View, Views
from tests.pipelines.files import picture, stored
from tests.present import present

JITTER = Jitter(0.4, 0.4, 0.4, 0.1)
RECIPE = Views(
    (
        View("weak", 64, crop=Crop((0.2, 1.0))),
        View("strong", 64, operations=(JITTER, Grey(0.2), Blur()), parent="weak"),
        View("small", 24, crop=Crop((0.05, 0.2), interpolation="bicubic"), operations=(JITTER, Solarise(0.5))),
    ),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
needs_dali = pytest.mark.skipif(not dali_installed(), reason="NVIDIA DALI is not installed")
# On the 0-255 scale, before the division by std: the renderer cuts exactly (float32 rounding); DALI's cuts are rounded
# whole numbers, then colour and contrast may double them, and its filter differs where it is cut off at the box's edge.
MEAN, LARGEST = {False: 0.001, True: 0.6}, {False: 0.05, True: 40.0}


@pytest.fixture
def photos(tmp_path) -> FolderSource:
    """24 photos of noise, every one of its own size and kind of JPEG."""
    draw = random.Random(0)
    for k in range(24):
        folder = tmp_path / "ab"[k % 2]
        folder.mkdir(exist_ok=True)
        image = picture(k, side=draw.randint(60, 200)).resize((draw.randint(60, 200), draw.randint(60, 200)))
        exif = Image.Exif()
        exif[0x0112] = k % 9 or 1
        image = image.convert("L") if k == 7 else image
        (folder / f"{k:02}.jpg").write_bytes(
            stored(image, "JPEG", quality=90, exif=exif, subsampling=k % 3, progressive=k % 2)
        )
    return FolderSource(tmp_path)


def dali(source, batch: int = 8, cuts: bool | None = None, seed: int = 0):
    from saccade.pipelines.dali import DaliPipeline

    return DaliPipeline(source, RECIPE, Order(len(source), batch, seed), threads=2, cuts=cuts)


def by_sample(batches) -> dict[int, dict[str, torch.Tensor]]:
    return {
        int(i): {name: view[k] for name, view in batch.views.items()}
        for batch in batches
        for k, i in enumerate(batch.index)
    }


@needs_dali
@pytest.mark.parametrize("cuts", [False, True])
def test_same_samples_parameters_and_pixels_as_reference(photos, cuts):
    expected = build_pipeline(FolderSource(photos.folder), RECIPE, Order(24, 8), "reference", workers=0)
    std = torch.tensor(RECIPE.std)[:, None, None] * 255
    with dali(photos, cuts=cuts) as pipeline:
        for ours, theirs in zip(pipeline, expected, strict=True):
            assert torch.equal(ours.index, theirs.index) and torch.equal(present(ours.label), present(theirs.label))
            for name in RECIPE.names:
                for column, value in theirs.params[name].columns().items():
                    assert torch.equal(ours.params[name].columns()[column], value)
                difference = ((ours.views[name] - theirs.views[name]) * std).abs()
                assert difference.mean() < MEAN[cuts] and difference.max() < LARGEST[cuts], name
                assert ours.views[name].is_contiguous(memory_format=torch.channels_last)


@needs_dali
def test_batch_in_several_pieces_is_the_same_batch(photos):
    with dali(photos, 12) as whole, dali(photos, 12) as pieces:
        pieces._chunk_size = 5
        for a, b in zip(whole, pieces, strict=True):
            assert torch.equal(a.index, b.index) and torch.equal(present(a.label), present(b.label))
            for name in RECIPE.names:
                torch.testing.assert_close(a.views[name], b.views[name], atol=1e-5, rtol=0)
                assert torch.equal(a.params[name].box, b.params[name].box)
                assert b.views[name].is_contiguous(memory_format=torch.channels_last)


@needs_dali
def test_jpeg_that_only_decoding_finds_damaged_is_replaced(photos):
    """Its quantisation tables are gone: header and end are in order."""
    bad = photos.files[5]
    data = bad.read_bytes()
    while (at := data.find(b"\xff\xdb")) >= 0:
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    bad.write_bytes(data)
    assert jpeg_header(data) is not None
    judge = FolderSource(photos.folder)
    expected = by_sample(build_pipeline(judge, RECIPE, Order(24, 8), "reference", workers=0))
    assert judge.known_bad and judge.read_or_replace(5)[1] == 6
    with dali(photos) as pipeline:
        shown = by_sample(pipeline)
        assert photos.known_bad == judge.known_bad
        for i, views in expected.items():
            for name in RECIPE.names:
                assert (shown[i][name] - views[name]).abs().max() < 0.05 / 255 / 0.224
        built = pipeline._graph
        list(pipeline)
        assert pipeline._graph is built  # the file is known now, and not met again


@needs_dali
def test_file_that_only_pil_can_decode_goes_through_pil(photos, monkeypatch):
    from saccade.pipelines.dali_graph import Graph

    result, failures = Graph.result, [RuntimeError("Error when executing: Failed to decode sample #1 : nvJPEG")]

    def failing(graph):
        shown = result(graph)
        if failures:
            raise failures.pop()
        return shown

    expected = by_sample(dali(FolderSource(photos.folder)))
    monkeypatch.setattr(Graph, "result", failing)
    with dali(photos) as pipeline:
        shown = by_sample(pipeline)
        assert not photos.known_bad and pipeline._by_pil == {int(Order(24, 8).permutation(0)[1])}
    for i, views in expected.items():
        torch.testing.assert_close(shown[i], views, atol=1e-5, rtol=0)


@needs_dali
def test_another_error_of_dali_is_not_taken_for_a_bad_image(photos, monkeypatch):
    from saccade.pipelines.dali_graph import Graph

    monkeypatch.setattr(Graph, "result", lambda graph: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with dali(photos) as pipeline, pytest.raises(RuntimeError, match="out of memory"):
        list(pipeline)
    assert not photos.known_bad


@needs_dali
def test_epoch_left_early_then_closed_starts_again(photos):
    with dali(photos) as pipeline:
        first = next(iter(pipeline)).index
        assert pipeline.seen == 8
        pipeline.close()
        rest = torch.cat([batch.index for batch in pipeline])
        assert sorted(torch.cat([first, rest]).tolist()) == list(range(24)) and pipeline.epoch == 1
        assert pipeline.vram() == 0  # on a CPU


@needs_dali
def test_source_of_pixels_is_refused():
    source = ArraySource("pixels", np.zeros((8, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match=r"--pipeline dali: it decodes image files.*--pipeline resident"):
        build_pipeline(source, RECIPE, Order(8, 4), "dali")


# --- header -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0}, {"icc_profile": b"x" * 70_000}, {"comment": b"hello"}],
    ids=lambda o: "+".join(o) or "plain",
)
def test_header_agrees_with_pil(mode, orientation, options):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "maker", orientation
    data = stored(picture().resize((37, 21)).convert(mode), "JPEG", exif=exif if orientation else b"", **options)
    header = jpeg_header(data)
    assert (header.height, header.width) == image_size(io.BytesIO(data)) == ((37, 21) if orientation >= 5 else (21, 37))


@pytest.mark.parametrize(
    ("name", "data"),
    {
        "png": stored(picture(), "PNG"),
        "cmyk": stored(picture().convert("CMYK"), "JPEG"),
        "empty": b"",
        "rgb": stored(picture(), "JPEG", keep_rgb=True),
        "cut": stored(picture(), "JPEG")[:-70],
        "start": b"\xff\xd8\xff\xd9",
        "only": b"\xff\xd8",
        "text": b"hello\xff\xd9",
        "orientation 9": stored(
            picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0"
        ),
        "exif cut": stored(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0\x13\x01"),
    }.items(),
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_odd_header_is_left_to_pil(name, data):
    assert jpeg_header(data) is None


def test_header_never_raises_on_damage():
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    whole, draw = stored(picture(), "JPEG", exif=exif), random.Random(1)
    assert jpeg_header(whole).orientation == 6
    for _ in range(2000):
        data = bytearray(whole[: draw.randint(0, len(whole))]) if draw.random() < 0.3 else bytearray(whole)
        for _ in range(draw.randint(1, 20)):
            if data:
                data[draw.randrange(min(400, len(data)))] = draw.randrange(256)
        header = jpeg_header(bytes(data) + b"\xff\xd9")
        assert header is None or (header.height > 0 and header.width > 0)
