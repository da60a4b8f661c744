"""--decode scaled: where a large JPEG is decoded at a part of its size, and what its views then show."""

import io
import json
import tomllib

import numpy as np
import pytest
import torch
from PIL import Image

from saccade import train
from saccade.base.errors import UserError
from saccade.pipelines import threads
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.data import open_data
from saccade.pipelines.draw import ViewParams, draw
from saccade.pipelines.jpeg import decode_into
from saccade.pipelines.operations import Blur, Grey, Jitter
from saccade.pipelines.order import Order
from saccade.pipelines.render import Photos, render
from saccade.pipelines.scale import MARGIN, scale_for
from saccade.pipelines.sources import ArraySource, FolderSource
from saccade.pipelines.threads import ThreadsPipeline
from saccade.pipelines.views import CentreCrop, Crop, View, Views
from saccade.tools.convert import main as convert
from tests.pipelines.files import picture, stored

COLOURS = (Jitter(0.4, 0.4, 0.4, 0.1), Grey(0.2), Blur(kernel_size=5))
RECIPE = Views(
    (
        View("weak", 32, crop=Crop((0.2, 1.0))),
        View("strong", 32, operations=COLOURS, parent="weak"),
        View("small", 14, crop=Crop((0.05, 0.2), interpolation="bicubic")),
    )
)
COUNT = 12


