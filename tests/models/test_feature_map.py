"""Features of every place: timm's own intermediate features, in the same order, without tokens of no place."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from saccade.base.errors import UserError
from saccade.models.backbone import BackboneSpec, create_backbone
from saccade.models.feature_map import FeatureMap

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def map_of(model, images=IMAGES):
    with torch.no_grad():
        return FeatureMap(model.eval())(images)


@pytest.mark.parametrize(
    ("name", "options", "grid"),
    [
        ("test_resnet", {}, 2),
        ("test_vit", {"img_size": 64}, 4),
        ("test_vit", {"img_size": 64, "reg_tokens": 3}, 4),
        ("test_vit", {"img_size": 64, "class_token": False, "global_pool": "avg"}, 4),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 1, 1, 1)},
            2,
        ),
        ("test_convnext", {}, 2),
    ],
)
def test_it_is_what_timm_calls_the_last_intermediate(name, options, grid):
    model: Any = timm.create_model(name, num_classes=0, **options).eval()
    found = map_of(model)
    with torch.no_grad():
        wanted = model.forward_intermediates(IMAGES, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True)
    assert found.shape[:3] == (2, grid, grid) and FeatureMap(model).shape(64) == found.shape[1:]
    torch.testing.assert_close(found.permute(0, 3, 1, 2), wanted[-1])


@pytest.mark.parametrize("stem", ["cifar", "cifar-pad", "plain"])
def test_the_mean_over_a_resnets_map_is_its_pooled_feature(stem):
    model = create_backbone(BackboneSpec("test_resnet", stem), 64).eval()
    with torch.no_grad():
        torch.testing.assert_close(map_of(model).mean((1, 2)), model(IMAGES), rtol=1e-4, atol=1e-5)


def test_the_small_alexnets_map_is_what_its_linear_layers_see():
    model: Any = create_backbone(BackboneSpec("small_alexnet"), 32).eval()
    images = IMAGES[:, :, :32, :32]
    with torch.no_grad():
        rest = model.layers[list(dict(model.layers.named_children())).index("flatten") :]
        torch.testing.assert_close(rest(map_of(model, images).permute(0, 3, 1, 2)), model(images))


def test_a_backbone_without_a_map_is_one_sentence():
    with pytest.raises(UserError, match="Flatten has no forward_features"):
        FeatureMap(nn.Flatten())
    model: Any = timm.create_model("test_resnet", num_classes=0)
    model.forward_features = lambda images: [images]
    with pytest.raises(UserError, match="ResNet gives features of type list before it pools"):
        map_of(model)


def test_asking_for_the_shape_leaves_the_backbone_as_it_was():
    model: Any = timm.create_model("test_resnet", num_classes=0)
    model.train()
    model.layer1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    FeatureMap(model).shape(64)
    assert model.training and not model.layer1.training and model.layer2.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
