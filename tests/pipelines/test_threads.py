"""The threads executor on every kind of source: the samples, parameters and pixels of reference; what is broken."""

import time

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.base.errors import UserError
from saccade.pipelines import threads
from saccade.pipelines.build import build_pipeline, choose_executor
from saccade.pipelines.data import open_data
from saccade.pipelines.ffcv import FfcvPipeline
from saccade.pipelines.operations import Blur, Grey, Jitter
from saccade.pipelines.order import Order
from saccade.pipelines.sources import ArraySource, FolderSource
from saccade.pipelines.threads import ThreadsPipeline
from saccade.pipelines.views import Crop, View, Views
from saccade.tools.convert import main as convert
from tests.pipelines.files import picture, stored
from tests.present import present

RECIPE = Views(
    (
        View("weak", 24, crop=Crop((0.2, 1.0))),
        View("strong", 24, operations=(Jitter(0.4, 0.4, 0.4, 0.1), Grey(0.2), Blur(kernel_size=5)), parent="weak"),
        View("small", 16, crop=Crop((0.05, 0.2), interpolation="bicubic")),
    )
)
COUNT = 22


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """JPEGs of every orientation and kind, and what only PIL decodes: PNG, grey, with a palette, CMYK."""
    folder = tmp_path_factory.mktemp("photos")
    for k in range(COUNT):
        image, exif = picture(k, side=64).resize((40 + k, 61 - k)), Image.Exif()
        exif[0x0112] = k % 9 or 1
        (folder / "ab"[k % 2]).mkdir(exist_ok=True)
        kind, options = ("PNG", {}) if k in (18, 19) else ("JPEG", {"exif": exif, "subsampling": k % 3})
        image = image.convert({18: "L", 19: "P", 20: "L", 21: "CMYK"}.get(k, "RGB"))
        (folder / "ab"[k % 2] / f"{k:02}.{kind.lower()}").write_bytes(stored(image, kind, **options))
    return folder


@pytest.fixture(scope="module")
def sources(photos, tmp_path_factory):
    made = tmp_path_factory.mktemp("made")
    for name, flags in {"tar": ["--to", "wds"], "parquet": ["--to", "parquet"], "jpg.beton": []}.items():
        assert convert([str(photos), str(made / name), "--shuffle", "-1", *flags]) == 0
    np.savez(made / "x.npz", images=np.stack([np.asarray(picture(k)) for k in range(COUNT)]))
    return {
        "folder": str(photos),
        **{name: str(made / name) for name in ("tar", "parquet", "jpg.beton", "x.npz")},
        "mixed": f"{photos} + {made / 'x.npz'}",
        "subset": str(photos),
    }


def opened(sources, kind):
    source, _ = open_data(sources[kind])
    return source.subset(range(3, COUNT)) if kind == "subset" else source


def assert_alike(source, other, executor="threads"):
    """One epoch of both; pixels within the tolerance of docs/parity.md, those of cuts alone to float's rounding."""
    order = Order(len(source), 8, seed=3)
    with (
        build_pipeline(source, RECIPE, order, executor, workers=2) as ours,
        build_pipeline(other, RECIPE, order, "reference", workers=0) as judge,
    ):
        for a, b in zip(ours, judge, strict=True):
            assert torch.equal(a.index, b.index) and (a.label is None) == (b.label is None)
            assert a.label is None or torch.equal(a.label, present(b.label))
            for name in RECIPE.names:
                columns = b.params[name].columns()
                assert all(torch.equal(x, columns[column]) for column, x in a.params[name].columns().items())
                assert a.views[name].is_contiguous(memory_format=torch.channels_last)
                difference = (a.views[name] - b.views[name]).abs() * 255
                assert difference.mean() < 0.005 and difference.max() < (0.5 if name == "strong" else 0.05), name


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet", "jpg.beton", "x.npz", "mixed", "subset"])
def test_same_samples_parameters_and_pixels_as_reference(sources, kind):
    assert_alike(opened(sources, kind), opened(sources, kind))


