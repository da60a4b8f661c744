"""Pieces that several losses share: distances, conditional distributions, soft cross-entropy, Sinkhorn-Knopp.

All are computed in float32 at least (float64 stays float64), autocast or not: see `full_precision`.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.base.errors import UserError
from saccade.models.gather import all_gather_no_grad, all_reduce_sum, own_places, rank, world_size


def _promoted(value):
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, list | tuple):
        return type(value)(_promoted(item) for item in value)
    return value


def _device_type(value) -> str | None:
    if isinstance(value, Tensor):
        return value.device.type
    if isinstance(value, list | tuple) and value:
        return _device_type(value[0])
    return None


def full_precision(function: Callable) -> Callable:
    """Run `function` with autocast off and its half-precision tensors, also those in lists, as float32."""

    @functools.wraps(function)
    def computed(*args, **kwargs):
        values = (*args, *kwargs.values())
        device = next((kind for kind in map(_device_type, values) if kind), "cpu")
        with torch.autocast(device, enabled=False):
            return function(*map(_promoted, args), **{key: _promoted(value) for key, value in kwargs.items()})

    return computed


def require_positive(**values: float) -> None:
    """Raise UserError naming the first value that is not above 0, e.g. `require_positive(temperature=0.0)`."""
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"{name} is {value}; it must be above 0")


def require_at_least_zero(**values: float) -> None:
    """Raise UserError naming the first value below 0, e.g. `require_at_least_zero(t_teacher=-1.0)`."""
    for name, value in values.items():
        if not value >= 0:
            raise UserError(f"{name} is {value}; it must be 0 or above")


def require_unit_interval(**values: float) -> None:
    """Raise UserError naming the first value outside [0, 1], e.g. `require_unit_interval(teacher_momentum=1.5)`."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value}; it must lie in [0, 1]")


def normalise(x: Tensor) -> Tensor:
    """Rows of x (..., D) at unit length, in float32 at least.

    Examples:
        >>> normalise(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """
    with torch.autocast(x.device.type, enabled=False):
        return F.normalize(_promoted(x), dim=-1)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 as |a_i|^2 + |b_j|^2 - 2 a_i.b_j, clamped at 0: (..., N, D), (..., M, D) -> (..., N, M).

    The squared lengths are kept although they are 1 for unit rows: they cost nothing beside the product, and without
    them the gradient is right only up to a radial part.
    """
    lengths = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2)
    return (lengths - 2 * a @ b.transpose(-1, -2)).clamp_min(0)


def attraction_weights(distances: Tensor, t: float, *, detach: bool, dim: int = -1) -> Tensor:
    """softmax(+t d^2) over `dim`: far positives weigh more (CACR)."""
    return F.softmax(t * (distances.detach() if detach else distances), dim=dim)


def repulsion_weights(distances: Tensor, t: float, *, detach: bool, dim: int = -1) -> Tensor:
    """softmax(-t d^2) over `dim`: near negatives weigh more (CACR).

    Examples:
        >>> repulsion_weights(torch.tensor([0.0, 1.0, 4.0]), 1.0, detach=True).round(decimals=2)
        tensor([0.7200, 0.2700, 0.0100])
    """
    return attraction_weights(distances, -t, detach=detach, dim=dim)


def drop_diagonal(matrix: Tensor) -> Tensor:
    """(..., N, N) -> (..., N, N-1): each row without its diagonal entry, order kept."""
    n = matrix.shape[-1]
    flat = matrix.flatten(-2)[..., 1:].unflatten(-1, (n - 1, n + 1))
    return flat[..., :-1].reshape(*matrix.shape[:-1], n - 1)


def drop_own(matrix: Tensor) -> Tensor:
    """(..., N, M) -> (..., N, M-1): this rank's N rows without their own ones of all ranks' M columns; the other N-1 of
    this rank come first. Not by a mask, whose size the host would wait for.
    """
    n = matrix.shape[-2]
    of_rank = matrix.unflatten(-1, (n, -1))  # ... x N x n x W
    before, own, after = of_rank.tensor_split((rank(), rank() + 1), -1)
    return torch.cat([drop_diagonal(own.squeeze(-1)), before.flatten(-2), after.flatten(-2)], -1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-(1/N) sum_i sum_j p_ij log_softmax_j(a_ij): logits a (N, M), target distributions p (N, M) -> scalar."""
    return -(targets * F.log_softmax(logits, dim=-1)).sum(-1).mean()


@torch.no_grad()
@full_precision
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Q = exp(S/eps), then `iterations` times columns to 1/N, rows to 1/N; returns N Q, whose rows sum to 1.

    scores: (n, N) cosines, this rank's n rows of the global (N, N) matrix, N = n * world size. Column sums and the
    total are summed over ranks. No gradient. Source: ReSA (arXiv 2501.18452), winci-ai/resa. The exponent stays below
    1/eps = 20, so no maximum is subtracted; float16 would overflow.

    Examples:
        >>> sinkhorn(torch.tensor([[0.9, 0.1], [0.2, 0.8]])).sum(1)
        tensor([1., 1.])
    """
    require_positive(epsilon=epsilon, iterations=iterations)
    n = scores.shape[0] * world_size()
    if scores.shape[1] != n:
        raise UserError(f"Sinkhorn needs n x N scores with N = n * world size = {n}, not {tuple(scores.shape)}")
    q = torch.exp(scores / epsilon)
    q /= all_reduce_sum(q.sum())
    for _ in range(iterations):
        q /= all_reduce_sum(q.sum(0, keepdim=True)) * n
        q /= q.sum(1, keepdim=True) * n
    return q * n


def paired_distance(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_i|^2 = 2 - 2 a_i.b_i of unit rows: (..., N, D), (..., N, D) -> (..., N)."""
    return 2 - 2 * (a * b).sum(-1)


def key_cross_entropy(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """-log softmax_j(q_n . k_j / T) at j = n, over the keys of all ranks (MoCo v3): (..., N, D), (N, D) -> (..., N).

    Unit rows; the gathered keys carry no gradient.
    """
    logits = queries @ all_gather_no_grad(keys).t() / temperature
    labels = own_places(len(keys), keys.device).expand(logits.shape[:-1])
    return F.cross_entropy(logits.flatten(0, -2), labels.reshape(-1), reduction="none").view(labels.shape)
