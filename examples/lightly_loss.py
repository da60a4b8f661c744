"""A loss of lightly's on our views, in our trainer:  saccade train --method examples/lightly_loss.py

Needs `pip install lightly`; any of its losses that takes two batches of projections fits in as this one does.
"""

from dataclasses import dataclass, replace

import torch.distributed as dist
from lightly.loss import VICRegLoss  # pyright: ignore[reportMissingImports]

from saccade.losses.functional import full_precision
from saccade.losses.objective import Method, Objective
from saccade.losses.registry import find_method
from saccade.models.heads import mlp


@dataclass(frozen=True)
class VICRegOptions:
    projector_dim: int = 256
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0


class VICReg(Objective[VICRegOptions]):
    student_views = ("view_1", "view_2")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        weights = (self.options.invariance, self.options.variance, self.options.covariance)
        self.vicreg = VICRegLoss(*weights, gather_distributed=dist.is_initialized())

    def projector(self):
        width = self.options.projector_dim
        return mlp(self.features, [width, width], width)

    def forward(self, outputs, params, label):
        return {"loss": full_precision(self.vicreg)(*(outputs.student[view].projection for view in self.student_views))}


def recipe(data, image_size=None):
    """SimCLR's for these images, whose views it takes as they are; judged by a linear classifier."""
    theirs = find_method("simclr").recipe(data, image_size)
    why = {"all": "SimCLR's recipe with another loss"}
    return replace(
        theirs, method="vicreg", options=VICRegOptions(), companion=None, protocol="linear", sources={}, proposals=why
    )


METHODS = (Method("vicreg", "lightly's VICReg loss", VICReg, recipe, published=()),)
