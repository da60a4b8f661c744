"""The ffcv executor and the .beton source: against the reference, and against FFCV itself where it is installed."""

import gc
import io
import json
import os
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.base.errors import UserError
from saccade.pipelines import threads
from saccade.pipelines.data import open_data
from saccade.pipelines.ffcv import FfcvPipeline
from saccade.pipelines.operations import Blur, Grey, Jitter, Solarise
from saccade.pipelines.order import Order
from saccade.pipelines.reference import ReferencePipeline
from saccade.pipelines.sources import ArraySource
from saccade.pipelines.sources.beton import HEADER, BetonSource
from saccade.pipelines.views import Crop, View, Views
from saccade.tools.conversion.prepare import Settings, prepare
from saccade.tools.conversion.write_packed import BetonWriter
from saccade.tools.conversion.writers import Item
from tests.present import present

needs_ffcv = pytest.mark.skipif(find_spec("ffcv") is None, reason="ffcv is not installed (pip install '.[ffcv]')")
SIZES = [(90, 120), (120, 90), (64, 64), (70, 133), (200, 151)]
_WEAK = View("weak", 48, crop=Crop((0.3, 1.0)))
FULL = Views(
    (
        _WEAK,
        View(
            "aggressive",
            48,
            operations=(Jitter(0.4, 0.4, 0.2, 0.1), Grey(0.2), Blur(kernel_size=5), Solarise(0.2)),
            parent="weak",
        ),
        *View(
            "small", 24, crop=Crop((0.05, 0.3), interpolation="bicubic"), operations=(Jitter(0.4, 0.4, 0.2, 0.1),)
        ).times(2),
    ),
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)
PLAIN = Views((_WEAK, View("small", 24, crop=Crop((0.05, 0.3), interpolation="bicubic"))))


def photo(number: int) -> Image.Image:
    """Smooth shapes with some noise: what a JPEG is made for."""
    height, width = SIZES[number % len(SIZES)]
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:height, :width] / 40
    waves = [np.sin(rng.uniform(0.5, 2) * x + rng.uniform(0.5, 2) * y + rng.uniform(0, 6)) for _ in range(3)]
    return Image.fromarray(
        (np.stack(waves, 2) * 90 + 128 + rng.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8)
    )