def natural(seed: int, height: int, width: int) -> Image.Image:
    """Noise whose spectrum falls like that of photos, by 1 / frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    waves = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
    waves[1:] = 0.8 * waves[:1] + 0.2 * waves[1:]  # channels are alike
    noise = np.fft.irfft2(waves / frequency, (height, width))
    noise = 128 + 50 * noise / noise.std(axis=(1, 2), keepdims=True)
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """JPEGs of every orientation and odd sizes, one grey; a small one, a CMYK and a PNG, which are decoded whole."""
    folder = tmp_path_factory.mktemp("photos")
    for k in range(COUNT):
        size = (60, 70) if k == 9 else (400, 520) if k % 2 else (403, 517)
        image, exif = natural(k, *size), Image.Exif()
        exif[0x0112] = k % 9 or 1
        options = {"exif": exif, "quality": 90, "subsampling": k % 3}
        image = image.convert({8: "L", 10: "CMYK"}.get(k, "RGB"))
        data = stored(image, "PNG") if k == 11 else stored(image, "JPEG", **options)
        (folder / f"{k:02}.{'png' if k == 11 else 'jpg'}").write_bytes(data)
    return folder


def batches(source, recipe=RECIPE, **options):
    with build_pipeline(source, recipe, Order(len(source), 6, seed=1), device="cpu", workers=2, **options) as pipeline:
        return list(pipeline)


# --- decoding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_scaled_pixels_are_those_of_pils_draft(scale):
    for mode, options in (("RGB", {"subsampling": 0}), ("RGB", {"subsampling": 2, "progressive": True}), ("L", {})):
        for size in ((160, 128), (163, 133)):
            data = stored(picture(1, side=256).resize(size).convert(mode), "JPEG", **options)
            out = np.empty((-(-size[1] // scale), -(-size[0] // scale), 3), np.uint8)
            assert decode_into(data, out, scale)
            with Image.open(io.BytesIO(data)) as judge:
                judge.draft(judge.mode, (size[0] // scale, size[1] // scale))
                assert np.array_equal(out, np.asarray(judge.convert("RGB")))


def test_scaled_pixels_of_another_size_than_expected_are_none():
    data = stored(picture(1, side=64), "JPEG")
    assert not decode_into(data, np.empty((33, 32, 3), np.uint8), 2)
    assert not decode_into(data[:700] + b"\xff\xd9", np.empty((32, 32, 3), np.uint8), 2)


# --- the scale -----------------------------------------------------------------------------------------------------


def params_of(box: torch.Tensor) -> ViewParams:
    return ViewParams(torch.full((len(box), 2), 9999), box, torch.zeros(len(box), dtype=torch.bool), {})


def test_every_crop_keeps_the_margin_at_the_scale_and_some_would_not_at_the_next():
    views = Views((View("a", 32), View("b", 10, Crop((0.05, 0.2)))))
    source = torch.randint(20, 4000, (500, 2), generator=torch.Generator().manual_seed(0))
    drawn = draw(views, 0, 0, torch.arange(500), source)
    scale = scale_for(views, drawn)
    assert set(scale.tolist()) == {1, 2, 4, 8}
    kept = torch.stack([drawn[v.name].box[:, 2:].amin(1) / v.size for v in views]).amin(0) / scale
    assert (kept[scale > 1] >= MARGIN).all() and (kept[scale < 8] < 2 * MARGIN).all()


def test_the_margin_itself_is_enough():
    edge = int(MARGIN * 4 * 16)
    boxes = torch.tensor([[0, 0, edge, edge], [0, 0, edge - 1, edge], [0, 0, 99 * edge, edge]])
    assert scale_for(Views((View("a", 16),)), {"a": params_of(boxes)}).tolist() == [4, 2, 4]


# --- geometry ------------------------------------------------------------------------------------------------------


def weights(start: float, length: float, pixels: int, size: int, cubic: bool) -> np.ndarray:
    """(size, pixels) by loops: the filter of each output pixel, each source pixel by its part in the crop."""
    scale = length / size
    stretch = max(scale, 1.0)
    out = np.zeros((size, pixels))
    for o in range(size):
        for i in range(pixels):
            part = min(i + 1, start + length) - max(i, start)
            x = abs(i + 0.5 - start - (o + 0.5) * scale) / stretch
            near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            value = (near if x < 1 else far if x < 2 else 0.0) if cubic else max(0.0, 1 - x)
            out[o, i] = value * max(0.0, part)
    return out / out.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_in_parts_of_pixels_are_those_of_a_plain_loop(interpolation):
    rng = np.random.default_rng(0)
    whole, scale = torch.tensor([[203, 157], [90, 81], [640, 411], [64, 64]]), torch.tensor([4, 2, 8, 1])
    size = -(-whole // scale[:, None])
    view = View("a", 12, Crop((0.3, 1.0), interpolation=interpolation))
    params = draw(Views((view,)), 0, 0, torch.arange(4), whole)
    pixels = [rng.integers(0, 256, (int(h), int(w), 3), dtype=np.uint8) for h, w in size]
    ends = torch.tensor([p.size for p in pixels]).cumsum(0)
    flat = torch.from_numpy(np.concatenate([p.reshape(-1) for p in pixels]))
    photos = Photos(flat, ends - 3 * size.prod(1), size, scale)
    out = {b: render(photos, Views((view,)), params, backend=b)["a"] for b in ("torch", "numba")}
    for n, image in enumerate(pixels):
        top, left, height, width = (params["a"].box[n].double() / scale[n]).tolist()
        rows, columns = (
            weights(*at, 12, interpolation == "bicubic")
            for at in ((top, height, image.shape[0]), (left, width, image.shape[1]))
        )
        expected = np.einsum("yi,xj,ijc->cyx", rows, columns, image / 255).clip(0, 1)
        expected = expected[..., ::-1] if params["a"].flip[n] else expected
        for name, made in out.items():
            assert np.abs(made[n].numpy() - expected).max() < 2e-5, (name, n)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_bright_spot_lies_where_the_whole_picture_has_it(tmp_path, orientation):
    """Sides that the scale divides, and that it does not; within a tenth of a view's pixel."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for k, (height, width) in enumerate(((480, 640), (477, 635))):
        y, x = np.mgrid[:height, :width]
        spot = 255 * np.exp(-((y - 130 - 200 * k) ** 2 + (x - 420 + 200 * k) ** 2) / (2 * 30**2))
        Image.fromarray(spot.astype(np.uint8)).save(tmp_path / f"{k}.jpg", quality=95, exif=exif, subsampling=0)
    recipe = Views((View("all", 24, CentreCrop()), View("cut", 20, Crop((0.6, 1.0)))))
    order, source = Order(2, 2), FolderSource(tmp_path)
    with ThreadsPipeline(source, recipe, order) as exact, ThreadsPipeline(source, recipe, order) as scaled:
        scaled.scaled = True
        [a], [b] = list(exact), list(scaled)
    for name, view in a.views.items():
        assert not torch.equal(view, b.views[name])
        grid = torch.arange(view.shape[2], dtype=torch.float32)
        for one, other in zip(view.mean(1), b.views[name].mean(1), strict=True):
            for axis in (0, 1):
                centre = [(image.sum(axis) * grid).sum() / image.sum() for image in (one, other)]
                assert abs(centre[0] - centre[1]) < 0.1


