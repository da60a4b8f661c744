"""LARS against the originals' trajectories and timm's, and the parameter rules on timm's names."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.optim.lars import Lars
from torch import nn

from saccade.base.errors import UserError
from saccade.models.optimizers import LARS, parameter_groups
from saccade.models.schedules import schedule
from tests.reference_values import assert_close, load_reference


def test_reference_stec_hybrid_of_lars_and_sgd():
    r = load_reference("stec_optim_case1")
    names = ("lars", "sgd_nowd", "sgd_wd")
    params = {name: nn.Parameter(r[f"{name}_params"][0].clone()) for name in names}
    decay = float(r["weight_decay"])
    optimizer = LARS(
        [
            {"params": [params["lars"]], "weight_decay": decay, "trust_coefficient": float(r["trust_coefficient"])},
            {"params": [params["sgd_nowd"]], "weight_decay": 0.0, "trust_coefficient": None},
            {"params": [params["sgd_wd"]], "weight_decay": decay, "trust_coefficient": None},
        ],
        lr=0.0,
        momentum=float(r["momentum"]),
        eps=float(r["eps"]),
        norm="separate",
    )
    total, warmup = int(r["total_steps"]), int(r["warmup_steps"])
    lr = schedule("warmup_cosine", float(r["lr"]), total_steps=total, steps_per_epoch=1, warmup_epochs=warmup)
    for step, factor in enumerate(r["lr_factor"]):
        assert_close(lr(step), factor * r["lr"], 1e-12)
        for group in optimizer.param_groups:
            group["lr"] = lr(step)
        for name in names:
            params[name].grad = r[f"{name}_grads"][step].clone()
        optimizer.step()
        for name in names:
            assert_close(params[name], r[f"{name}_params"][step + 1], 1e-12)


def test_reference_rsa_lars():
    r = load_reference("rsa_lars")
    names = ("w2d", "b1d", "zero2d", "conv4d")
    params = {name: nn.Parameter(r[f"init_{name}"].clone()) for name in names}
    decay, trust = float(r["weight_decay_ndim_gt1"]), float(r["trust_coefficient"])
    groups = parameter_groups(params.items(), "ndim", decay, trust_coefficient=trust)
    optimizer = LARS(groups, lr=float(r["lr"]), momentum=float(r["momentum"]), norm="decayed")
    for step in range(int(r["n_steps"])):
        for name in names:
            params[name].grad = r[f"grad{step}_{name}"].clone()
        optimizer.step()
        for name in names:
            assert_close(params[name], r[f"after{step}_{name}"], 1e-12)


def _tensors(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(s, dtype=torch.float64, generator=generator)) for s in ((4, 3), (2, 3, 3, 3), (5, 7))
    ]


def test_separate_norms_equal_timm():
    ours, theirs = _tensors(0), _tensors(0)
    lars: Any = Lars  # timm annotates its floats as int
    optimizers = [
        LARS(ours, lr=0.7, momentum=0.9, weight_decay=1e-2, trust_coefficient=0.02, norm="separate"),
        lars(theirs, lr=0.7, momentum=0.9, weight_decay=1e-2, trust_coeff=0.02, eps=1e-8, dampening=0.0),
    ]
    for step in range(5):
        for params in (ours, theirs):
            for p, g in zip(params, _tensors(100 + step), strict=True):
                p.grad = g.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            assert_close(p, q, 1e-12)


def test_group_without_trust_is_torch_sgd():
    ours, theirs = _tensors(1), _tensors(1)
    optimizers = [
        LARS(ours, lr=0.1, momentum=0.9, weight_decay=1e-3, trust_coefficient=None),
        torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=1e-3),
    ]
    for step in range(4):
        for params in (ours, theirs):
            for p, g in zip(params, _tensors(200 + step), strict=True):
                p.grad = g.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            assert_close(p, q, 1e-12)


def test_separate_leaves_all_zero_tensors_unscaled_and_undecayed():
    zero_weight, zero_grad = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    zero_weight.grad, zero_grad.grad = torch.full((2, 2), 0.5), torch.zeros(2, 2)
    LARS([zero_weight, zero_grad], lr=1.0, weight_decay=0.1, norm="separate").step()
    assert torch.equal(zero_weight.detach(), torch.full((2, 2), -0.5))
    assert torch.equal(zero_grad.detach(), torch.ones(2, 2))


def test_state_survives_a_reload_and_missing_gradients_are_skipped():
    params, resumed = _tensors(2), _tensors(2)
    first = LARS(params, lr=0.5, weight_decay=1e-2)
    for p, g in zip(params[:2], _tensors(3), strict=False):
        p.grad = g.detach()
    before = params[2].detach().clone()
    first.step()
    assert torch.equal(params[2].detach(), before)
    second = LARS(resumed, lr=0.5, weight_decay=1e-2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for p, q in zip(params, resumed, strict=True):
        q.data.copy_(p.data)
        q.grad = None if p.grad is None else p.grad.clone()
    first.step(), second.step()
    for p, q in zip(params, resumed, strict=True):
        assert torch.equal(p.detach(), q.detach())


def _resnet_with_classifier() -> nn.ModuleDict:
    return nn.ModuleDict({"backbone": timm.create_model("resnet18", num_classes=0), "classifier": nn.Linear(512, 100)})


def test_name_rule_counts_of_stec_resnet18():
    model = _resnet_with_classifier()
    groups = parameter_groups(model.named_parameters(), "name", 1e-6, trust_coefficient=1e-3, classifier="classifier")
    names = {id(p): n for n, p in model.named_parameters()}
    by_name = {g["name"]: sorted(names[id(p)] for p in g["params"]) for g in groups}
    assert by_name["classifier"] == ["classifier.weight"]
    assert "classifier.bias" in by_name["excluded"]
    assert [n for n in by_name["adapted"] if "downsample.1" in n] == [
        f"backbone.layer{i}.0.downsample.1.weight" for i in (2, 3, 4)
    ]
    assert len(by_name["adapted"]) == 20 + 3  # 20 convolutions, 3 downsample gammas
    assert [(g["weight_decay"], g["trust_coefficient"]) for g in groups] == [(1e-6, 1e-3), (0.0, None), (1e-6, None)]


def test_ndim_and_all_rules_split_by_shape_or_not_at_all():
    model = _resnet_with_classifier()
    total = len(list(model.parameters()))
    decayed, excluded = parameter_groups(model.named_parameters(), "ndim", 1e-4)
    assert {p.ndim for p in excluded["params"]} == {1} and min(p.ndim for p in decayed["params"]) == 2
    assert len(decayed["params"]) + len(excluded["params"]) == total
    (everything,) = parameter_groups(model.named_parameters(), "all", 1e-4)
    assert len(everything["params"]) == total and "trust_coefficient" not in everything
    torch.optim.SGD([everything], lr=0.1)


def test_frozen_parameters_are_in_no_group():
    layer = nn.Linear(2, 3)
    layer.bias.requires_grad_(False)
    (group,) = parameter_groups(layer.named_parameters(), "name", 0.1)
    assert group["params"] == [layer.weight]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: LARS([nn.Parameter(torch.ones(1))], lr=0.1, norm="l2"), "norm is 'l2'.*separate, decayed"),
        (lambda: LARS([nn.Parameter(torch.ones(1))], lr=-1.0), "lr is -1.0"),
        (lambda: parameter_groups([], "bn", 0.1), "rule is 'bn'.*all, ndim, name"),
        (lambda: parameter_groups([], "all", 0.1, classifier="head"), "'head'"),
    ],
)
def test_a_wrong_setting_is_one_sentence(call, says):
    with pytest.raises(UserError, match=says):
        call()
