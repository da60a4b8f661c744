"""What a backbone knows of every place of an image, before it pools: a CNN's last map, a transformer's patch tokens."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor, nn

from saccade.base.errors import UserError


class FeatureMap(nn.Module):
    """(N, C, S, S) images -> (N, h, w, D): what timm's `forward_features` gives, without class and register tokens."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        if not hasattr(backbone, "forward_features"):
            raise UserError(
                f"the backbone {type(backbone).__name__} has no forward_features, which gives the features of each "
                "patch; use one of timm's, or write that method."
            )
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        found = self.backbone.forward_features(images)  # pyright: ignore[reportCallIssue]
        if isinstance(found, Tensor) and found.ndim == 4:
            last = str(getattr(self.backbone, "output_fmt", "NCHW")) == "NHWC"  # timm's word for Swin's order
            return found if last else found.permute(0, 2, 3, 1)
        if isinstance(found, Tensor) and found.ndim == 3:
            tokens = found[:, self._prefix(found.shape[1]) :]
            side = isqrt(tokens.shape[1])
            if side * side == tokens.shape[1]:
                return tokens.unflatten(1, (side, side))
        shape = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"type {type(found).__name__}"
        raise UserError(
            f"the backbone {type(self.backbone).__name__} gives features of {shape} before it pools, no map of an "
            "image's patches; choose another."
        )

    def _prefix(self, tokens: int) -> int:
        """Tokens of no place, which stand first: as timm says, or one where the rest is a square."""
        said = getattr(self.backbone, "num_prefix_tokens", None)
        if said is not None:
            return int(said)
        return int(isqrt(tokens) ** 2 != tokens)

    def shape(self, image_size: int, channels: int = 3) -> tuple[int, int, int]:
        """(h, w, D) of images of that size."""
        device = next((p.device for p in self.parameters()), None)
        before = [(module, module.training) for module in self.modules()]
        self.eval()
        with torch.no_grad():
            _, height, width, features = self(torch.zeros(1, channels, image_size, image_size, device=device)).shape
        for module, training in before:
            module.training = training
        return height, width, features
