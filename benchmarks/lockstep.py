"""Several executors in lockstep, a learner on each: what differs between them, step by step."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from tqdm import tqdm

from saccade.models.learner import Learner
from saccade.pipelines.pipeline import Batch
from saccade.pipelines.sources import Source
from saccade.pipelines.views import Views
from saccade.runs.config import Config
from saccade.runs.session import Session, start_accelerator
from saccade.tools.benchmark.contenders import epochs
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


def compare(config: Config, sources: dict[str, Source], steps: int, workers: int) -> list[Agreement]:
    """`steps` optimizer steps of every executor in lockstep, a session on each; reference first, the control last."""
    recipe = config.recipe
    accelerator = start_accelerator("cpu", "fp32")
    lanes = {}
    with contextlib.ExitStack() as stack:
        for name in (*sources, CONTROL):
            executor = "reference" if name == CONTROL else name
            own = replace(config, pipeline=executor.removesuffix("-raw"), workers=workers, steps=steps)
            lanes[name] = stack.enter_context(Session(own, accelerator, sources[executor]))
            lanes[name].prepare()
        found = {
            name: Agreement(name, tolerance(name, f"{recipe.method}/{recipe.name}", recipe.views)) for name in lanes
        }
        streams = {name: stack.enter_context(contextlib.closing(epochs(lanes[name].pipeline))) for name in sources}
        shared = copy.deepcopy(lanes["reference"].learner)
        for step in tqdm(range(steps), desc=f"{recipe.method} {recipe.name}", unit=" steps", smoothing=0.1):
            batches = {name: next(stream) for name, stream in streams.items()}
            batches[CONTROL] = _noisy(batches["reference"], recipe.views, step)
            for name, batch in batches.items():
                _compare_batches(found[name], batches["reference"], batch, recipe.views, steps)
            same_weights = _shared_losses(shared, lanes["reference"].learner, batches, step)
            for name, session in lanes.items():
                found[name].losses.append(session.step(batches[name])["loss"].item())
                found[name].shared.append(_relative(same_weights[name], same_weights["reference"]))
                found[name].trained.append(_relative(found[name].losses[-1], found["reference"].losses[-1]))
    return list(found.values())


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
        torch.equal(batch.params[view].columns()[name], value)
        for view in recipe.names
        for name, value in judge.params[view].columns().items()
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
