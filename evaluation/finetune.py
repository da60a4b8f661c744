"""A pretrained backbone and a new classifier, trained together on labelled images: the engine of fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.base.progress import progress_bar
from saccade.evaluation.accuracy import Accuracy, accuracy
from saccade.evaluation.features import PRECISIONS, mode
from saccade.evaluation.kept import Kept
from saccade.evaluation.linear import state_of, take_up
from saccade.evaluation.shares import cross_entropy_of, mean_of, together
from saccade.models.backbone import feature_size
from saccade.models.heads import linear_classifier
from saccade.models.layers import slower_below
from saccade.models.norm import convert_batch_norm
from saccade.models.schedules import schedule
from saccade.pipelines.pipeline import Pipeline
from saccade.pipelines.sources import Source
from saccade.pipelines.views import Crop
from saccade.runs.ranks import ONE, Ranks

OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class FineTuning:
    """How backbone and classifier are trained. The two rates are for `lr_batch` images a step and scale linearly."""

    epochs: int
    batch_size: int
    lr: float  # of the backbone; 0 leaves it as it is, its batch statistics too
    head_lr: float
    lr_batch: int | None = 256
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    schedule: str = "cosine"
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    crop: Crop = field(default_factory=lambda: Crop((0.08, 1.0)))
    fraction: float = 1.0  # of each class's training labels, drawn by seed
    shots: int | None = None  # or so many of each class
    printed: str = "last"  # the epoch whose accuracy is reported

    def with_epochs(self, epochs: int) -> Self:
        return replace(self, epochs=epochs)

    def rates(self, images: int) -> tuple[float, float]:
        """(of the backbone, of the classifier) for steps of so many images."""
        scale = images / self.lr_batch if self.lr_batch else 1.0
        return self.lr * scale, self.head_lr * scale


@dataclass(frozen=True)
class Tuned:
    """Test accuracy after every epoch that was tested, the mean training loss of each, both networks as they ended."""

    history: tuple[Accuracy, ...]
    losses: tuple[float, ...]
    backbone: nn.Module
    classifier: nn.Linear


def few_labels(source: Source, fraction: float = 1.0, shots: int | None = None, seed: int = 0) -> Source:
    """`fraction` of the labelled images of each class, rounded, at least one; or `shots` of each. By seed.

    UserError where a class has fewer than `shots`.
    """
    return few_and_rest(source, fraction, shots, seed)[0]


def few_and_rest(
    source: Source, fraction: float = 1.0, shots: int | None = None, seed: int = 0
) -> tuple[Source, Source | None]:
    """The same, and the labelled images that were not drawn; None where all were."""
    if fraction == 1 and shots is None:
        return source, None
    assert source.labels is not None
    random, kept = np.random.default_rng(seed), []
    for label in np.unique(source.labels):
        rows = random.permutation(np.flatnonzero(source.labels == label))
        if shots and len(rows) < shots:
            raise UserError(
                f"{source.name}: {shots} labelled images of every class are asked for, and one has {len(rows)}; give "
                "fewer shots, or label more images."
            )
        kept.append(rows[: shots or max(1, round(fraction * len(rows)))])
    drawn = np.sort(np.concatenate(kept))
    rest = np.setdiff1d(np.flatnonzero(source.labels >= 0), drawn)
    few = source.subset(drawn, f"{source.name}, {shots or f'{fraction:.0%}'} of each class")
    return few, source.subset(rest, f"{source.name}, the other labelled images") if len(rest) else None


def fine_tune(
    how: FineTuning,
    backbone: nn.Module,
    pipeline: Pipeline,
    classes: int,
    test: Callable[[nn.Module], tuple[Tensor, Tensor]] | None,
    seed: int = 0,
    precision: str = "fp32",
    progress: bool = False,
    kept: Kept | None = None,
    ranks: Ranks = ONE,
) -> Tuned:
    """Train a copy of the backbone, and a classifier, on the pipeline's first view and labels.

    test: (features (M, D), labels (M,)) of the test images by the backbone it is given, asked for after every epoch, or
    None; kept: where the state is kept and taken up; ranks: who have shared the pipeline's batches among themselves.
    Same seed, same result on a CPU, to rounding on any number of processes. Raises UserError when the loss is no longer
    finite.
    """
    frozen, view, order = how.lr == 0, pipeline.recipe.views[0], pipeline.order
    network = copy.deepcopy(backbone).requires_grad_(not frozen)
    synced = ranks.world > 1 and not frozen  # its batch norms see the batch of all processes
    network = convert_batch_norm(network, "sync") if synced else network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = linear_classifier(feature_size(network, view.size, pipeline.source.channels), classes).to(
            pipeline.device
        )
    rates = how.rates(pipeline.order.batch_size)
    optimizer = _optimizer(how, network, head, rates)
    steps = len(pipeline)
    curves = [
        schedule(how.schedule, rate, total_steps=steps * how.epochs, steps_per_epoch=steps, **how.schedule_options)
        for rate in rates
    ]
    history, losses = take_up(kept, True, network=network, head=head, optimizer=optimizer)
    begun, model = len(losses), together(_Whole(network, head), ranks)
    for epoch in progress_bar(range(begun, how.epochs), how.epochs - begun, "fine-tuning", "epoch", progress):
        total = torch.zeros((), device=pipeline.device)
        for step, (image, label) in enumerate(_batches(pipeline.at(epoch)), epoch * steps):
            ranks.at(f"in step {step + 1} of fine-tuning")
            own, images = order.share(step % steps)
            for group in optimizer.param_groups:
                group["lr"] = curves[group["curve"]](step) * group.get("lr_scale", 1.0)
            with mode(network, not frozen), _autocast(pipeline, precision):
                logits = model(image[:own] if synced else image)[:own]
                loss = cross_entropy_of(logits, label[:own], images, ranks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        losses.append(mean_of(total, ranks) / steps)
        if not losses[-1] < float("inf"):
            raise UserError(
                f"fine-tuning diverged in epoch {epoch + 1} (loss {losses[-1]}): the learning rate {rates[0]:g} of the "
                f"backbone or {rates[1]:g} of the classifier is too high for these images; give a lower --lr."
            )
        if test:
            features, labels = test(network)
            with torch.no_grad():
                history.append(accuracy(head(features.to(pipeline.device)), labels.to(pipeline.device)))
        if kept:
            kept.write(state_of(history, losses, network=network, head=head, optimizer=optimizer))
    if kept:
        kept.remove()
    if synced:  # the batch norms that it came with
        network, trained = copy.deepcopy(backbone), network
        network.load_state_dict(trained.state_dict())
    return Tuned(tuple(history), tuple(losses), network.eval(), head)


class _Whole(nn.Module):
    def __init__(self, network: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.network(image).flatten(1).float())


def _batches(pipeline: Pipeline) -> Iterator[tuple[Tensor, Tensor]]:
    name = pipeline.recipe.names[0]
    for batch in pipeline:
        assert batch.label is not None
        yield batch.views[name], batch.label


def _autocast(pipeline: Pipeline, precision: str) -> torch.autocast:
    dtype = PRECISIONS[precision]
    return torch.autocast(pipeline.device.type, dtype, dtype is not None)


def _optimizer(
    how: FineTuning, network: nn.Module, head: nn.Linear, rates: tuple[float, float]
) -> torch.optim.Optimizer:
    """Two groups or more: `curve` says which of the two rates each follows."""
    groups: list[dict[str, Any]] = [{"params": list(head.parameters()), "curve": 1}]
    if how.lr:
        own = [{"params": list(network.parameters()), "curve": 0}]
        groups = [*(slower_below(own, network, how.layer_decay) if how.layer_decay != 1 else own), *groups]
    make = {
        "sgd": partial(torch.optim.SGD, momentum=how.momentum),
        "adamw": torch.optim.AdamW,
    }.get(how.optimizer)
    if make is None:
        raise UserError(f"fine-tuning's optimizer {how.optimizer!r} is unknown; use one of {', '.join(OPTIMIZERS)}.")
    return make(groups, lr=rates[1], weight_decay=how.weight_decay)
