"""A backbone outside the tree:  saccade train --backbone examples/own_backbone.py:four_convolutions"""

from timm.models import register_model
from torch import Tensor, nn


class FourConvolutions(nn.Module):
    """(N, 3, S, S) -> (N, 128)."""

    num_features = 128

    def __init__(self, channels: int = 3, width: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((channels, 16), (16, 32), (32, 64), (64, width)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@register_model
def four_convolutions(pretrained: bool = False, in_chans: int = 3, **unused: object) -> FourConvolutions:
    """timm calls it, with pretrained=False, num_classes=0 and the recipe's backbone.options."""
    return FourConvolutions(in_chans)
