"""An operation outside the tree:  saccade preview --set views.view_1.operations+=examples/own_operation.py:Vignette"""

from dataclasses import dataclass

import torch

from saccade.pipelines.operations import Operation


@dataclass(frozen=True)
class Vignette(Operation):
    """Darker towards the corners, as under a microscope: x -> x (1 - strength r^2), r = 1 in a corner."""

    p: float = 0.5
    strength: tuple[float, float] = (0.3, 0.9)
    numbers = 1  # random numbers that `draw` is given for each image

    def fault(self, size):
        return "" if 0 <= self.strength[0] <= self.strength[1] <= 1 else "strength: give two rising numbers, 0 to 1."

    def draw(self, u):
        low, high = self.strength
        return {"strength": (low + (high - low) * u[:, 0]).float()}

    def apply(self, image, drawn):
        y, x = (torch.linspace(-1, 1, side, device=image.device) for side in image.shape[-2:])
        return image * (1 - drawn["strength"][:, None, None, None] * (y[:, None] ** 2 + x**2) / 2)
