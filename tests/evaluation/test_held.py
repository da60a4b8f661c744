"""What a run is measured on again and again is read once, if memory holds it."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from saccade.evaluation import held as module
from saccade.evaluation.features import extract, raw_pixels
from saccade.evaluation.held import held, kept_as
from saccade.pipelines.data import open_data
from saccade.pipelines.threads import ThreadsPipeline

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def photos(folder, size):
    generator = np.random.default_rng(0)
    for k in range(12):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        (folder / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / "ab"[k % 2] / f"{k}.png")
    return open_data(str(folder))[0]


def shown(each, size):
    return extract(nn.Flatten(), each.images, size, MEAN, STD, each.share, executor=each.executor, workers=1).features


@pytest.mark.parametrize("size", [(200, 150), (40, 40)])
def test_photos_are_read_once(tmp_path, size):
    source = photos(tmp_path / "photos", size)
    direct = extract(nn.Flatten(), source, 32, MEAN, STD, 1.0, workers=1).features
    pixels = raw_pixels(source, workers=1).features
    told, bytes_told = kept_as(source, 32)
    kept = held(source, source, 32, "cpu", 1)
    assert told == ("shown" if kept.pixels else "decoded")
    assert bytes_told == kept.images.array().nbytes + (kept.pixels.features.nbytes if kept.pixels else 0)
    shutil.rmtree(tmp_path / "photos")
    for _ in range(2):
        assert (shown(kept, 32) - direct).abs().max() <= 0.51 / 255 / min(STD)
    again = kept.pixels.features if kept.pixels else raw_pixels(kept.images, workers=1).features
    assert torch.allclose(again, pixels, atol=1e-6)
    assert kept.images.labels is not None and kept.images.labels.tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize("size", [(200, 150), (40, 40)])
def test_what_cannot_be_read_is_not_measured_on(tmp_path, size):
    """A stand-in would find its own likeness among the others."""
    photos(tmp_path / "photos", size)
    (tmp_path / "photos" / "b" / "3.png").write_bytes((tmp_path / "photos" / "b" / "3.png").read_bytes()[:60])
    source = open_data(str(tmp_path / "photos"))[0]
    source.report_bad = lambda bad: source.known_bad.update(bad)  # one of twelve is more than may be bad
    kept = held(source, source, 32, "cpu", 1)
    assert len(kept.images) == 11 and kept.images.labels.tolist() == [0] * 6 + [1] * 5
    assert kept.pixels is None or len(kept.pixels) == len(kept.pixels.labels) == 11
    vectors = shown(kept, 32)
    assert len(vectors) == 11 and len(torch.unique(vectors, dim=0)) == 11


def test_more_than_memory_holds_is_left_where_it_is(tmp_path, monkeypatch):
    source = photos(tmp_path / "photos", (200, 150))
    monkeypatch.setattr(module, "available_memory", lambda: 8 * 12 * 32 * 32 * 3 - 1)
    assert kept_as(source, 32) == ("", 0.0) and held(source, source, 32, "cpu", 1).images is source


def test_photos_are_read_by_threads_on_a_cpu(tmp_path, monkeypatch):
    source, chosen, build = photos(tmp_path / "photos", (200, 150)), [], module.build_pipeline

    def noted(*args, **kwargs):
        chosen.append(pipeline := build(*args, **kwargs))
        return pipeline

    monkeypatch.setattr(module, "build_pipeline", noted)
    held(source, source, 32, "cpu", 1)
    assert [type(pipeline) for pipeline in chosen] == [ThreadsPipeline]
