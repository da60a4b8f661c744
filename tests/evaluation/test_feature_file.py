"""Kept features: the same to float16, extracted once, gone on with after a stop, and never taken for others."""

import numpy as np
import pytest
import torch
from torch import nn

from saccade.base.errors import UserError
from saccade.evaluation import feature_file
from saccade.evaluation.feature_file import FeatureFile
from saccade.evaluation.features import extract
from saccade.pipelines.sources import ArraySource

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Counting(nn.Module):
    """Mean and spread of every channel; ends the run at image number `stop_at`."""

    def __init__(self, stop_at: int | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.images, self.stop_at, self.scale = 0, stop_at, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stop_at is not None and self.images >= self.stop_at:
            raise KeyboardInterrupt
        self.images += len(x)
        return self.scale * torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path))
    monkeypatch.setattr(feature_file, "EVERY", 0.0)


@pytest.fixture(scope="module")
def source():
    generator = np.random.default_rng(0)
    return ArraySource("noise", generator.integers(0, 256, (37, 32, 32, 3), dtype=np.uint8), np.arange(37) % 5)


def kept(source, backbone, key="key"):
    return extract(backbone, source, 32, MEAN, STD, batch_size=8, kept=FeatureFile(key, len(source)))


def test_they_are_the_features_as_float16_and_made_once(source):
    plain, backbone = extract(Counting(), source, 32, MEAN, STD), Counting()
    for _ in range(2):
        found = kept(source, backbone)
        assert torch.equal(found.features, plain.features.half()) and torch.equal(found.labels, plain.labels)
    assert backbone.images == 37


def test_a_stop_costs_what_was_not_written(source):
    with pytest.raises(KeyboardInterrupt):
        kept(source, Counting(stop_at=20))
    rest = Counting()
    found = kept(source, rest)
    assert rest.images < 37 and torch.equal(found.features, extract(Counting(), source, 32, MEAN, STD).features.half())


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00nonsense"])
def test_a_damaged_file_is_made_anew(source, tmp_path, damage):
    kept(source, Counting())
    (tmp_path / "features/key/features.npy").write_bytes(damage)
    (tmp_path / "features/key/done-0.json").write_text('{"end": 37, "bad": {}}')
    assert kept(source, Counting()).features.shape == (37, 6)


@pytest.mark.parametrize("told", ["[]", '{"end": "37", "bad": {}}', '{"end": 99, "bad": {}}', "[" * 5000])
def test_a_record_of_it_that_is_none_begins_anew(source, tmp_path, told):
    kept(source, Counting())
    (tmp_path / "features/key/done-0.json").write_text(told)
    backbone = Counting()
    assert kept(source, backbone).features.shape == (37, 6) and backbone.images == 37


def test_its_room_is_on_the_disk_before_it_is_written_to(source, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_file.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"the features cannot be kept there .No space left on device"):
        kept(source, Counting())


def test_what_was_unreadable_is_still_told(source):
    class Bad(Counting):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            source.known_bad["7"] = "cut short"
            return super().forward(x)

    kept(source, Bad())
    source.known_bad.clear()
    kept(source, Counting(stop_at=0))
    assert source.known_bad == {"7": "cut short"}
    source.known_bad.clear()


def test_a_feature_beyond_float16_is_one_sentence(source):
    with pytest.raises(UserError, match=r"beyond what float16 holds .* leave out --keep-features"):
        kept(source, Counting(scale=1e9))