def jpeg_bytes(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def write_beton(
    path: Path, form: str, count: int = 30, damaged: tuple[int, ...] = (), ended: int | None = None, classes: int = 3
) -> Path:
    """damaged: images whose header is gone; ended: one that ends in its middle, in good order."""
    writer = BetonWriter(path.parent, path.stem, count, 1, None)
    items = [Item(i, str(i), i % classes, prepare(jpeg_bytes(photo(i)), i, Settings(form))) for i in range(count)]
    rows = writer.write(0, items, [])
    writer.finish(rows)
    with open(path, "r+b") as file:
        for i in damaged:
            file.seek(rows[i].place[1])
            file.write(bytes(100))
        if ended is not None:
            file.seek(rows[ended].place[1] + rows[ended].size // 2)
            file.write(b"\xff\xd9" + bytes(rows[ended].size - rows[ended].size // 2 - 2))
    return path


@pytest.fixture(params=["keep", "raw", "proportion"])
def beton(request, tmp_path):
    return BetonSource(write_beton(tmp_path / "x.beton", request.param))


def pair(source, recipe, batch=8, **options):
    order = Order(len(source), batch, seed=3)
    return ReferencePipeline(source, recipe, order), FfcvPipeline(source, recipe, order, workers=2, **options)


# JPEG pixels are PIL's to the bit (accurate DCT), so what is left is float32 in another order; a pixel on the edge
# between two sextants of hue, or on solarise's 0.5, may fall on the other side.
@pytest.mark.parametrize(("recipe", "largest"), [(PLAIN, 2e-5), (FULL, 2e-3)])
def test_same_samples_parameters_and_pixels_as_the_reference(beton, recipe, largest):
    reference, ours = pair(beton, recipe)
    with ours:
        for a, b in zip(reference, ours, strict=True):
            assert (
                torch.equal(a.index, b.index)
                and torch.equal(present(a.label), present(b.label))
                and list(a.views) == list(b.views)
            )
            for name in recipe.names:
                columns = a.params[name].columns().items()
                assert all(torch.equal(x, b.params[name].columns()[column]) for column, x in columns)
                assert b.views[name].is_contiguous(memory_format=torch.channels_last)
                difference = (a.views[name] - b.views[name]).abs()
                # solarise folds at 0.5 without a jump; only a hue's sextant can jump
                assert difference.quantile(0.9999) <= largest and difference.mean() <= largest / 10, name


def test_views_cut_to_bytes_and_finished_later_differ_by_rounding_only(beton):
    reference, ours = pair(beton, PLAIN, as_bytes=True)
    with ours:
        for a, b in zip(reference, ours, strict=True):
            for name in PLAIN.names:
                assert (a.views[name] - b.views[name]).abs().max() <= 0.5 / 255 + 2e-5
    reference, ours = pair(beton, FULL, as_bytes=True)
    with ours:
        a, b = next(iter(reference)), next(iter(ours))
        assert all((a.views[n] - b.views[n]).abs().mean() * 0.225 <= 1 / 255 for n in FULL.names)


def test_a_batch_is_the_same_when_memory_lets_it_through_in_pieces(tmp_path, monkeypatch):
    source = BetonSource(write_beton(tmp_path / "x.beton", "proportion"))
    _, ours = pair(source, FULL)
    with ours:
        whole = list(ours)
        monkeypatch.setattr(threads, "_READ_BYTES", 1)
        monkeypatch.setattr(threads, "_LEAST", 1)
        ours._together = 1
        assert sum(1 for _ in ours._read_ahead(whole[0].index)) > 2
        ours.load_state_dict({"epoch": 0, "seen": 0, "samples": len(source)})
        for a, b in zip(whole, ours, strict=True):
            assert all(torch.equal(a.views[name], b.views[name]) for name in FULL.names)


def test_epochs_have_their_length_and_resuming_in_the_middle_goes_on(tmp_path):
    source = BetonSource(write_beton(tmp_path / "x.beton", "keep"))
    _, ours = pair(source, PLAIN)
    with ours:
        epochs = [list(ours) for _ in range(3)]
        assert [len(epoch) for epoch in epochs] == [len(ours)] * 3
    _, again = pair(source, PLAIN)
    with again:
        steps = iter(again)
        next(steps), next(steps)
        state = again.state_dict()
    halves = [FfcvPipeline(source, PLAIN, Order(len(source), 8, 3, rank, 2)) for rank in range(2)]
    for half in halves:
        half.load_state_dict(state)
    for expected, *parts in zip(epochs[0][2:], *halves, strict=True):
        assert torch.equal(torch.stack([part.index for part in parts], 1).flatten(), expected.index)
        assert torch.equal(torch.stack([part.views["weak"] for part in parts], 1).flatten(0, 1), expected.views["weak"])
    for half in halves:
        half.close()


@pytest.mark.slow
def test_leaving_an_epoch_early_50_times_leaks_nothing_and_keeps_torchs_threads(tmp_path):
    source = BetonSource(write_beton(tmp_path / "x.beton", "keep"))
    before, torch_threads = threading.active_count(), torch.get_num_threads()

    def leave_early(times: int) -> tuple[int, int]:
        for _ in range(times):
            with pair(source, PLAIN)[1] as ours:
                for _batch in ours:
                    break
        gc.collect()
        return len(os.listdir("/proc/self/fd")), int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    files, memory = leave_early(5)
    files_after, memory_after = leave_early(50)
    rendering = sum(thread.name.startswith("render") for thread in threading.enumerate())  # shared, kept on purpose
    assert threading.active_count() - rendering <= before
    assert files_after <= files and memory_after - memory < 16 << 20
    assert torch.get_num_threads() == torch_threads


def test_an_error_in_a_thread_arrives_and_the_pipeline_can_be_used_again(tmp_path, monkeypatch):
    source = BetonSource(write_beton(tmp_path / "x.beton", "keep"))
    _, ours = pair(source, PLAIN)
    with ours:
        with monkeypatch.context() as patch:
            patch.setattr(threads, "decode_upright", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                next(iter(ours))
        assert len(list(ours)) == len(ours)


def test_a_decoder_that_does_not_come_back_is_an_error_not_a_hang(tmp_path, monkeypatch):
    source = BetonSource(write_beton(tmp_path / "x.beton", "keep"))
    _, ours = pair(source, PLAIN, timeout=0.2)
    release = threading.Event()
    monkeypatch.setattr(threads, "decode_upright", lambda *_: release.wait(20))
    started = time.monotonic()
    with pytest.raises(UserError, match="no batch for"), ours:
        next(iter(ours))
    assert time.monotonic() - started < 5
    release.set()


def test_damaged_images_are_replaced_as_the_reference_does_and_named(tmp_path):
    path = write_beton(tmp_path / "x.beton", "keep", damaged=(4, 5), ended=11)
    reference, ours = pair(BetonSource(path), PLAIN)[0], pair(BetonSource(path), PLAIN)[1]
    with ours:
        for a, b in zip(reference, ours, strict=True):
            assert torch.equal(a.index, b.index) and torch.equal(present(a.label), present(b.label))
            assert (a.views["weak"] - b.views["weak"]).abs().max() < 2e-5
    assert sorted(ours.source.known_bad) == ["x.beton[4]", "x.beton[5]"] == sorted(reference.source.known_bad)


def test_more_than_a_tenth_of_damaged_images_stops_with_their_names(tmp_path):
    source = BetonSource(write_beton(tmp_path / "x.beton", "keep", damaged=(4, 5, 9, 20)))
    _, ours = pair(source, PLAIN, batch=10)  # an epoch shows all 30
    with ours, pytest.raises(UserError, match=r"4 images cannot be read so far, .* all 30; .*x.beton\[4\]"):
        list(ours)


def test_only_betons_are_taken(tmp_path):
    arrays = ArraySource("a", np.zeros((8, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"reads .beton files.*saccade convert"):
        FfcvPipeline(arrays, PLAIN, Order(8, 4))


# ---------------------------------------------------------------- the file format


def cut(path, size):
    os.truncate(path, size)


def change_header(path, field, value):
    header = np.fromfile(path, HEADER, count=1)
    header[field] = value
    with open(path, "r+b") as file:
        file.write(header.tobytes())


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda p: cut(p, 0), "0 bytes are no .beton"),
        (lambda p: cut(p, 10), "10 bytes are no .beton"),
        (lambda p: cut(p, 1000), "is cut short"),
        (lambda p: cut(p, p.stat().st_size // 2), "is cut short"),
        (lambda p: cut(p, p.stat().st_size - 5), "damaged or cut short"),
        (lambda p: cut(p, p.stat().st_size - 24), "damaged or cut short"),
        (lambda p: change_header(p, "version", 1), "version 1.*version 2 is read"),
        (lambda p: p.write_bytes(b"\x89PNG" + bytes(5000)), "or no .beton at all"),
        (lambda p: change_header(p, "alloc_table_ptr", 0), "never finished"),
        (lambda p: change_header(p, "num_samples", 0), "holds no images"),
        (lambda p: change_header(p, "num_samples", 31), "damaged"),
    ],
)
def test_a_beton_that_is_not_whole_is_refused_in_one_sentence(tmp_path, harm, words):
    path = write_beton(tmp_path / "x.beton", "keep", 30)
    harm(path)
    with pytest.raises(UserError, match=words) as error:
        open_data(str(path))
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_folder_of_betons_opens_with_its_validation_split_and_class_names(tmp_path):
    for name in ("train", "val"):
        write_beton(tmp_path / f"{name}.beton", "keep", 9)
    split = {"images": 9, "files": ["train.beton"], "labelled": True, "heights": [1, 9], "widths": [1, 9]}
    (tmp_path / "manifest.json").write_text(
        json.dumps(
            {
                "format": "saccade data, version 1",
                "to": "beton",
                "classes": ["ant", "bee", "cat"],
                "source": "x",
                "splits": {"train": split, "val": {**split, "files": ["val.beton"]}},
            }
        )
    )
    train, val = open_data(str(tmp_path))
    assert train.reader.path.name == "train.beton" and val.reader.path.name == "val.beton"
    assert train.classes == val.classes == ("ant", "bee", "cat") and train.labels.tolist() == [0, 1, 2] * 3


def test_data_never_crosses_a_page_even_when_an_image_is_larger_than_one(tmp_path):
    rng = np.random.default_rng(0)
    sides = [800, 1700, 800, 1300, 2100, 300]  # up to 13 MB in pages of 8
    images = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in sides]
    writer = BetonWriter(tmp_path, "x", len(images), 1, None)
    writer.finish(writer.write(0, [Item(i, "", 0, prepare(im, i, Settings("raw"))) for i, im in enumerate(images)], []))
    source = BetonSource(tmp_path / "x.beton")
    page = int(np.fromfile(tmp_path / "x.beton", HEADER, count=1)["page_size"][0])
    assert (source.ptr // page == (source.ptr + source.length - 1) // page).all()
    assert all(np.array_equal(source.read(i), image) for i, image in enumerate(images))


_FFCV = """
import sys, numpy as np
from pathlib import Path
sys.path.insert(0, {root!r})
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.writer import DatasetWriter
from saccade.pipelines.sources.beton import BetonSource
from PIL import Image

def theirs(path, os_cache):
    loader = Loader(path, 4, num_workers=1, os_cache=os_cache, order=OrderOption.SEQUENTIAL, drop_last=False,
                    pipelines={{"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}})
    for images, labels in loader:
        yield from zip(images.copy(), labels[:, 0].tolist())

def compare(path, os_cache, tolerance):
    ours, seen = BetonSource(Path(path)), 0
    for i, (pixels, label) in enumerate(theirs(path, os_cache)):
        assert abs(pixels.astype(int) - ours.read(i)).max() <= tolerance(ours.is_jpeg[i]), (path, i)
        assert label == ours.labels[i]
        seen += 1
    assert seen == len(ours) == 12

class Images:
    def __len__(self): return 12
    def __getitem__(self, i):
        y, x = np.mgrid[:40, :56]
        return np.stack([(x * 3 + i * 9) % 256, (y * 4) % 256, x + y], 2).astype(np.uint8) // 2 + 40, i % 5

tolerance = lambda is_jpeg: 20 if is_jpeg else 0  # FFCV asks for the fast inverse DCT
for mode in ("raw", "jpg", "proportion", "smart"):
    path = f"{folder}/{{mode}}.beton"
    fields = {{"image": RGBImageField(mode), "label": IntField()}}
    DatasetWriter(path, fields, num_workers=1).from_indexed_dataset(Images())
    compare(path, True, tolerance)
for form in ("keep", "raw"):
    for os_cache in (True, False):
        compare(f"{folder}/{{form}}.beton", os_cache, tolerance)
print("same")
"""


@needs_ffcv
@pytest.mark.slow  # FFCV compiles its loader anew each time
def test_ffcv_reads_our_files_and_we_read_its(tmp_path):
    for form in ("keep", "raw"):
        writer = BetonWriter(tmp_path, form, 12, 1, None)
        image = photo(0)
        writer.finish(
            writer.write(
                0, [Item(i, "", i % 4, prepare(jpeg_bytes(image.rotate(i)), i, Settings(form))) for i in range(12)], []
            )
        )
    code = _FFCV.format(root=str(Path(__file__).parents[2]), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert "same" in done.stdout, done.stderr[-2000:]
