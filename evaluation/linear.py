"""A probe of a frozen backbone, mostly a linear classifier: one engine, whose every choice is a value of `Probe`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.base.progress import progress_bar
from saccade.evaluation.accuracy import Accuracy
from saccade.evaluation.features import mode
from saccade.evaluation.kept import Kept
from saccade.evaluation.shares import cross_entropy_of, mean_of, together
from saccade.models.heads import linear_classifier
from saccade.models.norm import convert_batch_norm
from saccade.models.schedules import schedule
from saccade.pipelines.order import Order
from saccade.pipelines.views import Crop
from saccade.runs.ranks import ONE, Ranks

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]  # pass by number: features (n, D), labels (n,)
PART = 2**16  # features looked at in one go
OPTIMIZERS = ("sgd", "nesterov", "adam")
PREPARATIONS = ("raw", "standardise", "l2-standardise")


@dataclass(frozen=True)
class Probe:
    """How the classifier is trained. An epoch is one pass, or `steps_per_epoch` steps over as many passes as needed."""

    epochs: int
    batch_size: int
    lr: float
    lr_batch: int | None = None  # lr is for this batch size and scales linearly from there; None: it does not scale
    lr_for: Mapping[str, float] = field(default_factory=dict)  # other rates: "vit", "batch256" (of the pre-training)
    optimizer: str = "sgd"
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: str = "cosine"  # a kind of models.schedules, and its options
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    init: str = "normal"  # weight N(0, 0.01), bias 0; "default": torch's
    crop: Crop | None = None  # None: cached features; else new random crops and flips every epoch
    crop_for: Mapping[str, Crop] = field(default_factory=dict)  # data sets with another crop
    prepare: str = (
        "raw"  # or "standardise" by the training features' mean and std, "l2-standardise" to unit length before
    )
    drop_last: bool = False
    steps_per_epoch: int | None = None
    batch_norm_drift: bool = False  # RSA's code: the "frozen" backbone is in train mode while the classifier learns
    printed: str = "last"  # the epoch whose accuracy the paper printed: "last", or "best" on the test set

    def with_epochs(self, epochs: int) -> Self:
        """The same schedule squeezed into, or stretched to, another number of epochs."""
        options = dict(self.schedule_options)
        for name in ("milestones", "warmup_epochs"):
            if name in options:
                scale = epochs / self.epochs
                value = options[name]
                options[name] = tuple(m * scale for m in value) if name == "milestones" else value * scale
        return replace(self, epochs=epochs, schedule_options=options)

    def peak_lr(self) -> float:
        return self.lr * self.batch_size / self.lr_batch if self.lr_batch else self.lr


@dataclass(frozen=True)
class ProbeResult:
    """Test accuracy after every epoch, and the mean training loss of each."""

    history: tuple[Accuracy, ...]
    losses: tuple[float, ...]

    @property
    def last(self) -> Accuracy:
        return self.history[-1]

    @property
    def best_epoch(self) -> int:
        """1-based, the first with the highest top-1."""
        return 1 + max(range(len(self.history)), key=lambda e: self.history[e].top1)

    @property
    def best(self) -> Accuracy:
        return self.history[self.best_epoch - 1]


class Preparation:
    """What is done to features before the classifier, fixed by the whole training set's features (N, D)."""

    def __init__(self, kind: str, train: Tensor | None, device: torch.device | str = "cpu") -> None:
        if kind not in PREPARATIONS:
            raise UserError(f"the probe's preparation {kind!r} is unknown; use one of {', '.join(PREPARATIONS)}.")
        self.unit, self.standard = kind.startswith("l2"), kind.endswith("standardise")
        if self.standard:
            if train is None:
                raise ValueError(f"{kind} needs the training set's features")
            # Mean-Shift takes torch's default, the unbiased variance; "standardise", ours, that of the population
            variance, mean = _moments(train, self.unit)
            self.mean = mean.float().to(device)
            self.scale = (variance + 1e-5).rsqrt().float().to(device)  # eps of Mean-Shift's code

    def __call__(self, features: Tensor) -> Tensor:
        if self.unit:
            features = F.normalize(features, dim=1)
        if self.standard:
            features = (features - self.mean) * self.scale
        return features


def _moments(features: Tensor, unit: bool) -> tuple[Tensor, Tensor]:
    """Variance and mean (D,) in float64, part by part: a set of millions is never held in float64."""

    def parts() -> Iterator[Tensor]:
        for part in features.split(PART):
            yield (F.normalize(part.float(), dim=1) if unit else part).double()

    mean = sum((part.sum(0) for part in parts()), torch.zeros(features.shape[1], dtype=torch.float64)) / len(features)
    squares = sum(((part - mean).square().sum(0) for part in parts()), torch.zeros_like(mean))
    return squares / (len(features) - (1 if unit else 0)), mean


