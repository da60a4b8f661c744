"""S-TEC's targets, bins and inverse-model loss against the original code."""

import math

import pytest
import torch
import torch.nn.functional as F

from saccade.base.errors import UserError
from saccade.losses.stec_targets import bin_targets, manipulation_loss, relative_transform, view_to_source
from tests.reference_values import assert_close, load_reference


def _views(r: dict) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = (
        view_to_source(
            *r[f"crop_{v}"].unbind(1), flip=r[f"flip_{v}"], source_height=r["height"], source_width=r["width"]
        )
        for v in "ab"
    )
    return a, b


def test_reference_view_to_source():
    r = load_reference("stec_affine_case1")
    for view, theta in zip(_views(r), (r["theta_a"], r["theta_b"]), strict=True):
        assert_close(view, theta[:, (0, 1, 0, 1), (0, 1, 2, 2)], 1e-6)


def test_reference_targets_and_bins_in_both_directions():
    r = load_reference("stec_affine_case1")
    a, b = _views(r)
    for target, direction in ((relative_transform(a, b), "a_to_b"), (relative_transform(b, a), "b_to_a")):
        assert target.dtype == torch.float32
        assert_close(target, r[f"target_{direction}"], 1e-6)
        assert torch.equal(bin_targets(target), r[f"bins_{direction}"])


def test_reference_closed_form_in_float64():
    r = load_reference("stec_affine_case1")
    rows = []
    for v in "ab":
        (top, left, h, w), sign = r[f"crop_{v}"].double().unbind(1), 1 - 2 * r[f"flip_{v}"].double()
        rows.append(torch.stack([sign * w / r["width"], h / r["height"]], 1))
        centre = torch.stack([2 * (left + w / 2) / r["width"] - 1, 1 - 2 * (top + h / 2) / r["height"]], 1)
        rows[-1] = torch.cat([rows[-1], centre], 1)
    target = relative_transform(*rows)
    assert_close(target, r["closed_form_a_to_b_f64"], 1e-12)
    # the original's quirk is reproduced, not mended
    assert (target - r["true_composition_a_to_b_f64"]).abs().max() > 0.1
    assert_close(relative_transform(*rows, true_translation=True), r["true_composition_a_to_b_f64"], 1e-12)


def test_reference_binning_of_edges_and_ties():
    r = load_reference("stec_binning_case1")
    values = torch.zeros(len(r["values"]), 2, 3)
    values[:, 0, 0] = values[:, 1, 1] = values[:, 0, 2] = r["values"]
    bins = bin_targets(values, int(r["n_bins"]))
    assert torch.equal(bins[:, 0, 0], r["bins_linear_part"])
    assert torch.equal(bins[:, 1, 1], r["bins_linear_part"])
    assert torch.equal(bins[:, 0, 2], r["bins_translation_part"])


@pytest.mark.parametrize("name", ["stec_manip_case1", "stec_manip_case2"])
def test_reference_inverse_model_loss_and_every_gradient(name):
    r = load_reference(name)
    parameters = {key: r[key].requires_grad_() for key in ("h_i", "h_j", "w0", "b0", "bn_gamma", "bn_beta", "w1", "b1")}
    p = parameters
    hidden = F.linear(torch.cat([p["h_i"], p["h_j"]], 1), p["w0"], p["b0"])
    hidden = F.relu(F.batch_norm(hidden, None, None, p["bn_gamma"], p["bn_beta"], training=True))
    logits = F.linear(hidden, p["w1"], p["b1"])
    loss, metrics = manipulation_loss(logits, r["values"])
    loss.backward()
    assert_close(logits.reshape(r["logits"].shape), r["logits"], 1e-12)
    assert torch.equal(bin_targets(r["values"]), r["target_bins"])
    assert_close(loss, r["loss_mean"], 1e-12)
    assert_close(loss, r["losses"].mean(), 1e-12)
    assert_close(metrics["manipulation_accuracy"], r["accuracy"], 1e-6)
    for key, parameter in parameters.items():
        assert_close(parameter.grad, r[f"grad_{key}"], 1e-12)


def _logits_and_values() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    return torch.randn(5, 36, generator=generator, dtype=torch.float64), values


def test_solarised_pairs_do_not_count():
    logits, values = _logits_and_values()
    valid = torch.tensor([True, False, True, True, False])
    loss, _ = manipulation_loss(logits, values, valid)
    expected, _ = manipulation_loss(logits[valid], values[valid])
    assert_close(loss, expected, 1e-12)


def test_a_batch_without_a_valid_pair_costs_nothing():
    logits, values = _logits_and_values()
    logits.requires_grad_()
    loss, _ = manipulation_loss(logits, values, torch.zeros(5, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_identical_views_give_the_middle_of_unit_scale():
    view = torch.tensor([[0.5, 0.25, 0.0, 0.0]])
    target = relative_transform(view, view)
    assert torch.equal(target, torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]]))
    assert bin_targets(torch.tensor([[[math.inf, 0, -9.0], [0, -9.0, 9.0]]])).tolist() == [[[5, 2, 0], [2, 0, 5]]]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"\(5, 35\)"):
        manipulation_loss(torch.zeros(5, 35), torch.zeros(5, 2, 3))
