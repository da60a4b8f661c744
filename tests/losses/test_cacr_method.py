"""--method cacr: the objective is the pure function on every view, and its recipes are the authors' networks."""

from dataclasses import replace

import pytest
import torch

from saccade.base.errors import UserError
from saccade.losses.cacr import cacr_loss
from saccade.losses.functional import normalise
from saccade.losses.recipes.cacr import RECIPES, cacr_recipe
from saccade.models.backbone import create_backbone
from saccade.models.heads import mlp
from tests.losses.method_checks import images_of, learner_of, small, trained_parts
from tests.reference_values import assert_close


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "options", [{}, {"ablation": "without_w1"}, {"tau_plus": 0.1}, {"repulsion": "rbf"}, {"t_neg": 0.9}]
)
def test_objective_is_the_pure_function_of_all_views(options):
    recipe = small(RECIPES["cifar10-resnet18"], **options)
    learner = learner_of(recipe)
    views, params = images_of(recipe)
    assert len(views) == 5
    losses = learner(views, params)
    losses["loss"].backward()
    learner.train()
    embeddings = [normalise(learner.student(views[name]).projection) for name in views]
    o = recipe.options
    expected, parts = cacr_loss(
        embeddings, o.t_pos, o.t_neg, ablation=o.ablation, repulsion=o.repulsion, tau_plus=o.tau_plus
    )
    assert_close(losses["loss"], expected, 1e-6)
    assert_close(losses["effective_negatives"], parts["effective_negatives"], 1e-6)
    assert 1 <= losses["effective_negatives"] <= recipe.batch_size - 1
    assert learner.teacher is None and trained_parts(learner) == {"student.backbone", "student.projector"}


@pytest.mark.parametrize(
    ("data", "size", "count"), [("cifar10", 32, 27_221_088), ("cifar100", 32, 27_221_088), ("stl10", 64, 58_678_368)]
)
def test_authors_recipes_have_their_network(data, size, count):
    recipe = cacr_recipe(data)
    backbone = create_backbone(recipe.backbone, recipe.image_size)
    assert recipe.image_size == size and not recipe.proposals and len(recipe.views) == 5
    assert _count(backbone) + _count(mlp(4096, recipe.options.projector_hidden, recipe.options.projector_dim)) == count
    with torch.no_grad():
        features = backbone.eval()(torch.rand(2, 3, size, size))
    assert features.shape == (2, 4096) and (features >= 0).all()  # evaluated after the ReLU
    assert backbone.get_parameter("layers.fc6.weight").std().item() == pytest.approx(0.02, rel=0.01)


def test_recipes_of_ours_are_marked():
    for name in ("tiny-imagenet", "imagenet100", "imagenet", "textures", "cifar10-resnet18"):
        assert cacr_recipe(name).proposals


def test_fewer_than_two_views_are_refused():
    recipe = small(RECIPES["textures"])
    alone = replace(recipe, views=replace(recipe.views, views=recipe.views.views[:1]))
    with pytest.raises(UserError, match="needs 2 or more, not 1"):
        learner_of(alone)


def test_temperature_below_zero_is_refused():
    with pytest.raises(UserError, match=r"t_neg is 0.0"):
        small(RECIPES["textures"], t_neg=0.0)