def cached_batches(features: Tensor, labels: Tensor, probe: Probe, seed: int, device: torch.device | str) -> Batches:
    """Each pass a new permutation of features (N, D), held on the device."""
    order = Order(len(features), probe.batch_size, seed, drop_last=probe.drop_last)
    features, labels = features.to(device), labels.to(device)

    def one_pass(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        batches = order.batches(number)[:]
        whole = torch.cat(batches).to(device)  # once: a copy a step makes the host wait for the step before
        for rows in whole.split([len(batch) for batch in batches]):
            yield features[rows].float(), labels[rows]

    return one_pass


def train_probe(
    probe: Probe,
    head: nn.Module,
    batches: Batches,
    passes_length: int,
    test: Callable[[], Accuracy] | None,
    device: torch.device | str = "cpu",
    prepare: Callable[[Tensor], Tensor] = lambda x: x,
    progress: bool = False,
    kept: Kept | None = None,
    shares: Order | None = None,
    ranks: Ranks = ONE,
) -> ProbeResult:
    """Train `head`, features -> class scores, in place and in float32.

    passes_length: batches in one pass of `batches`; test: what `head`, in eval mode, reaches, asked for after every
    epoch; kept: where its state is kept and taken up; shares: the order whose batches the `ranks` have shared out among
    themselves; without it each of them trains on all, alike. Raises UserError when the loss is no longer finite.
    """
    ranks = ranks if shares else ONE
    head = convert_batch_norm(head, "sync") if ranks.world > 1 else head
    optimizer = _optimizer(probe, head)
    steps = probe.steps_per_epoch or passes_length
    rate = schedule(
        probe.schedule,
        probe.peak_lr(),
        total_steps=steps * probe.epochs,
        steps_per_epoch=steps,
        **probe.schedule_options,
    )
    history, losses = take_up(kept, shares is not None, head=head, optimizer=optimizer)
    begun, model = len(losses), together(head, ranks)
    endless = _endless(batches, *divmod(begun * steps, passes_length))
    for epoch in progress_bar(range(begun, probe.epochs), probe.epochs - begun, "probe", "epoch", progress):
        total = torch.zeros((), device=device)
        for step in range(epoch * steps, (epoch + 1) * steps):
            ranks.at(f"in step {step + 1} of the probe")
            features, labels = next(endless)
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
            scores = model(prepare(features))
            if shares is None:
                loss = F.cross_entropy(scores, labels)
            else:
                loss = cross_entropy_of(scores, labels, shares.share(step % passes_length)[1], ranks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        losses.append(mean_of(total, ranks) / steps)
        if not losses[-1] < float("inf"):
            raise UserError(
                f"the probe diverged in epoch {epoch + 1} (loss {losses[-1]}): the features are not finite, "
                f"or its learning rate {probe.peak_lr():g} is too high for them; give a lower --lr."
            )
        if test:
            with torch.no_grad(), mode(head, False):
                history.append(test())
        if kept:
            kept.write(state_of(history, losses, head=head, optimizer=optimizer))
    if kept:
        kept.remove()
    return ProbeResult(tuple(history), tuple(losses))


def state_of(history: list[Accuracy], losses: list[float], **parts: nn.Module | torch.optim.Optimizer) -> dict:
    """What a measurement goes on from after an epoch; `take_up` reads it."""
    told = {"history": [list(one) for one in history], "losses": losses}
    return told | {name: part.state_dict() for name, part in parts.items()}


def take_up(
    kept: Kept | None, alike: bool, **parts: nn.Module | torch.optim.Optimizer
) -> tuple[list[Accuracy], list[float]]:
    """(accuracies, losses) of the epochs that are done, and each part as it was after them. alike: UserError where not
    all processes find the same."""
    state = kept.read() if kept else None
    if kept and alike:
        done = f"{len(state['losses'])} epochs" if state else "nothing"
        kept.ranks.same(
            "what is done of this measurement", done, "set SACCADE_CACHE to a folder that all machines share"
        )
    if state is None:
        return [], []
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return [Accuracy(*one) for one in state["history"]], list(state["losses"])


def _endless(batches: Batches, number: int, skipped: int) -> Iterator[tuple[Tensor, Tensor]]:
    """From batch `skipped` of pass `number` on."""
    yield from islice(batches(number), skipped, None)
    for later in count(number + 1):
        yield from batches(later)


def linear_head(probe: Probe, shape: tuple[int, int], seed: int) -> nn.Linear:
    """Of (features, classes), as the probe starts it. Same seed, same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return linear_classifier(*shape) if probe.init == "normal" else nn.Linear(*shape)


def _optimizer(probe: Probe, head: nn.Module) -> torch.optim.Optimizer:
    if probe.optimizer == "adam":
        return torch.optim.Adam(head.parameters(), probe.peak_lr(), betas=probe.betas, weight_decay=probe.weight_decay)
    if probe.optimizer in ("sgd", "nesterov"):
        return torch.optim.SGD(
            head.parameters(),
            probe.peak_lr(),
            momentum=probe.momentum,
            weight_decay=probe.weight_decay,
            nesterov=probe.optimizer == "nesterov",
        )
    raise UserError(f"the probe's optimizer {probe.optimizer!r} is unknown; use one of {', '.join(OPTIMIZERS)}.")
