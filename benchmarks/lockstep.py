"""Several executors in lockstep, a learner on each: what differs between them, step by step."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from accelerate.utils import set_seed
from tqdm import tqdm

from saccade import train
from saccade.models.learner import Learner
from saccade.models.schedules import schedule
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.order import Order
from saccade.pipelines.pipeline import Batch, Pipeline
from saccade.pipelines.sources import Source
from saccade.pipelines.views import Views
from saccade.runs.config import Config
from saccade.tools.parity_cases import Tolerance, tolerance

CONTROL = "noise"  # no executor: reference's views with noise as large as the tolerance, for what that does to losses


@dataclass(frozen=True)
class LossTolerance:
    """Largest relative differences of a loss to reference's, and why they are not zero."""

    shared: float = 1e-4
    first_10: float = 1e-3
    last: float = 2e-2
    reason: str = (
        "pixels differ in float32's last digits and batch norm over a small batch magnifies that; of learners "
        "trained apart, every step adds to the difference of their weights"
    )


@dataclass
class Agreement:
    """One executor against reference.

    mean, largest: pixel difference by view, 0 to 255; shared, trained: relative differences of losses.
    """

    executor: str
    allowed: Tolerance
    same_samples: int = 0  # steps with equal sample numbers, in order
    same_params: int = 0  # steps with every ViewParams equal
    mean: dict[str, float] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    shared: list[float] = field(default_factory=list)  # by step: the same weights see this executor's batch
    trained: list[float] = field(default_factory=list)  # by step: a learner of its own, trained on this executor alone
    losses: list[float] = field(default_factory=list)  # by step: of that learner

    def failures(self, allowed: LossTolerance = LossTolerance()) -> list[str]:
        """What does not agree, in words; empty if all does. The control has nothing to fulfil."""
        steps = len(self.losses)
        agrees = {
            "samples": self.same_samples == steps,
            "parameters": self.same_params == steps,
            "pixels": _within(self.mean.values(), self.allowed.mean)
            and _within(self.largest.values(), self.allowed.largest),
            "loss of shared weights": _within(self.shared, allowed.shared),
            "loss in the first 10 steps": _within(self.trained[:10], allowed.first_10),
            "loss at the last step": _within(self.trained[-1:], allowed.last),
        }
        return [what for what, good in agrees.items() if not good and self.executor != CONTROL]


def _within(values: Iterable[float], most: float) -> bool:
    return all(value <= most for value in values)  # a NaN is not


class Lane:
    """One executor and the learner that is trained on it."""

    def __init__(self, name: str, config: Config, learner: Learner, steps_per_epoch: int) -> None:
        self.name, self._config = name, config
        self.learner = copy.deepcopy(learner).to(memory_format=torch.channels_last).train()
        self._accelerator = train.start_accelerator("cpu", "fp32")
        spec = config.recipe.optimizer
        self._optimizer = train.build_optimizer(self.learner, spec)
        self._lr = schedule(
            config.recipe.schedule.kind,
            spec.lr,
            total_steps=config.steps,
            steps_per_epoch=steps_per_epoch,
            **config.recipe.schedule.options,
        )

    def step(self, batch: Batch, step: int) -> float:
        """train.py's own optimizer step; returns its loss."""
        losses = train.training_step(
            self.learner, self.learner, self._optimizer, self._accelerator, batch, step, self._lr(step), self._config
        )
        return losses["loss"].item()


def compare(config: Config, sources: dict[str, Source], steps: int, workers: int) -> list[Agreement]:
    """`steps` optimizer steps of every executor in lockstep; reference comes first, the control last."""
    recipe, photos = config.recipe, sources["reference"]
    order = Order(len(photos), recipe.batch_size, config.seed)
    set_seed(config.seed)
    learner = train.build_learner(config, photos, order.steps(), steps)
    names = [*sources, CONTROL]
    lanes = {name: Lane(name, config, learner, order.steps()) for name in names}
    shared = copy.deepcopy(lanes["reference"].learner)
    found = {name: Agreement(name, tolerance(name, f"{recipe.method}/{recipe.name}")) for name in names}
    with contextlib.ExitStack() as stack:
        streams = {}
        for name, source in sources.items():
            pipeline = stack.enter_context(
                build_pipeline(source, recipe.views, order, name.removesuffix("-raw"), "cpu", workers=workers)
            )
            streams[name] = stack.enter_context(contextlib.closing(_endless(pipeline)))
        for step in tqdm(range(steps), desc=f"{recipe.method} {recipe.name}", unit=" steps", smoothing=0.1):
            batches = {name: next(stream) for name, stream in streams.items()}
            batches[CONTROL] = _noisy(batches["reference"], recipe.views, step)
            for name, batch in batches.items():
                _compare_batches(found[name], batches["reference"], batch, recipe.views, steps)
            same_weights = _shared_losses(shared, lanes["reference"].learner, batches, step)
            for name, lane in lanes.items():
                found[name].losses.append(lane.step(batches[name], step))
                found[name].shared.append(_relative(same_weights[name], same_weights["reference"]))
                found[name].trained.append(_relative(found[name].losses[-1], found["reference"].losses[-1]))
    return list(found.values())


def _endless(pipeline: Pipeline) -> Iterator[Batch]:
    while True:
        yield from pipeline


def _noisy(batch: Batch, recipe: Views, step: int) -> Batch:
    """Uniform noise whose mean size is the mean pixel difference that executors are allowed."""
    generator = torch.Generator().manual_seed(step)
    size = 2 * tolerance(CONTROL, "crop bilinear").mean / 255 / torch.tensor(recipe.std)[:, None, None]
    return replace(
        batch,
        views={
            name: view + size * (2 * torch.rand(view.shape, generator=generator) - 1)
            for name, view in batch.views.items()
        },
    )


def _compare_batches(found: Agreement, judge: Batch, batch: Batch, recipe: Views, steps: int) -> None:
    found.same_samples += torch.equal(batch.index, judge.index)
    found.same_params += all(
        torch.equal(getattr(batch.params[view], name), value)
        for view in recipe.names
        for name, value in vars(judge.params[view]).items()
    )
    scale = 255 * torch.tensor(recipe.std)[:, None, None]
    for view in recipe.names:
        difference = (batch.views[view] - judge.views[view]).abs() * scale
        found.mean[view] = found.mean.get(view, 0.0) + float(difference.double().mean()) / steps
        found.largest[view] = max(found.largest.get(view, 0.0), float(difference.max()))


@torch.no_grad()
def _shared_losses(shared: Learner, reference: Learner, batches: dict[str, Batch], step: int) -> dict[str, float]:
    """What reference's weights of this step say of each executor's batch: only pixels differ."""
    shared.load_state_dict(reference.state_dict())
    shared.begin_step(step)
    return {name: shared(batch.views, batch.params, batch.label)["loss"].item() for name, batch in batches.items()}


def _relative(value: float, expected: float) -> float:
    return abs(value - expected) / max(abs(expected), 1e-12)