# --- views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_bytes", [False, True])
def test_views_differ_by_less_than_one_of_255_and_only_where_a_scale_was_taken(photos, as_bytes):
    source, order, means = FolderSource(photos), Order(COUNT, 6, seed=1), []
    with (
        ThreadsPipeline(source, RECIPE, order, workers=2, as_bytes=as_bytes) as exact,
        ThreadsPipeline(source, RECIPE, order, workers=2, as_bytes=as_bytes) as scaled,
    ):
        scaled.scaled = True
        for a, b in zip(exact, scaled, strict=True):
            assert torch.equal(a.index, b.index)
            for name in RECIPE.names:
                columns = b.params[name].columns()
                assert all(torch.equal(x, columns[key]) for key, x in a.params[name].columns().items())
                difference = 255 * (a.views[name] - b.views[name]).abs()
                for n, number in enumerate(a.index.tolist()):
                    if number >= 9:
                        assert torch.equal(a.views[name][n], b.views[name][n])
                    else:
                        means.append(float(difference[n].mean()))
                        assert difference[n].max() < 40
    assert 0 < np.mean(means) <= 1 and max(means) < 2 and sum(m > 0 for m in means) > len(means) / 2


def test_small_images_are_shown_to_the_bit(tmp_path):
    for k in range(6):
        (tmp_path / f"{k}.jpg").write_bytes(stored(picture(k, side=70 + k), "JPEG"))
    for a, b in zip(batches(FolderSource(tmp_path)), batches(FolderSource(tmp_path), decode="scaled"), strict=True):
        assert all(torch.equal(a.views[name], b.views[name]) for name in RECIPE.names)


def test_a_batch_in_pieces_is_the_same_batch(photos, monkeypatch):
    source, taken = FolderSource(photos), []
    with ThreadsPipeline(source, RECIPE, Order(COUNT, 12, seed=1), workers=2) as pipeline:
        buffer = pipeline._buffer
        monkeypatch.setattr(pipeline, "_buffer", lambda size: taken.append(size) or buffer(size))
        pipeline.scaled = True
        [whole] = list(pipeline)
        pipeline._together = 5
        monkeypatch.setattr(threads, "_READ_BYTES", 1)
        monkeypatch.setattr(threads, "_LEAST", 5)
        [pieces] = list(pipeline.at(0))
        assert len(taken) > 3
    assert all(torch.equal(whole.views[name], pieces.views[name]) for name in RECIPE.names)


def test_scaled_images_take_less_memory_while_they_are_decoded(photos, monkeypatch):
    source, asked = FolderSource(photos), {}
    for scaled in (False, True):
        with ThreadsPipeline(source, RECIPE, Order(COUNT, 12, seed=1), workers=1) as pipeline:
            sizes, buffer = asked.setdefault(scaled, []), pipeline._buffer
            monkeypatch.setattr(pipeline, "_buffer", lambda size, to=sizes, real=buffer: to.append(size) or real(size))
            monkeypatch.setattr(threads, "_READ_BYTES", 1)
            monkeypatch.setattr(threads, "_LEAST", 1)
            pipeline.scaled, pipeline._together = scaled, 1
            assert sum(len(batch.index) for batch in pipeline) == COUNT
    assert sum(asked[True]) < 0.7 * sum(asked[False])


