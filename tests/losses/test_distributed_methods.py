"""Every method: two gloo processes with half the batch are one process with the whole batch, over several steps."""

from dataclasses import fields, replace

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
from tests.distributed import run_ranks
from tests.reference_values import assert_close

BATCH, STEPS, FEATURES, CLASSES, PIXELS = 8, 4, 12, 3, 8
SMALL = {
    "projector_hidden": 16,
    "projector_dim": 8,
    "predictor_hidden": 16,
    "manipulation_hidden": 16,
    "queue_size": 24,
}
TOLERANCE = 1e-9


def _small_recipe(name: str) -> TrainingRecipe:
    """CIFAR-10's recipe with narrow heads, a short queue, so that it wraps, and batch norm over all processes."""
    recipe = find_method(name).recipe("cifar10", None)
    changes = {}
    for option in fields(recipe.options):
        value = getattr(recipe.options, option.name)
        if option.name in SMALL and value is not None:
            width = SMALL[option.name]
            changes[option.name] = (width,) * len(value) if isinstance(value, tuple) else width
    return replace(recipe, options=replace(recipe.options, **changes), batch_size=BATCH, batch_norm="sync")


def _learner(name: str) -> Learner:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, FEATURES, 3, stride=2), nn.BatchNorm2d(FEATURES), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    objective = find_method(name).objective(_small_recipe(name), FEATURES, CLASSES, STEPS, STEPS)
    learner = Learner(backbone, objective, seed=3)
    convert_batch_norm(learner, "sync")  # in place
    return learner.double()


def _train(name: str) -> dict:
    """Losses and gradients of every step on this process's share of the batches, and everything that is kept."""
    learner = _learner(name)
    model = DistributedDataParallel(learner, broadcast_buffers=False) if world_size() > 1 else learner
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    recipe, generator = _small_recipe(name), torch.Generator().manual_seed(1)
    share = BATCH // world_size()
    rows = slice(rank() * share, (rank() + 1) * share)
    losses, gradients = [], {}
    for step in range(STEPS):
        views = {
            n: torch.randn(BATCH, 3, PIXELS, PIXELS, dtype=torch.float64, generator=generator)[rows]
            for n in recipe.views.names
        }
        params = draw(recipe.views, 0, step, torch.arange(BATCH), torch.full((BATCH, 2), 40))
        label = torch.arange(BATCH) % CLASSES
        learner.begin_step(step)
        loss = model(views, {n: p[rows] for n, p in params.items()}, label[rows])["loss"]
        loss.backward()
        losses.append(loss.detach())
        gradients |= {f"{step}.{n}": p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        learner.end_step()
    return {"losses": torch.stack(losses), "gradients": gradients, "state": dict(learner.state_dict())}


@pytest.mark.parametrize("name", methods())
def test_two_processes_are_one(name):
    one, two = _train(name), run_ranks(_train, name)
    assert_close((two[0]["losses"] + two[1]["losses"]) / 2, one["losses"], TOLERANCE)
    assert len({round(x, 6) for x in one["losses"].tolist()}) == STEPS  # it moves
    for part in ("gradients", "state"):
        assert one[part].keys() == two[0][part].keys() == two[1][part].keys()
        for key, expected in one[part].items():
            for result in two:
                assert_close(result[part][key], expected, TOLERANCE)
