"""CACR at small scale against the original, its ablations, the debiased and the RBF forms."""

import pytest
import torch

from saccade.base.errors import UserError
from saccade.losses.cacr import cacr_loss
from saccade.losses.functional import attraction_weights, drop_diagonal, repulsion_weights, squared_distance
from tests.reference_values import assert_close, load_reference

SMALL = [
    "cacr_small_case1",
    "cacr_small_case3",
    "cacr_small_case5",
    "cacr_small_case6",
    "cacr_small_case7",
    "cacr_small_case8",
]
RBF = ["cacr_small_rbf_case1", "cacr_small_rbf_case3"]


def _settings(r: dict) -> dict:
    settings = {
        "t_pos": float(r["tau_pos"]),
        "t_neg": float(r["tau_neg"]),
        "alpha": float(r["alpha"]),
        "beta": float(r["beta"]),
    }
    if "t" in r:
        return settings | {"repulsion": "rbf", "rbf_t": float(r["t"])}
    return settings | {"ablation": r["choice"], "tau_plus": float(r["tau_plus"]) if r["with_debiased"] else None}


@pytest.mark.parametrize("name", SMALL + RBF)
def test_reference_loss_parts_and_gradient(name):
    r = load_reference(name)
    views = r["views"].requires_grad_()
    loss, parts = cacr_loss(views.unbind(0), **_settings(r))
    loss.backward()
    assert_close(parts["attraction"], r["loss1_attraction"], 1e-12)
    assert_close(parts["attraction"], r["bruteforce_loss1"], 1e-12)
    assert_close(parts["repulsion"], r["loss2_repulsion"], 1e-12)
    assert_close(parts["repulsion"], r["bruteforce_loss2"], 1e-12)
    assert_close(loss, r["loss_total"], 1e-12)
    assert_close(views.grad, r["grad_views"], 1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_reference_gradient_of_each_part(name):
    r = load_reference(name)
    settings = _settings(r) | {"tau_plus": None}
    for part, silenced in (("loss1", "beta"), ("loss2", "alpha")):
        if part == "loss2" and r["with_debiased"]:
            continue  # its positive part is not scaled by beta; the total is compared above
        views = r["views"].clone().requires_grad_()
        cacr_loss(views.unbind(0), **(settings | {silenced: 0.0}))[0].backward()
        assert_close(views.grad, r[f"grad_views_{part}"], 1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_reference_weights(name):
    r = load_reference(name)
    views = r["views"]
    last = len(views) - 1
    to_others = torch.stack([(views[last] - views[v]).square().sum(1) for v in range(last)], 1)
    assert_close(attraction_weights(to_others, float(r["tau_pos"]), detach=False), r["weights_pos_last_query"], 1e-12)
    negatives = drop_diagonal(squared_distance(views[last - 1], views[last]))
    assert_close(repulsion_weights(negatives, float(r["tau_neg"]), detach=False), r["weights_neg_last_pair"], 1e-12)


def _views(count: int = 3) -> torch.Tensor:
    views = torch.randn(count, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(views, dim=-1)


def test_detached_weights_leave_the_value_and_change_the_gradient():
    gradients = []
    for detach in (False, True):
        views = _views().requires_grad_()
        loss, _ = cacr_loss(views.unbind(0), detach_weights=detach)
        loss.backward()
        gradients.append((loss.detach(), views.grad))
    assert_close(gradients[0][0], gradients[1][0], 1e-12)
    assert (gradients[0][1] - gradients[1][1]).abs().max() > 1e-3


def test_effective_negatives_run_from_one_to_all():
    views = _views().unbind(0)
    assert cacr_loss(views, t_neg=1e-9)[1]["effective_negatives"].item() == pytest.approx(5, abs=1e-6)
    assert cacr_loss(views, t_neg=1e6)[1]["effective_negatives"].item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ablation": "w1"}, "ablation is 'w1'.*without_w1"),
        ({"repulsion": "mmd"}, "repulsion is 'mmd'.*rbf"),
        ({"tau_plus": 1.0}, "tau_plus is 1.0"),
        ({"tau_plus": 0.1, "repulsion": "rbf"}, "'mean' only"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings, says):
    with pytest.raises(UserError, match=says):
        cacr_loss(_views().unbind(0), **settings)


def test_one_view_is_refused():
    with pytest.raises(UserError, match="not 1 of 6"):
        cacr_loss(_views(1).unbind(0))
