"""MoCo v2 and v3 against plain cross-entropies in float64, on one and two processes."""

import pytest
import torch
import torch.nn.functional as F

from saccade.base.errors import UserError
from saccade.losses.functional import normalise
from saccade.losses.moco import moco_v2_loss, moco_v3_loss
from saccade.models.gather import rank
from tests.distributed import run_ranks
from tests.reference_values import assert_close


def _unit(count: int, rows: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [normalise(torch.randn(rows, 8, generator=generator, dtype=torch.float64)) for _ in range(count)]


def test_v2_is_cross_entropy_of_the_key_before_the_queue():
    queries, keys = _unit(2, 6)
    (queue,) = _unit(1, 20, seed=1)
    queries.requires_grad_(), keys.requires_grad_()
    logits = torch.cat([(queries * keys.detach()).sum(1, keepdim=True), queries @ queue.t()], 1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    (expected_grad,) = torch.autograd.grad(expected, queries)
    loss = moco_v2_loss(queries, keys, queue.t(), 0.2)
    loss.backward()
    assert_close(loss, expected, 1e-12)
    assert_close(queries.grad, expected_grad, 1e-12)
    assert keys.grad is None


def _v3_by_hand(q1, q2, k1, k2, temperature):
    labels = torch.arange(len(q1))
    terms = F.cross_entropy(q1 @ k2.t() / temperature, labels) + F.cross_entropy(q2 @ k1.t() / temperature, labels)
    return 2 * temperature * terms


def test_v3_is_both_cross_entropies_scaled_by_twice_the_temperature():
    q1, q2, k1, k2 = _unit(4, 6)
    q1.requires_grad_(), k1.requires_grad_()
    (expected_grad,) = torch.autograd.grad(_v3_by_hand(q1, q2, k1.detach(), k2, 0.3), q1)
    loss = moco_v3_loss(q1, q2, k1, k2, 0.3)
    loss.backward()
    assert_close(loss, _v3_by_hand(q1, q2, k1, k2, 0.3), 1e-12)
    assert_close(q1.grad, expected_grad, 1e-12)
    assert k1.grad is None


def _v3_on_a_rank() -> dict:
    views = [z[rank() * 3 : rank() * 3 + 3].clone() for z in _unit(4, 6)]
    views[0].requires_grad_()
    loss = moco_v3_loss(*views, temperature=0.3)
    loss.backward()
    return {"loss": loss.detach(), "grad": views[0].grad}


def test_v3_on_two_ranks_averages_to_the_global_batch():
    views = _unit(4, 6)
    views[0].requires_grad_()
    loss = _v3_by_hand(*views, temperature=0.3)
    loss.backward()
    ranks = run_ranks(_v3_on_a_rank)
    assert_close(sum(x["loss"] for x in ranks) / 2, loss, 1e-12)
    assert_close(torch.cat([x["grad"] for x in ranks]) / 2, views[0].grad, 1e-12)


@pytest.mark.parametrize(
    "loss", [lambda t: moco_v2_loss(*_unit(2, 4), torch.eye(8).double(), t), lambda t: moco_v3_loss(*_unit(4, 4), t)]
)
def test_a_temperature_that_is_not_positive_is_refused(loss):
    with pytest.raises(UserError, match="temperature is -1"):
        loss(-1)
