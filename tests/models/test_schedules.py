"""Schedules against the values the original code printed, and their landmarks."""

import math

import pytest
import torch

from saccade.base.errors import UserError
from saccade.models.schedules import KINDS, schedule
from tests.reference_values import assert_close, load_reference


def test_reference_stec_warmup_cosine():
    r = load_reference("stec_schedule_case1")
    factor = schedule("warmup_cosine", 1.0, total_steps=int(r["total_steps"]), steps_per_epoch=48, warmup_epochs=10)
    for step, expected in zip(r["steps"].tolist(), r["factor"].tolist(), strict=True):
        assert_close(factor(step), expected, 1e-12)


def test_reference_resa_learning_rate_and_momentum_of_a_small_run():
    r = load_reference("resa_schedules")
    run = {"total_steps": 40, "steps_per_epoch": int(r["iters_per_epoch"])}
    lr = schedule("linspace_cosine", 0.3, warmup_epochs=int(r["warmup_epochs"]), final=0.1, **run)
    momentum = schedule("cosine", float(r["base_m"]), final=1.0, **run)
    for step in range(40):
        assert_close(lr(step), r["lr"][step], 1e-12)
        assert_close(momentum(step), r["ema_m"][step], 1e-12)


def test_reference_resa_published_runs():
    r = load_reference("resa_schedules")
    run = {"total_steps": 195_000, "steps_per_epoch": 195}
    lr = schedule("linspace_cosine", 0.3, warmup_epochs=2, final=0.1, **run)
    momentum = schedule("cosine", 0.996, final=1.0, **run)
    for i, step in enumerate(r["cifar_lr_idx"].tolist()):
        assert_close(lr(step), r["cifar_lr_at_idx"][i], 1e-12)
        assert_close(momentum(step), r["cifar_ema_at_idx"][i], 1e-12)
    lr = schedule("linspace_cosine", 0.5, warmup_epochs=2, final=0.1, total_steps=500_400, steps_per_epoch=5004)
    for step, expected in zip((0, 1, 10_007, 10_008, 500_399), r["in_lr_bs256_100ep_1251it_first_last"], strict=True):
        assert_close(lr(step), expected, 1e-12)


def test_reference_ressl_learning_rate():
    r = load_reference("ressl_schedule")
    per_epoch, epochs = int(r["iters_per_epoch"]), int(r["epochs"])
    run = {"total_steps": per_epoch * epochs, "steps_per_epoch": per_epoch}
    lr = schedule("warmup_cosine", float(r["base_lr"]), warmup_epochs=int(r["warmup_epochs"]), **run)
    for (epoch, iteration), expected in zip(r["epoch_iter"].tolist(), r["lr"], strict=True):
        assert_close(lr(epoch * per_epoch + iteration), expected, 1e-12)


def test_reference_rsa_learning_rates_per_epoch_and_per_step():
    r = load_reference("rsa_lr_schedules")
    lr = schedule("epoch_cosine", float(r["single_base_lr"]), total_steps=200 * 195, steps_per_epoch=195)
    for epoch, expected in enumerate(r["single_lr_per_epoch"]):
        assert_close(lr(epoch * 195), expected, 1e-12)
        assert lr(epoch * 195 + 194) == lr(epoch * 195)
    per_epoch = 1_000_000  # the fixture's fractional epochs fall on whole steps
    lr = schedule(
        "warmup_cosine",
        float(r["in1k_base_lr_scaled"]),
        warmup_epochs=10,
        total_steps=200 * per_epoch,
        steps_per_epoch=per_epoch,
    )
    for epoch, expected in zip(r["in1k_epoch_float"].tolist(), r["in1k_lr"], strict=True):
        assert epoch * per_epoch == pytest.approx(round(epoch * per_epoch), abs=1e-6)
        assert_close(lr(round(epoch * per_epoch)), expected, 1e-12)


