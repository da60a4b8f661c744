"""--method cacr-queue and cacr-momentum: objectives against their pure functions, blocks of negatives, recipes."""

import pytest
import torch

from saccade.base.errors import UserError
from saccade.losses.cacr_momentum import cacr_momentum_loss, effective_negatives
from saccade.losses.cacr_queue import cacr_queue_loss
from saccade.losses.functional import normalise
from saccade.losses.moco import moco_v3_loss
from saccade.losses.recipes.cacr_momentum import RECIPES as MOMENTUM
from saccade.losses.recipes.cacr_queue import RECIPES as QUEUE
from saccade.models.gather import rank
from tests.distributed import dealt, run_ranks
from tests.losses.method_checks import images_of, learner_of, small, trained_parts
from tests.reference_values import assert_close


def _outputs(learner, views, prediction: bool = False):
    queries = [learner.student(views[name]) for name in learner.objective.student_views]
    keys = [learner.teacher(views[name]).projection for name in learner.objective.teacher_views]
    return [normalise(q.prediction if prediction else q.projection) for q in queries], [normalise(k) for k in keys]


@pytest.mark.parametrize("intra_batch", ["none", "batch", "block-4"])
def test_queue_objective_is_the_pure_function_over_its_blocks(intra_batch):
    recipe = small(QUEUE["cifar10"], queue_size=16, intra_batch=intra_batch)
    learner = learner_of(recipe)
    views, params = images_of(recipe)
    before = learner.objective.queue.keys.clone()
    learner.begin_step(0)
    losses = learner(views, params)
    losses["loss"].backward()
    queries, keys = _outputs(learner, views)
    assert len(queries) == len(keys) == 5
    groups = 2 if intra_batch == "block-4" else 1
    blocks = [slice(i, None, groups) for i in range(groups)]
    expected = [
        cacr_queue_loss([q[b] for q in queries], [k[b] for k in keys], before.t(), intra_batch=intra_batch != "none")[0]
        for b in blocks
    ]
    assert_close(losses["loss"], sum(expected) / len(expected), 1e-5)
    learner.end_step()
    assert_close(learner.objective.queue.keys[:8], keys[-1], 1e-6)  # the last view's alone
    assert trained_parts(learner) == {"student.backbone", "student.projector"}


