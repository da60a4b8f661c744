"""CACR on MoCo v3 against the original: one key, light and full mode, both costs, two ranks, and MoCo v3 itself."""

import pytest
import torch

from saccade.base.errors import UserError
from saccade.losses.cacr_momentum import cacr_key_loss, cacr_momentum_loss
from saccade.losses.functional import normalise
from saccade.losses.moco import moco_v3_loss
from saccade.models.gather import rank
from tests.distributed import run_ranks
from tests.reference_values import assert_close, load_reference

COSTS = {"rbf": ("rbf", "mean", "loss_rbf"), "euclidean": ("euclidean", "sum", "loss_euclidean_sum")}


@pytest.mark.parametrize("name", ["cacr_mocov3_case1", "cacr_mocov3_case3"])
@pytest.mark.parametrize("cost", COSTS)
def test_reference_one_key(name, cost):
    r = load_reference(name)
    _, reduction, value = COSTS[cost]
    raw = r["q_raw"].requires_grad_()
    loss = cacr_key_loss(normalise(raw).unbind(0), normalise(r["k_raw"]), float(r["T"]), cost=cost, reduction=reduction)
    loss.backward()
    assert_close(loss, r[value], 1e-12)
    assert_close(loss, r[f"loss_{cost}_independent"], 1e-12)
    assert_close(raw.grad, r[f"grad_q_{cost}"], 1e-12)


@pytest.mark.parametrize(
    "name", ["cacr_mocov3_forward_case1", "cacr_mocov3_forward_case2", "cacr_mocov3_forward_case4"]
)
def test_reference_light_and_full_mode(name):
    r = load_reference(name)
    raw, keys = r["q_raw"].requires_grad_(), normalise(r["k_raw"])
    if not r["full_mode"]:
        keys = keys[:2]
    reduction = COSTS[r["cost"]][1]
    loss = cacr_momentum_loss(
        normalise(raw).unbind(0), keys.unbind(0), float(r["T"]), cost=r["cost"], reduction=reduction
    )
    loss.backward()
    assert_close(loss, r["loss"], 1e-12)
    assert_close(loss, r["loss_independent"], 1e-12)
    assert_close(raw.grad, r["grad_q_raw"], 1e-12)


def test_reference_two_crops_are_half_of_moco_v3():
    r = load_reference("cacr_mocov3_forward_case1")
    (q1, q2), (k1, k2) = normalise(r["q_raw"]), normalise(r["k_raw"])
    assert_close(moco_v3_loss(q1, q2, k1, k2, float(r["T"])) / 2, r["loss"], 1e-12)


def _on_a_rank(r: dict, cost: str, reduction: str) -> dict:
    n = int(r["per_rank"])
    rows = slice(rank() * n, (rank() + 1) * n)
    raw = r["q_raw"][:, rows].clone().requires_grad_()
    loss = cacr_key_loss(
        normalise(raw).unbind(0), normalise(r["k_raw"][rows]), float(r["T"]), cost=cost, reduction=reduction
    )
    loss.backward()
    return {"loss": loss.detach(), "grad": raw.grad}


@pytest.mark.parametrize("cost", COSTS)
def test_reference_two_ranks(cost):
    r = load_reference("cacr_mocov3_dist2_case1")
    _, reduction, value = COSTS[cost]
    for index, result in enumerate(run_ranks(_on_a_rank, r, cost, reduction)):
        assert_close(result["loss"], r[f"{value}_per_rank"][index], 1e-12)
        assert_close(result["grad"], r[f"grad_q_{cost}_per_rank"][index], 1e-12)


def _unit(seed: int, *shape: int) -> torch.Tensor:
    return normalise(torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def test_full_mode_is_the_mean_over_every_key_against_the_other_views():
    q, k = _unit(0, 4, 3, 6), _unit(1, 4, 3, 6)
    expected = 0.0
    for i in range(4):
        others = [m for m in range(4) if m != i]
        for n in range(3):
            d2 = torch.stack([(q[m, n] - k[i, n]).square().sum() for m in others])
            p = torch.softmax(d2 / 0.5, 0)
            for weight, m in zip(p, others, strict=True):
                expected -= 2 * 0.5 * weight * torch.log_softmax(k[i] @ q[m, n] / 0.5, 0)[n] / (3 * 4)
    assert_close(cacr_momentum_loss(q.unbind(0), k.unbind(0), 0.5), expected, 1e-12)


@pytest.mark.parametrize("cost", COSTS)
def test_sum_is_the_mean_times_the_batch(cost):
    q, k = _unit(0, 3, 4, 6).unbind(0), _unit(1, 2, 4, 6).unbind(0)
    mean, total = (cacr_momentum_loss(q, k, 0.5, cost=cost, reduction=reduction) for reduction in ("mean", "sum"))
    assert_close(total, 4 * mean, 1e-12)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cost": "l2"}, "cost is 'l2'.*rbf"),
        ({"reduction": "none"}, "reduction is 'none'.*mean, sum"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings, says):
    with pytest.raises(UserError, match=says):
        cacr_momentum_loss(_unit(0, 2, 4, 6).unbind(0), _unit(1, 2, 4, 6).unbind(0), **settings)


def test_more_keys_than_queries_are_refused():
    with pytest.raises(UserError, match="not 2 and 3"):
        cacr_momentum_loss(_unit(0, 2, 4, 6).unbind(0), _unit(1, 3, 4, 6).unbind(0))