@pytest.mark.parametrize("name", ["cifar_200ep", "stl_200ep", "in100_200ep", "tiny_800ep"])
def test_reference_rsa_beta_and_momentum_of_published_runs(name):
    r = load_reference("rsa_schedules")
    epochs, per_epoch = int(r[f"{name}_epochs"]), int(r[f"{name}_steps_per_epoch"])
    run = {"total_steps": epochs * per_epoch, "steps_per_epoch": per_epoch, "offset": 1}
    beta = schedule("cosine", float(r[f"{name}_beta_base"]), **run)
    tau = schedule("cosine", 0.99, final=1.0, **run)
    for epoch in range(epochs):
        assert_close(beta(epoch * per_epoch), r[f"{name}_beta_first_step_of_epoch"][epoch], 1e-12)
        assert_close(beta((epoch + 1) * per_epoch - 1), r[f"{name}_beta_last_step_of_epoch"][epoch], 1e-12)
        assert_close(tau(epoch * per_epoch), r[f"{name}_tau_first_step_of_epoch"][epoch], 1e-12)


def test_reference_rsa_beta_and_momentum_of_every_step_of_a_short_run():
    r = load_reference("rsa_schedules")
    run = {"total_steps": int(r["short_max_step"]), "steps_per_epoch": 4, "offset": 1}
    beta = schedule("cosine", float(r["short_beta_base"]), **run)
    tau = schedule("cosine", 0.99, final=1.0, **run)
    for step in range(40):
        assert_close(beta(step), r["short_beta_per_step"][step], 1e-12)
        assert_close(tau(step), r["short_tau_per_step"][step], 1e-12)


def test_moco_v3_momentum_follows_fractional_epochs():
    momentum = schedule("cosine", 0.99, final=1.0, total_steps=300 * 7, steps_per_epoch=7)
    for epoch, iteration in ((0, 0), (12, 3), (299, 6)):
        t = epoch + iteration / 7
        expected = 1 - 0.5 * (1 + math.cos(math.pi * t / 300)) * (1 - 0.99)
        assert momentum(epoch * 7 + iteration) == pytest.approx(expected, abs=1e-15)


def test_step_decay_falls_at_the_first_step_of_each_milestone():
    lr = schedule("step_decay", 0.06, total_steps=2000, steps_per_epoch=10)
    assert [lr(s) for s in (0, 1549)] == [0.06, 0.06]
    assert [lr(s) for s in (1550, 1700, 1850, 1999)] == pytest.approx([0.006, 6e-4, 6e-5, 6e-5])


def test_epoch_exponential_is_torchs_exponential_lr():
    lr = schedule("epoch_exponential", 1e-2, total_steps=500 * 3, steps_per_epoch=3, final=1e-4)
    theirs = torch.optim.SGD([torch.zeros(1)], lr=1e-2)
    decay = torch.optim.lr_scheduler.ExponentialLR(theirs, (1e-6 / 1e-2) ** (1 / 500))
    for epoch in range(500):
        assert lr(3 * epoch) == lr(3 * epoch + 2) == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9)
        theirs.step()
        decay.step()


def test_constant_stays():
    assert {schedule("constant", 0.99, total_steps=9, steps_per_epoch=3)(step) for step in range(9)} == {0.99}


def test_a_run_shorter_than_its_warmup_keeps_rising():
    lr = schedule("warmup_cosine", 1.0, total_steps=4, steps_per_epoch=2, warmup_epochs=10)
    assert [lr(step) for step in range(4)] == [0.0, 0.05, 0.1, 0.15]


@pytest.mark.parametrize("kind", KINDS)
def test_no_schedule_turns_back_up_after_its_last_step(kind):
    value = schedule(kind, 1.0, total_steps=20, steps_per_epoch=10)
    assert value(25) <= value(19)


@pytest.mark.parametrize(
    ("kind", "run", "says"),
    [
        ("cosin", {"total_steps": 1, "steps_per_epoch": 1}, "unknown schedule 'cosin'.*warmup_cosine"),
        ("cosine", {"total_steps": 1, "steps_per_epoch": 1, "warmup": 3}, "no option 'warmup'.*final, offset"),
        ("cosine", {"total_steps": 0, "steps_per_epoch": 1}, "at least one step, not 0"),
    ],
)
def test_a_wrong_name_is_one_sentence(kind, run, says):
    with pytest.raises(UserError, match=says):
        schedule(kind, 1.0, **run)
