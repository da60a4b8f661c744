"""The MLP heads of every method: projector, predictor, inverse model. One builder, the differences are arguments."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from saccade.base.errors import UserError

OUTPUT_NORMS = ("none", "affine", "gamma", "plain")


def mlp(
    features: int,
    hidden: Sequence[int],
    out: int,
    *,
    hidden_bias: bool = True,
    hidden_norm: bool = True,
    out_bias: bool = True,
    out_norm: str = "none",
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear [- BatchNorm] - activation for each hidden width, then Linear [- BatchNorm]: (N, features) -> (N, out).

    out_norm: "none", "affine" (weight and bias), "gamma" (weight learned, bias frozen at 0; S-TEC), "plain" (neither;
    ReSA, MoCo v3). Modules are called linear_0, bn_0, ..., linear_out, bn_out: optimizers excluding by name rely on it.

    Examples:
        >>> [name for name, _ in mlp(512, [512, 512], 128, out_norm="plain").named_children()]
        ['linear_0', 'bn_0', 'act_0', 'linear_1', 'bn_1', 'act_1', 'linear_out', 'bn_out']
    """
    if out_norm not in OUTPUT_NORMS:
        raise UserError(f"out_norm {out_norm!r} is none of {OUTPUT_NORMS}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, width in enumerate(hidden):
        layers[f"linear_{i}"] = nn.Linear(features, width, bias=hidden_bias)
        if hidden_norm:
            layers[f"bn_{i}"] = nn.BatchNorm1d(width)
        layers[f"act_{i}"] = activation()
        features = width
    layers["linear_out"] = nn.Linear(features, out, bias=out_bias)
    if out_norm != "none":
        layers["bn_out"] = nn.BatchNorm1d(out, affine=out_norm != "plain")
        if out_norm == "gamma":
            layers["bn_out"].bias.requires_grad_(False)
    return nn.Sequential(layers)


def linear_classifier(features: int, classes: int) -> nn.Linear:
    """Linear, weight N(0, 0.01), bias 0: the online classifier and the probes of every protocol."""
    head = nn.Linear(features, classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head