def _views(count: int, seed: int = 3) -> torch.Tensor:
    return normalise(torch.randn(count, 6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def _queue_on_a_rank() -> dict:
    own = slice(rank(), None, 2)
    queries, keys, queue = (
        _views(3)[:, own].clone().requires_grad_(),
        _views(3, 4)[:, own],
        _views(2, 5).flatten(0, 1).t(),
    )
    loss, parts = cacr_queue_loss(queries, keys, queue, gather=True)
    loss.backward()
    return {"loss": loss.detach(), "grad": queries.grad, "effective": parts["effective_negatives"]}


def test_gathered_negatives_on_two_ranks_are_those_of_one_process():
    queries = _views(3).requires_grad_()
    loss, parts = cacr_queue_loss(queries, _views(3, 4), _views(2, 5).flatten(0, 1).t())
    loss.backward()
    ranks = run_ranks(_queue_on_a_rank)
    assert_close(sum(r["loss"] for r in ranks) / 2, loss, 1e-12)
    assert_close(torch.cat([r["grad"] for r in ranks], 1)[:, dealt(6)] / 2, queries.grad, 1e-12)
    assert_close(sum(r["effective"] for r in ranks) / 2, parts["effective_negatives"], 1e-12)


@pytest.mark.parametrize(
    ("options", "keys_used"),
    [({}, 2), ({"full_mode": True}, 6), ({"cost": "euclidean"}, 2), ({"cost": "euclidean", "reduction": "sum"}, 2)],
)
def test_momentum_objective_is_the_pure_function_of_global_and_local_views(options, keys_used):
    recipe = small(MOMENTUM["cifar10"], **options)
    learner = learner_of(recipe)
    views, params = images_of(recipe)
    assert [views[name].shape[-1] for name in learner.objective.student_views] == [32, 32, 16, 16, 16, 16]
    learner.begin_step(0)
    losses = learner(views, params)
    losses["loss"].backward()
    queries, keys = _outputs(learner, views, prediction=True)
    assert len(keys) == keys_used
    o = recipe.options
    assert_close(
        losses["loss"], cacr_momentum_loss(queries, keys, o.temperature, cost=o.cost, reduction=o.reduction), 1e-5
    )
    assert trained_parts(learner) == {"student.backbone", "student.projector", "student.predictor"}


def test_without_local_crops_momentum_cacr_is_half_of_moco_v3():
    recipe = small(MOMENTUM["textures"])
    recipe = recipe.__class__(**{**vars(recipe), "views": type(recipe.views)(recipe.views.views[:2])})
    learner = learner_of(recipe)
    views, params = images_of(recipe)
    loss = learner(views, params)["loss"]
    (q1, q2), (k1, k2) = _outputs(learner, views, prediction=True)
    assert_close(2 * loss, moco_v3_loss(q1, q2, k1, k2, recipe.options.temperature), 1e-5)


def test_effective_negatives_counts_the_other_keys():
    q, k = _views(2)
    for t in (0.1, 1.0):
        counts = []
        for n in range(6):
            r = torch.softmax(torch.stack([q[n] @ k[j] / t for j in range(6) if j != n]), 0)
            counts.append(1 / r.square().sum())
        assert_close(effective_negatives(q, k, t), torch.stack(counts).mean(), 1e-12)


@pytest.mark.parametrize(
    ("recipes", "options", "says"),
    [
        (QUEUE, {"intra_batch": "blocks"}, "use none, batch or"),
        (QUEUE, {"teacher_momentum": -0.1}, "teacher_momentum is -0.1"),
        (QUEUE, {"t_pos": 0.0}, "t_pos is 0.0"),
        (MOMENTUM, {"temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_bad_options_are_one_sentence(recipes, options, says):
    with pytest.raises(UserError, match=says):
        learner_of(small(recipes["textures"], **options))


def test_a_block_that_does_not_divide_the_batch_is_one_sentence():
    recipe = small(QUEUE["textures"], intra_batch="block-3")
    views, params = images_of(recipe)
    with pytest.raises(UserError, match="block-3 does not divide the 8 images"):
        learner_of(recipe)(views, params)


def test_authors_recipes():
    for recipe in (QUEUE["imagenet"], QUEUE["imagenet100"]):
        o = recipe.options
        assert (o.t_pos, o.t_neg, o.queue_size, o.teacher_momentum, recipe.batch_size) == (1.0, 2.0, 65536, 0.999, 256)
        assert len(recipe.views) == 5 and not recipe.proposals and recipe.optimizer.lr == 0.03
    r50, vit = MOMENTUM["imagenet"], MOMENTUM["imagenet-vit"]
    assert (r50.options.temperature, r50.options.teacher_momentum, r50.optimizer.lr, r50.epochs) == (
        1.0,
        0.996,
        4.8,
        1000,
    )
    assert (vit.options.temperature, vit.options.teacher_momentum, vit.optimizer.lr, vit.epochs) == (
        0.2,
        0.99,
        2.4e-3,
        300,
    )
    for recipe in (r50, vit):
        locals_ = [view for view in recipe.views if view.name.startswith("local")]
        assert (
            len(locals_) == 8 and {v.size for v in locals_} == {96} and {v.crop.scale for v in locals_} == {(0.05, 0.4)}
        )
        assert recipe.views["view_1"]["blur"].p == 1.0 and recipe.views["view_2"]["solarise"].p == 0.2
        assert recipe.views["view_1"].crop.scale[0] == (0.2 if recipe is r50 else 0.08)