def test_the_views_are_those_of_ffcv_to_the_bit(tmp_path):
    """The same JPEGs from a folder and from a .beton."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(12):
        (folder / f"{k:02}.jpg").write_bytes(stored(picture(k, side=50 + k), "JPEG", quality=90))
    assert convert([str(folder), str(tmp_path / "x.beton")]) == 0
    order, beton = Order(12, 4), open_data(str(tmp_path / "x.beton"))[0]
    with ThreadsPipeline(FolderSource(folder), RECIPE, order) as ours, FfcvPipeline(beton, RECIPE, order) as other:
        for a, b in zip(ours, other, strict=True):
            assert all(torch.equal(a.views[name], b.views[name]) for name in RECIPE.names)
    with build_pipeline(beton, RECIPE, order, "threads") as pipeline:
        assert isinstance(pipeline, FfcvPipeline)


@pytest.mark.parametrize("renderer", ["numba", "torch"])
def test_a_batch_in_pieces_is_the_same_batch(sources, monkeypatch, renderer):
    source, asked = opened(sources, "folder"), []
    with ThreadsPipeline(source, RECIPE, Order(COUNT, 11), workers=2, renderer=renderer) as pipeline:
        buffer = pipeline._buffer
        monkeypatch.setattr(pipeline, "_buffer", lambda size: asked.append(size) or buffer(size))
        whole = list(pipeline)
        assert len(asked) == len(whole)
        asked.clear()
        monkeypatch.setattr(threads, "_DECODED_BYTES", 20_000)
        monkeypatch.setattr(threads, "_READ_BYTES", 1)
        monkeypatch.setattr(threads, "_LEAST", 4)
        pipeline._together = 3
        pieces = list(pipeline.at(0))
        assert len(asked) >= 3 * len(whole)
        for a, b in zip(whole, pieces, strict=True):
            assert all(torch.equal(a.views[name], b.views[name]) for name in RECIPE.names)


def test_what_is_decoded_at_once_is_bounded(sources, monkeypatch):
    """By bytes, of as many threads as there may be; an image larger than that is alone."""
    source, asked = opened(sources, "folder"), []
    largest = max(3 * height * width for height, width in map(source.size, range(COUNT)))
    for most in (5 * largest // 2, largest // 2):
        monkeypatch.setattr(threads, "_DECODED_BYTES", most)
        monkeypatch.setattr(threads, "_FEW", 1)
        with ThreadsPipeline(source, RECIPE, Order(COUNT, 11), workers=4) as pipeline:
            real = pipeline._buffer
            monkeypatch.setattr(pipeline, "_buffer", lambda size, real=real: asked.append(size) or real(size))
            assert sum(len(batch.index) for batch in pipeline) == COUNT
        assert 0 < max(asked) <= max(most, largest)
        asked.clear()


def test_a_file_that_is_another_size_than_its_header_says_is_shown_as_pil_reads_it(sources, monkeypatch):
    source, other = opened(sources, "folder"), opened(sources, "folder")
    monkeypatch.setattr(threads, "image_size", lambda file: (7, 9))  # of what is no JPEG
    assert_alike(source, other)
    assert not source.known_bad


def test_auto_takes_threads_on_a_cpu_where_nothing_suits_a_source_better(sources):
    assert choose_executor("auto", opened(sources, "folder")).executor == "threads"
    assert choose_executor("auto", opened(sources, "mixed")).executor == "threads"
    assert choose_executor("auto", opened(sources, "x.npz")).executor == "resident"
    assert choose_executor("auto", opened(sources, "jpg.beton")).executor == "ffcv"


def test_views_of_a_gpu_are_cut_to_bytes_first(sources):
    source = opened(sources, "folder")
    order, cuts = Order(COUNT, 11), RECIPE.names[::2]
    with (
        ThreadsPipeline(source, RECIPE, order) as plain,
        ThreadsPipeline(source, RECIPE, order, as_bytes=True) as packed,
    ):
        for a, b in zip(plain, packed, strict=True):
            assert all((a.views[name] - b.views[name]).abs().max() <= 0.5 / 255 + 2e-5 for name in cuts)


def test_pixels_of_a_source_of_ones_own_are_read_once(monkeypatch):
    source = ArraySource("x", np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8))
    seen, read = [], source.read
    monkeypatch.setattr(source, "read", lambda i: seen.append(i) or read(i))
    with ThreadsPipeline(source, RECIPE, Order(12, 4), workers=2) as pipeline:
        list(pipeline)
    assert sorted(seen) == list(range(12))


def test_a_pipeline_is_left_at_once_while_somebody_still_iterates_it(sources):
    """Batches that were to be made are given up, and who goes on is told."""
    source = opened(sources, "folder")
    with ThreadsPipeline(source, RECIPE, Order(COUNT, 2), workers=2, timeout=20) as pipeline:
        held = iter(pipeline)
        next(held)
        started = time.monotonic()
    assert time.monotonic() - started < 10
    with pytest.raises(UserError, match="was closed in this epoch; iterate it anew"):
        list(held)
    assert time.monotonic() - started < 10
    assert len(list(pipeline.at(0))) == len(pipeline)
    pipeline.close()
