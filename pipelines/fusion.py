"""Which operations of a view the compiled kernels do in one pass, and what they are told; torch does the others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from saccade.pipelines.draw import ViewParams
from saccade.pipelines.operations import USUAL, Blur, Grey, Jitter, Operation, Solarise
from saccade.pipelines.views import View


@dataclass(frozen=True)
class Run:
    """Neighbouring operations of a view, with their keys: at most one of each kind and in the kernels' order where
    `fused`, else one."""

    fused: bool
    operations: tuple[tuple[str, Operation], ...] = ()


@dataclass(frozen=True)
class Look:
    """What the kernels do to N samples of a view: jitter, grey, blur, solarise; None where the run has it not."""

    factors: Tensor | None = None  # (N, 4) float32 brightness, contrast, saturation, hue; identities where not chosen
    order: Tensor | None = None  # (N, 4) uint8
    grey: Tensor | None = None  # (N,) bool
    sigma: Tensor | None = None  # (N,) float32, 0 for no blur
    taps: int = 0
    solarise: Tensor | None = None  # (N,) bool


@lru_cache(maxsize=1024)
def runs_of(view: View) -> tuple[Run, ...]:
    """The view's operations cut into runs; the first is the kernels', who cut the view as well, and may be empty."""
    runs = [Run(True)]
    for item in view.keyed.items():
        kind, last = type(item[1]), runs[-1]
        if kind not in USUAL:
            runs.append(Run(False, (item,)))
        elif last.fused and all(USUAL.index(type(o)) < USUAL.index(kind) for _, o in last.operations):
            runs[-1] = Run(True, (*last.operations, item))
        else:
            runs.append(Run(True, (item,)))
    return tuple(runs)


def look_of(run: Run, params: ViewParams) -> Look:
    """What the kernels are told of a fused run."""
    told: dict = {}
    for key, operation in run.operations:
        drawn = params.drawn[key]
        if isinstance(operation, Jitter):
            factors = [drawn[name] for name in ("brightness", "contrast", "saturation", "hue")]
            told |= {"factors": torch.stack(factors, dim=1), "order": drawn["order"]}
        elif isinstance(operation, Grey):
            told |= {"grey": drawn["chosen"]}
        elif isinstance(operation, Blur):
            told |= {"sigma": drawn["sigma"], "taps": operation.kernel_size}
        elif isinstance(operation, Solarise):
            told |= {"solarise": drawn["chosen"]}
    return Look(**told)
