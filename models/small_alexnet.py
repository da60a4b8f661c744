"""The small AlexNet of CACR's CIFAR and STL-10 experiments, which timm does not have, as one more timm model."""

from __future__ import annotations

from collections import OrderedDict

from timm.models import register_model
from torch import Tensor, nn

from saccade.base.errors import UserError

FEATURES = 4096
SMALLEST = 31  # pixels; three unpadded pools leave 3x3 maps of 31 or 32


class SmallAlexNet(nn.Module):
    """Five 3x3 convolutions with three pools, two linear layers, each with BatchNorm: (N, 3, S, S) -> (N, 4096).

    Weights N(0, 0.02), BatchNorm 1 and 0. With CACR's Linear(4096 -> 128) as projector 27,221,088 parameters at 32
    pixels and 58,678,368 at 64. Source: CMC and align_uniform's encoder, as JegZheng/CACR-SSL uses it; its
    evaluated layer is this output.
    """

    num_features = FEATURES
    pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "classifier": None}  # noqa: RUF012

    def __init__(self, img_size: int = 32, in_chans: int = 3) -> None:
        super().__init__()
        if img_size < SMALLEST:
            raise UserError(
                f"--backbone small_alexnet pools three times and needs images of {SMALLEST} pixels or more, not "
                f"{img_size}."
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        side = img_size
        for i, (width, pooled) in enumerate(((96, True), (192, True), (384, False), (384, False), (192, True))):
            layers[f"conv_{i}"] = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
            layers[f"bn_{i}"] = nn.BatchNorm2d(width)
            layers[f"act_{i}"] = nn.ReLU(inplace=True)
            if pooled:
                layers[f"pool_{i}"] = nn.MaxPool2d(3, 2)
                side = (side - 3) // 2 + 1
            in_chans = width
        layers["flatten"] = nn.Flatten()
        features = in_chans * side * side
        for name in ("fc6", "fc7"):
            layers[name] = nn.Linear(features, FEATURES, bias=False)
            layers[f"bn_{name}"] = nn.BatchNorm1d(FEATURES)
            layers[f"act_{name}"] = nn.ReLU(inplace=True)
            features = FEATURES
        self.layers = nn.Sequential(layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, 192, h, w): the last map, as timm's models call it."""
        for name, layer in self.layers.named_children():
            if name == "flatten":
                break
            images = layer(images)
        return images


@register_model
def small_alexnet(pretrained: bool = False, img_size: int = 32, in_chans: int = 3, **unused: object) -> SmallAlexNet:
    """timm.create_model("small_alexnet", img_size=32); `pretrained` weights do not exist."""
    return SmallAlexNet(img_size, in_chans)
