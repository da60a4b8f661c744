"""NT-Xent against the original's values, single process and two ranks, and its limits."""

import math

import pytest
import torch

from saccade.base.errors import UserError
from saccade.losses.ntxent import nt_xent
from saccade.models.gather import rank
from tests.distributed import run_ranks
from tests.reference_values import assert_close, load_reference


@pytest.mark.parametrize("name", ["stec_ntxent_case1", "stec_ntxent_case2"])
def test_reference_single_process(name):
    r = load_reference(name)
    z1, z2 = r["z1"].requires_grad_(), r["z2"].requires_grad_()
    loss, metrics = nt_xent(z1, z2, float(r["temperature"]))
    loss.backward()
    assert_close(loss, r["loss_f64"], 1e-12)
    assert_close(z1.grad, r["grad_z1_f64"], 1e-12)
    assert_close(z2.grad, r["grad_z2_f64"], 1e-12)
    assert_close(loss, r["loss"], 1e-6)
    assert_close(z1.grad, r["grad_z1"], 1e-6)
    assert_close(z2.grad, r["grad_z2"], 1e-6)
    assert_close(metrics["accuracy"], r["accuracy"], 1e-6)
    assert_close(metrics["contrast_accuracy"], r["contrast_accuracy"], 1e-6)
    assert_close(metrics["contrast_entropy"], r["contrast_entropy"], 1e-6)


def _rank_loss(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> dict:
    rows = slice(rank() * len(z1) // 2, (rank() + 1) * len(z1) // 2)
    z1, z2 = z1[rows].clone().requires_grad_(), z2[rows].clone().requires_grad_()
    loss, metrics = nt_xent(z1, z2, temperature)
    loss.backward()
    return {"loss": loss.detach(), "grad_z1": z1.grad, "grad_z2": z2.grad, **metrics}


def test_reference_two_ranks():
    r = load_reference("stec_ntxent_dist2_case1")
    results = run_ranks(_rank_loss, r["z1"], r["z2"], float(r["temperature"]))
    for index, result in enumerate(results):
        assert_close(result["loss"], r["loss_per_rank"][index], 1e-6)
        assert_close(result["grad_z1"], r["grad_z1_per_rank"][index], 1e-6)
        assert_close(result["grad_z2"], r["grad_z2_per_rank"][index], 1e-6)
        assert_close(result["accuracy"], r["accuracy_per_rank"][index], 1e-6)
        assert_close(result["contrast_accuracy"], r["contrast_accuracy_per_rank"][index], 1e-6)
    assert_close(sum(result["loss"] for result in results) / 2, r["loss_global_f64"], 1e-12)
    for view in ("grad_z1", "grad_z2"):
        assert_close(torch.cat([result[view] for result in results]) / 2, r[f"{view}_global_f64"], 1e-12)


def _unit_rows(seed: int, shape: tuple[int, int]) -> torch.Tensor:
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def test_views_that_all_coincide_cost_the_log_of_the_candidates():
    z = torch.nn.functional.normalize(torch.ones(8, 4), dim=1)
    loss, _ = nt_xent(z, z, 0.1)
    assert loss.item() == pytest.approx(math.log(15), abs=1e-5)


def test_autocast_computes_in_float32_and_returns_half_gradients():
    z1, z2 = _unit_rows(0, (8, 16)), _unit_rows(1, (8, 16))
    halves = [z.bfloat16().requires_grad_() for z in (z1, z2)]
    expected, _ = nt_xent(*(z.detach().float() for z in halves), 0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = nt_xent(*halves, temperature=0.2)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.equal(loss.detach(), expected)
    assert halves[0].grad.dtype == torch.bfloat16


@pytest.mark.parametrize("temperature", [0.0, -0.5, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(UserError, match=r"temperature is .* above 0"):
        nt_xent(_unit_rows(0, (2, 3)), _unit_rows(1, (2, 3)), temperature)


def test_views_of_unequal_shape_are_refused():
    with pytest.raises(UserError, match=r"\(3, 3\)"):
        nt_xent(_unit_rows(0, (2, 3)), _unit_rows(1, (3, 3)), 0.5)
