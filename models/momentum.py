"""The momentum teacher: the only EMA of the project."""

# torch._foreach_* is what torch's own optimizers are written in, though not exported:
# pyright: reportPrivateImportUsage=false
import copy
from typing import Generic, TypeVar

import torch
from torch import nn

from saccade.base.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


class MomentumTeacher(nn.Module, Generic[Network]):
    """A copy of the student that follows it: teacher <- m teacher + (1 - m) student, parameters only, no gradient.

    BatchNorm buffers are the teacher's own, from its own train-mode forwards, as in ReSA, RSA, ReSSL and MoCo.
    `network` is the copy; calling the teacher calls it without gradient.
    """

    def __init__(self, student: Network) -> None:
        super().__init__()
        self.network: Network = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """Move every parameter by (1 - momentum) towards the same-named one of the student; 0 <= momentum <= 1."""
        if not 0 <= momentum <= 1:
            raise UserError(f"momentum is {momentum}; it must lie in [0, 1]")
        mine, theirs = dict(self.network.named_parameters()), dict(student.named_parameters())
        if mine.keys() != theirs.keys():
            raise UserError(f"teacher and student differ in the parameters {sorted(mine.keys() ^ theirs.keys())[:3]}")
        torch._foreach_lerp_(list(mine.values()), list(theirs.values()), 1 - momentum)

    @torch.no_grad()
    def forward(self, *args, **kwargs):
        return self.network(*args, **kwargs)