def test_what_is_damaged_is_shown_as_pil_reads_it_or_replaced_as_without(photos, tmp_path):
    for k in range(COUNT):
        data = next(photos.glob(f"{k:02}.*")).read_bytes()
        data = {4: data[: len(data) // 2] + b"\xff\xd9", 6: data[: len(data) // 2]}.get(k, data)
        (tmp_path / f"{k:02}.jpg").write_bytes(data)
    exact, scaled = FolderSource(tmp_path), FolderSource(tmp_path)
    for a, b in zip(batches(exact), batches(scaled, decode="scaled"), strict=True):
        assert all(torch.equal(a.params[name].box, b.params[name].box) for name in RECIPE.names)
        assert all((a.views[name] - b.views[name]).abs().mean() * 255 <= 1 for name in RECIPE.names)
        assert all(torch.equal(a.views[n][a.index == 4], b.views[n][a.index == 4]) for n in RECIPE.names)
    assert set(exact.known_bad) == set(scaled.known_bad) == {"06.jpg"}


def test_a_beton_of_the_same_jpegs_shows_the_same_to_the_bit(tmp_path):
    (tmp_path / "photos").mkdir()
    for k in range(6):
        (tmp_path / "photos" / f"{k}.jpg").write_bytes(stored(natural(k, 300 + k, 401), "JPEG"))
    assert convert([str(tmp_path / "photos"), str(tmp_path / "x.beton")]) == 0
    beton, folder = open_data(str(tmp_path / "x.beton"))[0], FolderSource(tmp_path / "photos")
    exact = batches(folder)
    for a, b, c in zip(batches(beton, decode="scaled"), batches(folder, decode="scaled"), exact, strict=True):
        assert all(torch.equal(a.views[name], b.views[name]) for name in RECIPE.names)
        assert not torch.equal(a.views["weak"], c.views["weak"])


# --- what a user asks for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"executor": "reference"}, "--decode scaled goes with --pipeline threads, not reference; leave one"),
        ({"executor": "dali"}, "--decode scaled goes with --pipeline threads, not dali"),
        ({"executor": "resident"}, "--decode scaled goes with --pipeline threads, not resident"),
        ({"cache": "ram"}, "--cache ram keeps whole images, --decode scaled makes none; leave one of them out"),
        ({"decode": "half"}, "--decode half is unknown; use one of exact, scaled"),
    ],
)
def test_what_cannot_be_is_one_sentence(photos, asked, says):
    with pytest.raises(UserError, match=says):
        batches(FolderSource(photos), **{"decode": "scaled", **asked})


def test_pixels_in_memory_are_not_decoded():
    source = ArraySource("x", np.zeros((6, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="--decode scaled: x holds pixels, which nobody decodes; leave it out"):
        batches(source, decode="scaled")


@pytest.mark.slow
def test_a_run_records_it_goes_on_with_it_and_refuses_the_other(photos, tmp_path, capsys):
    out, machine = tmp_path / "run", ["--device", "cpu", "--workers", "1", "--no-report", "--eval-every", "0"]
    small = [
        "--backbone",
        "test_resnet",
        "--image-size",
        "32",
        "--batch-size",
        "6",
        "--steps",
        "2",
        "--checkpoint-every",
        "1",
    ]
    assert train.main([*small, *machine, "--data", str(photos), "--decode", "scaled", "--out", str(out)]) == 0
    assert "decodes large JPEGs at the scale that the crops need" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["decode"] == "scaled"
    assert tomllib.loads((out / "recipe.toml").read_text())["run"]["decode"] == "scaled"
    next((out / "checkpoints").glob("step-00000002*")).unlink()
    assert train.main(["--resume", str(out), "--decode", "exact"]) == 2
    assert "drop --decode exact: it was scaled" in capsys.readouterr().err
    assert train.main(["--resume", str(out)]) == 0
    assert "decodes large JPEGs" in capsys.readouterr().out
    assert train.main(["--data", str(photos), "--decode", "half", "--out", str(tmp_path / "no")]) == 2
    assert "--decode half is unknown; use one of exact, scaled" in capsys.readouterr().err
