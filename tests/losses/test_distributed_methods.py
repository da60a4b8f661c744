"""Every published recipe: two and four gloo processes that share a batch are one process, over several steps."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from saccade.losses.recipe import TrainingRecipe
from saccade.losses.registry import find_method, methods
from saccade.models.gather import rank, world_size
from saccade.models.learner import Learner
from saccade.models.norm import convert_batch_norm
from saccade.pipelines.draw import draw
from saccade.pipelines.order import Order
from saccade.tools.recipes import recipe_names
from tests.distributed import run_ranks
from tests.reference_values import assert_close

BATCH, STEPS, FEATURES, CLASSES, PIXELS = 16, 4, 12, 3, 8
SMALL = {
    "projector_hidden": 16,
    "projector_dim": 8,
    "predictor_hidden": 16,
    "manipulation_hidden": 16,
    "queue_size": 48,
}
TOLERANCE = 1e-9


def _small_recipe(method: str, name: str) -> TrainingRecipe:
    """The recipe with narrow heads, a short queue, so that it wraps, and groups of 2 images where it has 32."""
    recipe = find_method(method).recipe(name, None)
    changes: dict[str, Any] = {}
    for option in fields(recipe.options):
        value = getattr(recipe.options, option.name)
        if option.name in SMALL and value is not None:
            width = SMALL[option.name]
            changes[option.name] = (width,) * len(value) if isinstance(value, tuple) else width
        if value == "block-32":
            changes[option.name] = "block-2"
    norm = recipe.batch_norm.replace("group-32", "group-2")
    return replace(recipe, options=replace(recipe.options, **changes), batch_size=BATCH, batch_norm=norm)


def _learner(recipe: TrainingRecipe) -> Learner:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, FEATURES, 3, stride=2), nn.BatchNorm2d(FEATURES), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    objective = find_method(recipe.method).objective(recipe, FEATURES, CLASSES, STEPS, STEPS)
    learner = Learner(backbone, objective, seed=3)
    convert_batch_norm(learner, recipe.batch_norm, BATCH)  # in place
    return learner.double()


def _train(method: str, name: str) -> dict:
    """Losses and gradients of every step on this process's share of the batches, and everything that is kept."""
    recipe = _small_recipe(method, name)
    learner = _learner(recipe)
    model = DistributedDataParallel(learner, broadcast_buffers=False) if world_size() > 1 else learner
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    places = Order(BATCH, BATCH, rank=rank(), world_size=world_size(), shuffle=False).batches(0)[0]
    losses, gradients = [], {}
    for step in range(STEPS):
        names = [*recipe.views.names, *(recipe.companion.names if recipe.companion else ())]
        views = {
            n: torch.randn(BATCH, 3, PIXELS, PIXELS, dtype=torch.float64, generator=generator)[places] for n in names
        }
        params = draw(recipe.views, 0, step, places, torch.full((len(places), 2), 40))
        label = places % CLASSES
        learner.begin_step(step)
        companion = (views.pop("labelled"), label) if recipe.companion else None
        loss = model(views, params, label, companion)["loss"]
        loss.backward()
        losses.append(loss.detach())
        gradients |= {f"{step}.{n}": p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        learner.end_step()
    return {"losses": torch.stack(losses), "gradients": gradients, "state": dict(learner.state_dict())}


ALL = [(method.name, name) for method in methods().values() for name in recipe_names(method)]
QUICK = {(method, "cifar10") for method in methods()} | {(m, "imagenet") for m in ("ressl", "moco-v2", "cacr-queue")}


@pytest.mark.parametrize(
    ("method", "name", "ranks"),
    [
        pytest.param(*recipe, ranks, marks=[] if recipe in QUICK and ranks == 2 else [pytest.mark.slow])
        for ranks in (2, 4)
        for recipe in ALL
    ],
)
def test_several_processes_are_one(method, name, ranks):
    one, several = _train(method, name), run_ranks(_train, method, name, world_size=ranks)
    assert_close(torch.stack([found["losses"] for found in several]).mean(0), one["losses"], TOLERANCE)
    assert len({round(x, 6) for x in one["losses"].tolist()}) == STEPS  # it moves
    for part in ("gradients", "state"):
        for result in several:
            assert one[part].keys() == result[part].keys()
            for key, expected in one[part].items():
                assert_close(result[part][key], expected, TOLERANCE)
