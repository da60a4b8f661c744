"""The layers of a backbone from its input on: frozen, or slower the nearer they are to it (for weights that exist)."""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from torch import nn

from saccade.base.errors import UserError


def layers(backbone: nn.Module, coarse: bool = False) -> dict[str, int]:
    """Parameter name -> its layer, 0 at the input: blocks by timm's own grouping; coarse: a ResNet's stages."""
    model: Any = backbone
    if not hasattr(model, "group_matcher"):
        raise UserError(f"{type(backbone).__name__} does not say which layers it has; leave out freezing and decay.")
    return group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)


def freeze(backbone: nn.Module, count: int) -> None:
    """Take the first `count` coarse layers (the stem is one) out of training; BatchNorm's statistics still move."""
    found = layers(backbone, coarse=True)
    there = max(found.values()) + 1
    if not 0 <= count < there:
        raise UserError(f"--set backbone.freeze={count}: this backbone has {there} layers; give 0 to {there - 1}.")
    for name, parameter in backbone.named_parameters():
        if found[name] < count:
            parameter.requires_grad_(False)


def slower_below(groups: list[dict[str, Any]], backbone: nn.Module, decay: float) -> list[dict[str, Any]]:
    """The groups of an optimizer, split by layer: `lr_scale` is decay ** (layers above it), 1 outside the backbone.

    Source: layer-wise learning-rate decay of Clark et al. 2020 (ELECTRA), as BEiT and MAE fine-tune.
    """
    found = layers(backbone)
    scales = {id(p): decay ** (max(found.values()) + 1 - found[name]) for name, p in backbone.named_parameters()}
    split: dict[tuple[int, float], dict[str, Any]] = {}
    for i, group in enumerate(groups):
        for parameter in group["params"]:
            scale = scales.get(id(parameter), 1.0)
            split.setdefault((i, scale), {**group, "params": [], "lr_scale": scale})["params"].append(parameter)
    return list(split.values())
