"""Features: what the backbone is shown, the mode it is in, and that batches, subsets and folders change nothing."""

import numpy as np
import pytest
import timm
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import nn

from saccade.base.errors import UserError
from saccade.evaluation.features import extract, raw_pixels, spread_rows
from saccade.models.backbone import replace_stem
from saccade.models.quality import effective_rank, feature_std
from saccade.pipelines.sources import ArraySource, FolderSource
from saccade.pipelines.views import Crop, View, Views

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def source():
    generator = np.random.default_rng(0)
    return ArraySource("noise", generator.integers(0, 256, (37, 32, 32, 3), dtype=np.uint8), np.arange(37) % 5)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return replace_stem(timm.create_model("test_resnet", num_classes=0), "cifar")


def test_features_are_the_backbones_own_in_eval_mode(source, backbone):
    found = extract(backbone.train(), source, 32, MEAN, STD)
    images = TF.normalize(torch.from_numpy(source.images).permute(0, 3, 1, 2) / 255, list(MEAN), list(STD))
    with torch.no_grad():
        expected = backbone.eval()(images)
    torch.testing.assert_close(found.features, expected, rtol=1e-4, atol=1e-5)
    assert found.features.dtype == torch.float32 and not found.features.requires_grad
    assert found.labels.tolist() == source.labels.tolist()


def test_every_module_gets_its_mode_back_and_batchnorm_does_not_move(source, backbone):
    backbone.train()
    backbone.bn1.eval()
    before = {
        name: (m.training, m.running_mean.clone() if isinstance(m, nn.BatchNorm2d) else None)
        for name, m in backbone.named_modules()
    }
    extract(backbone, source, 32, MEAN, STD)
    for name, module in backbone.named_modules():
        training, running = before[name]
        assert module.training == training, name
        assert running is None or torch.equal(module.running_mean, running), name


def test_batch_size_does_not_change_features(source, backbone):
    whole = extract(backbone, source, 32, MEAN, STD).features
    for size in (1, 7):
        torch.testing.assert_close(
            extract(backbone, source, 32, MEAN, STD, batch_size=size).features, whole, rtol=1e-4, atol=1e-5
        )


def test_a_folder_of_mixed_sizes_gives_one_row_per_image(tmp_path, backbone):
    for name, (width, height) in (("cat/a", (40, 90)), ("cat/b", (33, 20)), ("dog/c", (64, 64))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    folder = FolderSource(tmp_path)
    found = extract(backbone, folder, 32, MEAN, STD, fraction=0.875, workers=0, batch_size=2)
    assert found.features.shape == (3, backbone.num_features) and found.labels.tolist() == [0, 0, 1]
    pixels = raw_pixels(folder, size=8, workers=0)
    assert pixels.features.shape == (3, 192)
    square = Image.open(tmp_path / "cat/a.png").crop((0, 25, 40, 65)).resize((8, 8), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(square)).permute(2, 0, 1).flatten() / 255
    assert (pixels.features[0] - expected).abs().max() <= 1 / 255  # PIL rounds to uint8


def test_raw_pixels_are_the_pixels(source):
    found = raw_pixels(source, 32).features
    expected = torch.from_numpy(source.images).permute(0, 3, 1, 2).flatten(1) / 255
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_augment_renders_the_recipe_instead_of_the_centre_crop(source):
    recipe = Views((View("flipped", 32, crop=Crop((1.0, 1.0), (1.0, 1.0)), flip=1.0),))
    found = extract(nn.Flatten(), source, 32, MEAN, STD, augment=recipe).features
    expected = torch.from_numpy(source.images).permute(0, 3, 1, 2).flip(3).flatten(1) / 255
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("labels", [np.arange(6000) % 10, np.arange(6000) // 600], ids=["repeating", "sorted"])
def test_a_subset_is_fixed_distinct_and_holds_every_class(labels):
    rows = spread_rows(6000, 600)
    assert np.array_equal(rows, spread_rows(6000, 600)) and len(np.unique(rows)) == 600
    assert np.bincount(labels[rows], minlength=10).min() >= 35
    assert rows.min() >= 0 and rows.max() < 6000


def test_bf16_features_come_back_as_float32_and_close(source, backbone):
    exact = extract(backbone, source, 32, MEAN, STD).features
    found = extract(backbone, source, 32, MEAN, STD, precision="bf16").features
    assert found.dtype == torch.float32 and not torch.equal(found, exact)
    assert (found - exact).norm() / exact.norm() < 0.05
    with pytest.raises(UserError, match="'int8' is unknown; use one of fp32"):
        extract(backbone, source, 32, MEAN, STD, precision="int8")


def test_labels_are_none_without_labels(source):
    assert (extract(nn.Flatten(), ArraySource("plain", source.images), 32, MEAN, STD).labels == -1).all()


def test_quality_tells_spread_from_collapse():
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(4000, 32, generator=generator)
    assert feature_std(spread) == pytest.approx(1, abs=0.02) and effective_rank(spread) == pytest.approx(32, rel=0.02)
    one_point = torch.ones(400, 32)
    assert feature_std(one_point) == pytest.approx(0, abs=1e-6) and effective_rank(one_point) == pytest.approx(
        1, abs=1e-3
    )
    flat = torch.randn(400, 3, generator=generator) @ torch.linalg.qr(torch.randn(32, 3, generator=generator))[0].T
    assert effective_rank(flat) == pytest.approx(3, rel=0.02)
    assert effective_rank(torch.randn(5, 64, generator=generator)) <= 5


def test_effective_rank_is_the_entropy_of_the_singular_values():
    x = torch.randn(20, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    s = torch.linalg.svdvals(x)
    assert effective_rank(x) == pytest.approx(torch.distributions.Categorical(s / s.sum()).entropy().exp().item())
