"""ReSA, ReSSL, RSA and BYOL as objectives: the pure function of the right outputs, and gradients where they belong."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from saccade.base.errors import UserError
from saccade.losses.byol import byol_loss
from saccade.losses.functional import normalise
from saccade.losses.recipes.byol import byol_recipe
from saccade.losses.recipes.resa import RECIPES as RESA
from saccade.losses.recipes.resa import resa_recipe
from saccade.losses.recipes.ressl import RECIPES as RESSL
from saccade.losses.recipes.ressl import ressl_recipe
from saccade.losses.recipes.rsa import rsa_recipe
from saccade.losses.registry import find_method
from saccade.losses.resa import resa_assignment, resa_loss
from saccade.losses.ressl import ressl_loss
from saccade.losses.rsa import rsa_loss
from saccade.models.norm import SplitBatchNorm2d, batch_permutation, convert_batch_norm
from tests.losses.method_checks import images_of, learner_of, small, trained_parts
from tests.reference_values import assert_close

WITH_PREDICTOR = {"student.backbone", "student.projector", "student.predictor"}


def _train_once(recipe):
    """(learner, views, losses after backward) of a first step."""
    learner = learner_of(recipe)
    views, params = images_of(recipe)
    learner.begin_step(0)
    losses = learner(views, params)
    losses["loss"].backward()
    assert all(p.grad is None for p in learner.teacher.parameters())
    return learner, views, losses


@pytest.mark.parametrize("form", ["symmetric", "row"])
@pytest.mark.parametrize("crops", [0, 2])
def test_resa_assigns_by_encodings_of_the_weak_view_and_compares_every_view_with_two_of_the_teacher(form, crops):
    recipe = small(resa_recipe("cifar10"), form=form, projector_hidden=16, projector_dim=8, predictor_hidden=16)
    extra = replace(recipe.views["strong"], name="crop", size=24).times(crops)
    recipe = replace(recipe, views=replace(recipe.views, views=(*recipe.views, *extra)))
    learner, views, losses = _train_once(recipe)
    student = {name: learner.student(image) for name, image in views.items()}
    teacher = {name: learner.teacher(views[name]) for name in ("weak", "strong")}
    assignment = resa_assignment(normalise(student["weak"].features), normalise(teacher["weak"].features))
    expected = resa_loss(
        [normalise(student[name].prediction) for name in recipe.views.names],
        [normalise(teacher[name].projection) for name in ("weak", "strong")],
        assignment,
        0.4,
        form,
    )
    assert_close(losses["loss"], expected, 1e-6)
    assert_close(losses["self_assigned"], assignment.diagonal().mean(), 1e-6)
    assert trained_parts(learner) == WITH_PREDICTOR
    assert learner.backbone is learner.teacher.network.backbone  # the paper evaluates the momentum encoder


@pytest.mark.parametrize("crops", [1, 5])
def test_ressl_compares_every_crop_with_the_weak_view_over_the_queue(crops):
    recipe = small(
        ressl_recipe("imagenet-5crop" if crops == 5 else "cifar10", 32),
        queue_size=32,
        projector_hidden=16,
        projector_dim=8,
    )
    learner, views, losses = _train_once(recipe)
    queue = learner.objective.queue.columns.clone()
    keys = normalise(learner.teacher(views["weak"]).projection)  # one process, no splits: the shuffle changes nothing
    crops_seen = [normalise(learner.student(views[name]).projection) for name in recipe.views.names[1:]]
    assert len(crops_seen) == crops
    assert_close(losses["loss"], ressl_loss(crops_seen, keys, queue), 1e-5)
    assert trained_parts(learner) == {"student.backbone", "student.projector"}
    learner.end_step()
    assert_close(learner.objective.queue.keys[:8], keys, 1e-5)
    assert torch.equal(learner.objective.queue.columns[:, 8:], queue[:, 8:])


def test_keys_of_all_micro_batches_enter_the_queue_in_order_after_the_step():
    recipe = small(ressl_recipe("cifar10"), queue_size=32, projector_hidden=16, projector_dim=8)
    learner = learner_of(recipe).eval()  # no batch statistics: a part of the batch is coded as in the whole
    views, params = images_of(recipe)
    before = learner.objective.queue.keys.clone()
    learner.begin_step(0)
    for rows in (slice(0, 4), slice(4, 8)):
        learner({name: view[rows] for name, view in views.items()}, {name: p[rows] for name, p in params.items()})
    assert torch.equal(learner.objective.queue.keys, before)
    learner.end_step()
    assert_close(learner.objective.queue.keys[:8], normalise(learner.teacher(views["weak"]).projection), 1e-6)
    learner.begin_step(1)
    learner(views, params)
    learner.end_step()
    assert int(learner.objective.queue.pointer) == 16


def test_teacher_is_shuffled_across_split_batch_norm_and_put_back_in_order():
    """With splits, who shares statistics depends on the permutation of (seed, step); the order of the keys does not."""
    recipe = small(ressl_recipe("cifar10"), 16, queue_size=32, projector_hidden=16, projector_dim=8)
    learner: Any = convert_batch_norm(learner_of(recipe), recipe.batch_norm)
    assert any(isinstance(m, SplitBatchNorm2d) for m in learner.student.backbone.modules())
    assert any(isinstance(m, SplitBatchNorm2d) for m in learner.teacher.modules())
    views, _ = images_of(recipe)
    taught = {}
    for step in (0, 1, 0):
        learner.objective.begin_step(step)
        learner._step = step
        projections = learner._teach(views["weak"]).projection
        if step in taught:
            assert torch.equal(projections, taught[step])
        taught[step] = projections
    assert not torch.allclose(taught[0], taught[1], atol=1e-6)
    learner.eval()
    assert_close(learner._teach(views["weak"]).projection, learner.teacher(views["weak"]).projection, 1e-6)


def test_each_view_is_shuffled_on_its_own_and_only_where_that_changes_its_statistics(monkeypatch):
    drawn = []

    def noted(count, seed, step, view, device):
        drawn.append((count, seed, step, view))
        return batch_permutation(count, seed, step, view, device)

    monkeypatch.setattr("saccade.models.learner.batch_permutation", noted)
    recipe = small(find_method("cacr-queue").recipe("cifar10", 32), 16, queue_size=32, projector_hidden=(16,))
    views, params = images_of(recipe)
    for kind, expected in (("local", []), ("split-8", [(16, 0, 3, k) for k in range(5)])):
        learner: Any = convert_batch_norm(learner_of(recipe), kind)
        learner.begin_step(3)
        learner(views, params)
        assert drawn == expected
        drawn.clear()


def test_rsa_teaches_aggressive_views_by_weak_ones_with_beta_of_the_step():
    recipe = small(rsa_recipe("cifar10"), projector_hidden=16, projector_dim=8, predictor_hidden=16)
    learner, views, losses = _train_once(recipe)
    q = [normalise(learner.student(views[name]).prediction) for name in ("aggressive_1", "aggressive_2")]
    t = [normalise(learner.teacher(views[name]).projection) for name in ("weak_1", "weak_2")]
    beta = 0.3 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi / 10)))  # step 1 of 10: counted from 1
    expected, parts = rsa_loss(*q, *t, float(beta))
    assert_close(losses["loss"], expected, 1e-6)
    assert_close(losses["aggressive"], parts["aggressive"], 1e-6)
    assert_close(losses["beta"], beta, 1e-6)
    assert trained_parts(learner) == WITH_PREDICTOR
    learner.objective.begin_step(9)
    assert learner.objective.beta == pytest.approx(0, abs=1e-12) and learner.objective.momentum(9) == pytest.approx(1)


def test_rsa_counts_optimizer_steps_not_forwards():
    recipe = small(rsa_recipe("cifar10"), projector_hidden=16, projector_dim=8, predictor_hidden=16)
    learner = learner_of(recipe)
    views, params = images_of(recipe)
    learner.begin_step(3)
    betas = [float(learner(views, params)["beta"]) for _ in range(3)]
    assert betas[0] == betas[1] == betas[2]


def test_byol_predicts_the_teacher_of_the_other_view():
    recipe = small(byol_recipe("cifar10"), projector_hidden=16, projector_dim=8, predictor_hidden=16)
    learner, views, losses = _train_once(recipe)
    q = [normalise(learner.student(views[name]).prediction) for name in ("view_1", "view_2")]
    t = [normalise(learner.teacher(views[name]).projection) for name in ("view_1", "view_2")]
    assert_close(losses["loss"], byol_loss(*q, *t), 1e-6)
    assert trained_parts(learner) == WITH_PREDICTOR
    assert learner.backbone is learner.student.backbone


def test_teacher_follows_by_the_momentum_of_the_step():
    recipe = small(byol_recipe("cifar10"), projector_hidden=16, projector_dim=8, predictor_hidden=16)
    learner, _, _ = _train_once(recipe)
    before = learner.teacher.network.get_parameter("projector.linear_0.weight").clone()
    with torch.no_grad():
        learner.student.get_parameter("projector.linear_0.weight").add_(1)
    learner.begin_step(5)
    moved = learner.teacher.network.get_parameter("projector.linear_0.weight") - before
    assert_close(moved, torch.full_like(moved, 1 - learner.objective.momentum(5)), 1e-6)


@pytest.mark.parametrize(
    ("recipe", "kept"),
    [(RESA["cifar10"], 1), (RESSL["cifar10"], 1), (rsa_recipe("cifar10"), 3), (byol_recipe("cifar10"), 1)],
)
def test_too_few_views_are_refused(recipe, kept):
    fewer = replace(recipe, views=replace(recipe.views, views=recipe.views.views[:kept]))
    with pytest.raises(UserError, match=f"{recipe.method} needs"):
        learner_of(small(fewer, batch=16))


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (RESA["cifar10"], {"temperature": 0.0}),
        (RESA["cifar10"], {"epsilon": -1.0}),
        (RESA["cifar10"], {"form": "both"}),
        (RESA["cifar10"], {"teacher_momentum": 1.01}),
        (RESSL["cifar10"], {"t_student": 0.0}),
        (RESSL["cifar10"], {"teacher_momentum": -0.1}),
        (rsa_recipe("cifar10"), {"beta": 2.0}),
        (byol_recipe("cifar10"), {"teacher_momentum": float("nan")}),
    ],
)
def test_bad_hyper_parameters_are_refused_where_they_are_given(recipe, options):
    with pytest.raises(UserError):
        replace(recipe.options, **options)


@pytest.mark.parametrize(("batch", "size", "way_out"), [(100, 4096, "--batch-size 64"), (256, 128, "queue_size=256")])
def test_queue_that_does_not_hold_whole_batches_is_refused_before_training(batch, size, way_out):
    with pytest.raises(UserError, match=way_out):
        learner_of(small(ressl_recipe("cifar10"), batch, queue_size=size))
