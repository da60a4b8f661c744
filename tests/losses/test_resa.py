"""ReSA against the original: assignment, both forms, multi-crop, two ranks."""

import pytest
import torch

from saccade.base.errors import UserError
from saccade.losses.functional import normalise
from saccade.losses.resa import resa_assignment, resa_loss
from saccade.models.gather import rank
from tests.distributed import dealt, run_ranks
from tests.reference_values import assert_close, load_reference

CASES = {  # name: tolerance of losses, of gradients
    "resa_case1_b8_t0.4_f64": (1e-12, 1e-12),
    "resa_case2_b32_t0.4_f32": (2e-7, 1e-6),
    "resa_case4_b6_multicrop4_t0.4_f64": (1e-12, 1e-12),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", ["row", "symmetric"])
def test_reference_loss_and_gradients(name, form):
    r = load_reference(name)
    loss_tolerance, grad_tolerance = CASES[name]
    prefix = "symmetric_" if form == "symmetric" else ""
    views = [r[f"z{v}_online"].requires_grad_() for v in range(int(r["n_views"]))]
    h, hm = normalise(r["h0_online"]).requires_grad_(), normalise(r["hm0_momentum"])
    assignment = resa_assignment(h, hm, float(r["sinkhorn_eps"]), int(r["sinkhorn_iters"]))
    momentum = [normalise(r[f"zm{v}_momentum"]) for v in (0, 1)]
    loss = resa_loss([normalise(z) for z in views], momentum, assignment, float(r["temperature"]), form)
    loss.backward()
    assert_close(h.detach() @ hm.t(), r["scores"], grad_tolerance)
    assert_close(assignment, r[f"{prefix}assign"], grad_tolerance)
    assert_close(loss, r[f"{prefix}loss"], loss_tolerance)
    for v, z in enumerate(views):
        assert_close(z.grad, r[f"{prefix}grad_z{v}_online"], grad_tolerance)
    assert h.grad is None


NAMES = ("h0_online", "hm0_momentum", "z0_online", "z1_online", "zm0_momentum", "zm1_momentum")


def _on_a_rank(inputs: dict, temperature: float, form: str) -> dict:
    n = len(inputs["h0_online"]) // 2
    h, hm, z0, z1, zm0, zm1 = (inputs[name][rank() * n : (rank() + 1) * n].clone() for name in NAMES)
    z0.requires_grad_(), z1.requires_grad_()
    assignment = resa_assignment(normalise(h), normalise(hm))
    loss = resa_loss([normalise(z0), normalise(z1)], [normalise(zm0), normalise(zm1)], assignment, temperature, form)
    loss.backward()
    return {"loss": loss.detach(), "assignment": assignment, "grad_z0": z0.grad, "grad_z1": z1.grad}


def test_reference_two_ranks_row_form():
    r = load_reference("resa_dist_w2")
    ranks = run_ranks(_on_a_rank, {name: r[name] for name in NAMES}, float(r["temperature"]), "row")
    columns = dealt(len(r["assign_all_ranks"]))
    assert_close(torch.stack([x["loss"] for x in ranks]), r["loss_per_rank"], 1e-12)
    assert_close(torch.cat([x["assignment"] for x in ranks]), r["assign_all_ranks"][:, columns], 1e-12)
    assert_close(torch.cat([x["assignment"] for x in ranks]), r["single_process_assign"][:, columns], 1e-12)
    assert_close(normalise(r["h0_online"]) @ normalise(r["hm0_momentum"]).t(), r["scores_all_ranks"], 1e-12)
    assert_close(sum(x["loss"] for x in ranks) / 2, r["single_process_loss"], 1e-12)
    for view in ("z0", "z1"):
        gradient = torch.cat([x[f"grad_{view}"] for x in ranks])
        assert_close(gradient, r[f"grad_{view}_per_rank_concat"], 1e-12)
        assert_close(gradient / 2, r[f"single_process_grad_{view}"], 1e-12)


def test_two_ranks_symmetric_form_averages_to_one_process():
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(6, 5, generator=generator, dtype=torch.float64) for name in NAMES}
    ranks = run_ranks(_on_a_rank, inputs, 0.4, "symmetric")
    h, hm, z0, z1, zm0, zm1 = (inputs[name].clone() for name in NAMES)
    z0.requires_grad_(), z1.requires_grad_()
    assignment = resa_assignment(normalise(h), normalise(hm))
    loss = resa_loss([normalise(z0), normalise(z1)], [normalise(zm0), normalise(zm1)], assignment, 0.4, "symmetric")
    loss.backward()
    assert_close(sum(x["loss"] for x in ranks) / 2, loss, 1e-12)
    assert_close(torch.cat([x["grad_z0"] for x in ranks]) / 2, z0.grad, 1e-12)
    assert_close(torch.cat([x["grad_z1"] for x in ranks]) / 2, z1.grad, 1e-12)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"form": "rows"}, "form is 'rows'.*symmetric, row"),
        ({"online": [torch.eye(3)]}, "not 1 and 2"),
    ],
)
def test_a_wrong_setting_is_one_sentence(change, says):
    views = [torch.eye(3), torch.eye(3)]
    with pytest.raises(UserError, match=says):
        resa_loss(**({"online": views, "momentum": views, "assignment": torch.eye(3)} | change))
