"""Sync and split batch norm against torch on the whole batch or each group, and the shuffle's round trip."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from saccade.base.errors import UserError
from saccade.models.gather import rank
from saccade.models.norm import (
    SplitBatchNorm2d,
    SyncBatchNorm,
    batch_norm_splits,
    batch_permutation,
    convert_batch_norm,
    convert_split_batchnorm,
    convert_sync_batchnorm,
    sees_part_of_the_batch,
    shuffle,
    unshuffle,
)
from tests.distributed import dealt, run_ranks
from tests.reference_values import assert_close, load_reference


@pytest.mark.parametrize("case", [0, 1, 2])
def test_reference_split_batch_norm(case):
    r = load_reference("ressl_splitbn")
    x = r[f"c{case}_x"]
    norm = SplitBatchNorm2d(x.shape[1], int(r[f"c{case}_splits"]), eps=float(r["eps"]), momentum=float(r["momentum"]))
    norm.double().load_state_dict({"weight": r[f"c{case}_weight"], "bias": r[f"c{case}_bias"]}, strict=False)
    assert_close(norm(x), r[f"c{case}_y_train"], 1e-12)
    assert_close(norm.running_mean, r[f"c{case}_running_mean_after"], 1e-12)
    assert_close(norm.running_var, r[f"c{case}_running_var_after"], 1e-12)
    assert_close(norm.eval()(x), r[f"c{case}_y_eval"], 1e-12)


def test_split_batch_norm_gradient_is_that_of_each_group_alone_and_keeps_channels_last():
    x = torch.randn(8, 3, 4, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(8, 3, 4, 4, dtype=torch.float64)
    norm = SplitBatchNorm2d(3, 4).double()
    y = norm(x)
    (grad,) = torch.autograd.grad((y * weights).sum(), x)
    for group in range(4):
        rows = x[group::4].detach().requires_grad_()
        expected = F.batch_norm(rows, None, None, training=True)
        assert_close(y[group::4], expected, 1e-12)
        (expected_grad,) = torch.autograd.grad((expected * weights[group::4]).sum(), rows)
        assert_close(grad[group::4], expected_grad, 1e-12)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(UserError, match=r"batch of 6.*4 equal splits"):
        SplitBatchNorm2d(3, 4)(torch.zeros(6, 3, 2, 2))


def _input(shape: tuple[int, ...]) -> torch.Tensor:
    return 3 + 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _loss_weights(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def _sync_norm_on_a_rank(shape: tuple[int, ...], ranks: int = 2) -> dict:
    torch.manual_seed(0)
    norm = convert_sync_batchnorm(nn.BatchNorm1d(shape[1]) if len(shape) == 2 else nn.BatchNorm2d(shape[1])).double()
    rows = slice(rank() * shape[0] // ranks, (rank() + 1) * shape[0] // ranks)
    x = _input(shape)[rows].requires_grad_()
    y = norm(x)
    (y * _loss_weights(shape)[rows]).sum().backward()
    trained = {"y": y.detach(), "grad": x.grad, "grad_weight": norm.weight.grad, "grad_bias": norm.bias.grad}
    return trained | {"eval": norm.eval()(x).detach(), "mean": norm.running_mean, "var": norm.running_var}


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 2, 2)])
def test_sync_batch_norm_on_two_ranks_is_batch_norm_on_the_whole_batch(shape):
    norm = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(shape[1]).double()
    x = _input(shape).requires_grad_()
    y = norm(x)
    (y * _loss_weights(shape)).sum().backward()
    ranks = run_ranks(_sync_norm_on_a_rank, shape)
    assert_close(torch.cat([r["y"] for r in ranks]), y, 1e-12)
    assert_close(torch.cat([r["grad"] for r in ranks]), x.grad, 1e-12)
    assert_close(ranks[0]["grad_weight"] + ranks[1]["grad_weight"], norm.weight.grad, 1e-12)
    assert_close(ranks[0]["grad_bias"] + ranks[1]["grad_bias"], norm.bias.grad, 1e-12)
    for r in ranks:
        assert_close(r["mean"], norm.running_mean, 1e-12)
        assert_close(r["var"], norm.running_var, 1e-12)
    assert_close(torch.cat([r["eval"] for r in ranks]), norm.eval()(x), 1e-12)


def test_sync_batch_norm_in_a_group_of_one_is_batch_norm():
    shape = (6, 5)
    (alone,) = run_ranks(_sync_norm_on_a_rank, shape, 1, world_size=1)
    norm = nn.BatchNorm1d(5).double()
    assert_close(alone["y"], norm(_input(shape)), 1e-12)
    assert_close(alone["var"], norm.running_var, 1e-12)


@pytest.mark.parametrize("convert", [convert_sync_batchnorm, lambda m: convert_split_batchnorm(m, 2)])
@pytest.mark.parametrize("name", ["resnet18", "regnetx_002"])  # plain BatchNorm2d; timm's BatchNormAct2d
def test_conversion_keeps_names_values_and_evaluation(name, convert):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    x = torch.randn(2, 3, 32, 32)
    expected, state = model(x), {k: v.clone() for k, v in model.state_dict().items()}
    trainable = [n for n, p in model.named_parameters()]
    converted = convert(model)
    assert converted.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in converted.state_dict().items())
    assert [n for n, p in converted.named_parameters()] == trainable
    assert any(isinstance(m, SyncBatchNorm | SplitBatchNorm2d) for m in converted.modules())
    assert not any(type(m).__name__.startswith("BatchNorm") for m in converted.modules())
    torch.testing.assert_close(converted(x), expected)


def _shuffle_on_a_rank(step: int) -> dict:
    permutation = batch_permutation(6, seed=5, step=step)
    x = torch.arange(rank(), 6.0, 2)
    shuffled = shuffle(x, permutation)
    return {"shuffled": shuffled, "back": unshuffle(shuffled * 10, permutation), "permutation": permutation}


def test_shuffle_permutes_the_global_batch_alike_and_unshuffle_undoes_it():
    first, second = run_ranks(_shuffle_on_a_rank, 7)
    assert torch.equal(first["permutation"], second["permutation"])
    assert torch.equal(torch.cat([first["shuffled"], second["shuffled"]])[dealt(6)], first["permutation"].float())
    assert torch.equal(torch.cat([first["back"], second["back"]])[dealt(6)], 10 * torch.arange(6.0))


def test_permutation_changes_with_step_seed_and_view():
    draws = {
        tuple(batch_permutation(64, seed, step, view).tolist())
        for seed in range(3)
        for step in range(3)
        for view in range(3)
    }
    assert len(draws) == 27 and all(sorted(draw) == list(range(64)) for draw in draws)


def test_every_place_of_a_permutation_is_as_likely():
    places = torch.stack([batch_permutation(8, 0, step) for step in range(4000)])
    counts = torch.stack([(places == k).sum(0) for k in range(8)]).double()  # of sample k in place j, 500 expected
    chi_square = ((counts - 500) ** 2 / 500).sum() * 7 / 8
    assert 20 < chi_square < 95  # 49 degrees of freedom: 1 in 2,000 lies outside on either side


def test_permutation_is_made_on_its_device():
    assert batch_permutation(8, 0, 0, device="meta").device.type == "meta"


def test_groups_of_32_are_as_many_as_a_process_has():
    counts = [batch_norm_splits("group-32", images) for images in (256, 128, 32, 16, 100)]
    assert counts == [8, 4, 1, 1, 4]  # 100 in four groups of 25: no group is larger than asked for
    split = convert_batch_norm(_network(), "group-32", 256).get_submodule("1")
    assert isinstance(split, SplitBatchNorm2d) and split.splits == 8
    assert type(convert_batch_norm(_network(), "group-32", 32).get_submodule("1")) is nn.BatchNorm2d
    for kind in ("group-1", "group-x", "group", "groups-32"):
        with pytest.raises(UserError, match=f"batch_norm={kind} is unknown"):
            batch_norm_splits(kind, 64)


def _sees_part_on_a_rank() -> dict:
    return {kind: torch.tensor(sees_part_of_the_batch(convert_batch_norm(_network(), kind))) for kind in KINDS}


KINDS = ("local", "sync", "split-2")


def _network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4))


def test_a_shuffle_matters_where_a_batch_norm_sees_a_part_of_the_batch():
    assert [sees_part_of_the_batch(convert_batch_norm(_network(), kind)) for kind in KINDS] == [False, False, True]
    for found in run_ranks(_sees_part_on_a_rank):
        assert [bool(found[kind]) for kind in KINDS] == [True, False, True]
    assert not sees_part_of_the_batch(nn.LayerNorm(4))
