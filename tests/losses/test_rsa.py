"""RSA and BYOL: RSA against the original, BYOL as its beta = 0 and as a loop over samples."""

import pytest
import torch

from saccade.base.errors import UserError
from saccade.losses.byol import byol_loss
from saccade.losses.functional import normalise
from saccade.losses.rsa import rsa_loss
from saccade.models.schedules import schedule
from tests.reference_values import assert_close, load_reference

CASES = {  # name: tolerance of losses, of gradients
    "rsa_case1_b8_beta0.4_f64": (1e-12, 1e-12),
    "rsa_case2_b32_beta0.3_f32": (2e-7, 1e-6),
    "rsa_case4_b5_beta1.0_f64": (1e-12, 1e-12),
}


def _raw(r: dict) -> tuple[torch.Tensor, ...]:
    online = (r["q1_aggr_online"].requires_grad_(), r["q2_aggr_online"].requires_grad_())
    return *online, r["z1_weak_target"], r["z2_weak_target"]


@pytest.mark.parametrize("name", CASES)
def test_reference_loss_parts_gradients_and_beta(name):
    r = load_reference(name)
    loss_tolerance, grad_tolerance = CASES[name]
    total, step = int(r["max_step"]), int(r["num_step_before"])
    beta = schedule("cosine", float(r["beta_base"]), total_steps=total, steps_per_epoch=total, offset=1)(step)
    assert_close(beta, r["beta_effective"], loss_tolerance)
    assert step + 1 == int(r["num_step_used"])
    raw = _raw(r)
    loss, parts = rsa_loss(*(normalise(z) for z in raw), beta)
    loss.backward()
    assert_close(loss, r["loss"], loss_tolerance)
    assert_close(parts["weak"], r["loss_weak_sum"], loss_tolerance)
    assert_close(parts["aggressive"], r["loss_aggr_sum"], loss_tolerance)
    assert_close(raw[0].grad, r["grad_q1_aggr"], grad_tolerance)
    assert_close(raw[1].grad, r["grad_q2_aggr"], grad_tolerance)


@pytest.mark.parametrize("name", CASES)
def test_reference_weak_part_is_byol(name):
    r = load_reference(name)
    assert_close(byol_loss(*(normalise(z) for z in _raw(r))), r["loss_weak_sum"], CASES[name][0])


def _views() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 7, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(4)]


def test_byol_is_the_mean_over_samples_of_both_directions():
    q1, q2, t1, t2 = (normalise(z).detach() for z in _views())
    expected = sum(((q1[i] - t2[i]) ** 2).sum() + ((q2[i] - t1[i]) ** 2).sum() for i in range(5)) / 5
    assert_close(byol_loss(q1, q2, t1, t2), expected, 1e-12)
    assert_close(rsa_loss(q1, q2, t1, t2, 0.0)[0], expected, 1e-12)


def test_targets_get_no_gradient_and_identical_views_cost_nothing():
    views = _views()
    byol_loss(*(normalise(z) for z in views)).backward()
    assert views[0].grad is not None and views[2].grad is None and views[3].grad is None
    same = normalise(views[0].detach())
    assert_close(byol_loss(same, same, same, same), 0.0, 1e-12)


@pytest.mark.parametrize("beta", [-0.1, 1.5])
def test_beta_outside_zero_to_one_is_refused(beta):
    with pytest.raises(UserError, match=f"beta is {beta}"):
        rsa_loss(*(normalise(z) for z in _views()), beta)
