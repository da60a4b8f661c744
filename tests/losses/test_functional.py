"""The shared pieces: Sinkhorn against the original, distances and precision against torch in float64."""

import pytest
import torch

from saccade.base.errors import UserError
from saccade.losses import functional
from saccade.losses.functional import (
    attraction_weights,
    drop_diagonal,
    drop_own,
    full_precision,
    normalise,
    repulsion_weights,
    sinkhorn,
    soft_cross_entropy,
    squared_distance,
)
from tests.reference_values import assert_close, load_reference


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", range(5))
def test_reference_sinkhorn(case):
    r = load_reference("resa_sinkhorn_only")
    scores, expected = r[f"c{case}_scores"], r[f"c{case}_assign"]
    assignment = sinkhorn(scores, float(r[f"c{case}_eps"]), int(r[f"c{case}_iters"]))
    assert assignment.dtype == scores.dtype
    assert_close(assignment, expected, 1e-12 if scores.dtype == torch.float64 else 1e-6)


def test_sinkhorn_rows_sum_to_one_and_columns_come_close():
    assignment = sinkhorn(_randn(32, 32).tanh(), 0.05, 200)
    torch.testing.assert_close(assignment.sum(1), torch.ones(32, dtype=torch.float64))
    torch.testing.assert_close(assignment.sum(0), torch.ones(32, dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("arguments", [(torch.eye(3), 0.0, 3), (torch.eye(3), 0.05, 0), (torch.ones(3, 4), 0.05, 3)])
def test_sinkhorn_refuses_what_it_cannot_assign(arguments):
    with pytest.raises(UserError):
        sinkhorn(*arguments)


def test_squared_distance_and_its_gradient_equal_the_difference():
    a, b = _randn(2, 5, 7).requires_grad_(), _randn(2, 4, 7, seed=1).requires_grad_()
    weights = _randn(2, 5, 4, seed=2)
    explicit = (a[:, :, None] - b[:, None]).square().sum(-1)
    expected = torch.autograd.grad((explicit * weights).sum(), (a, b))
    distances = squared_distance(a, b)
    assert_close(distances, explicit, 1e-12)
    for ours, theirs in zip(torch.autograd.grad((distances * weights).sum(), (a, b)), expected, strict=True):
        assert_close(ours, theirs, 1e-12)


def test_squared_distance_of_equal_rows_is_never_negative():
    rows = normalise(torch.randn(64, 256, generator=torch.Generator().manual_seed(0)))
    assert squared_distance(rows, rows).min() >= 0


def test_weights_favour_far_positives_and_near_negatives_and_detach_on_demand():
    distances = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    attracts, repels = attraction_weights(distances, 2.0, detach=False), repulsion_weights(distances, 2.0, detach=False)
    torch.testing.assert_close(attracts, repels.flip(1))
    assert attracts[0, 2] > attracts[0, 1] > attracts[0, 0]
    assert attracts.requires_grad and not repulsion_weights(distances, 2.0, detach=True).requires_grad


def test_drop_diagonal_keeps_order():
    matrix = torch.arange(18.0).view(2, 3, 3)
    assert drop_diagonal(matrix).tolist() == [[[1, 2], [3, 5], [6, 7]], [[10, 11], [12, 14], [15, 16]]]


@pytest.mark.parametrize("of_rank", [0, 1, 2])
def test_drop_own_keeps_all_but_this_ranks_own_columns(of_rank, monkeypatch):
    monkeypatch.setattr(functional, "rank", lambda: of_rank)
    matrix = torch.arange(36.0).view(2, 2, 9)
    matrix = matrix[..., :6]  # 2 rows, 3 ranks of 2 columns
    kept = drop_own(matrix)
    assert kept.shape == (2, 2, 5)
    for view in range(2):
        for row in range(2):
            own = matrix[view, row, 3 * row + of_rank].item()
            assert sorted(kept[view, row].tolist()) == sorted(set(matrix[view, row].tolist()) - {own})


def test_soft_cross_entropy_of_hard_targets_is_torch_cross_entropy():
    logits, labels = _randn(6, 5), torch.tensor([0, 3, 2, 4, 1, 0])
    hard = torch.nn.functional.one_hot(labels, 5).double()
    assert_close(soft_cross_entropy(logits, hard), torch.nn.functional.cross_entropy(logits, labels), 1e-12)


@full_precision
def _gram(pair: list[torch.Tensor], scale: float) -> torch.Tensor:
    return pair[0] @ pair[1].t() * scale


@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_full_precision_lifts_halves_in_lists_and_leaves_the_rest(given):
    x = _randn(4, 8).to(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = _gram([x, x], scale=2.0)
        assert torch.is_autocast_enabled("cpu")
    wide = torch.float64 if given == torch.float64 else torch.float32
    assert product.dtype == wide and torch.equal(product, x.to(wide) @ x.to(wide).t() * 2)
