"""A method outside the tree:  saccade train --method examples/own_method.py

SimCLR's views and recipe with another loss: decorrelated dimensions (Barlow Twins, arXiv 2103.03230, Eq. 1).
"""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from saccade.losses.functional import full_precision
from saccade.losses.objective import Method, Objective
from saccade.losses.recipe import TrainingRecipe
from saccade.losses.registry import find_method
from saccade.models.gather import all_gather
from saccade.models.heads import mlp


@full_precision
def decorrelation_loss(z1: Tensor, z2: Tensor, off_diagonal: float) -> Tensor:
    """L = sum_i (1 - C_ii)^2 + off_diagonal * sum_{i != j} C_ij^2; C: the correlations of (N, D) z1 and z2."""
    z1, z2 = ((z - z.mean(0)) / (z.std(0) + 1e-6) for z in (z1, z2))
    correlation = z1.T @ z2 / len(z1)
    on = (1 - correlation.diagonal()).square().sum()
    return on + off_diagonal * (correlation.square().sum() - correlation.diagonal().square().sum())


@dataclass(frozen=True)
class BarlowOptions:
    off_diagonal: float = 0.005
    projector_dim: int = 128


class Barlow(Objective[BarlowOptions]):
    student_views = ("view_1", "view_2")

    def projector(self) -> nn.Module:
        return mlp(self.features, [self.options.projector_dim], self.options.projector_dim)

    def forward(self, outputs, params, label) -> dict[str, Tensor]:
        z1, z2 = (all_gather(outputs.student[name].projection) for name in self.student_views)
        return {"loss": decorrelation_loss(z1, z2, self.options.off_diagonal)}


def recipe(data: str, image_size: int | None = None) -> TrainingRecipe:
    """SimCLR's for these images, whose views it takes as they are; judged by a linear classifier."""
    theirs = find_method("simclr").recipe(data, image_size)
    why = {"all": "SimCLR's recipe with another loss"}
    return replace(
        theirs, method="barlow", options=BarlowOptions(), companion=None, protocol="linear", sources={}, proposals=why
    )


METHODS = (Method("barlow", "decorrelate the dimensions of two views", Barlow, recipe, published=()),)
