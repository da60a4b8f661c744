"""Learning rate, momentum, loss weight as functions of the optimizer step: `schedule("warmup_cosine", 4.0, ...)(step)`.

Every schedule is a frozen dataclass called with the 0-based optimizer step. Lengths that papers state in epochs are
given in epochs and counted in steps here, so accumulation or skipped forwards cannot make two schedules disagree.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import Any, get_type_hints

from saccade.base.errors import UserError
from saccade.base.text import did_you_mean

Schedule = Callable[[int], float]


def _half_cosine(progress: float) -> float:
    """1 at progress 0, 0 at progress 1 and after."""
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


@dataclass(frozen=True)
class Constant:
    """`value` at every step (ReSSL, MoCo v2 and CACR-B momentum)."""

    value: float
    total_steps: int
    steps_per_epoch: int

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class WarmupCosine:
    """value * t/w for t < w (0 at step 0), then value * (1 + cos(pi (t-w)/(T-w))) / 2 towards 0.

    S-TEC (lightning-bolts), ReSSL, RSA on ImageNet and MoCo v3, whose fractional epochs are t / steps_per_epoch.
    A warm-up longer than the run is cut off by its end.
    """

    value: float
    total_steps: int
    steps_per_epoch: int
    warmup_epochs: float = 0.0

    def __call__(self, step: int) -> float:
        warmup = round(self.warmup_epochs * self.steps_per_epoch)
        if step < warmup:
            return self.value * step / warmup
        return self.value * _half_cosine((step - warmup) / max(self.total_steps - warmup, 1))


@dataclass(frozen=True)
class LinspaceCosine:
    """ReSA: warm-up evenly from 0 to value, both ends included, then cosine to final * value, never quite reached."""

    value: float
    total_steps: int
    steps_per_epoch: int
    warmup_epochs: float = 2.0
    final: float = 0.1

    def __call__(self, step: int) -> float:
        warmup = round(self.warmup_epochs * self.steps_per_epoch)
        if step < warmup:
            return self.value * step / max(warmup - 1, 1)
        floor = self.final * self.value
        return floor + (self.value - floor) * _half_cosine((step - warmup) / max(self.total_steps - warmup, 1))


@dataclass(frozen=True)
class EpochCosine:
    """value * (1 + cos(pi e/E)) / 2 with e the whole epoch: constant within an epoch (RSA on small sets, CACR-B)."""

    value: float
    total_steps: int
    steps_per_epoch: int

    def __call__(self, step: int) -> float:
        return self.value * _half_cosine((step // self.steps_per_epoch) * self.steps_per_epoch / self.total_steps)


@dataclass(frozen=True)
class EpochExponential:
    """value * final^(e/E) with e the whole epoch: ReSA's CIFAR probe, 1e-2 towards 1e-6 (final = 1e-4, reached after
    the last).
    """

    value: float
    total_steps: int
    steps_per_epoch: int
    final: float = 1e-4

    def __call__(self, step: int) -> float:
        return self.value * self.final ** ((step // self.steps_per_epoch) * self.steps_per_epoch / self.total_steps)


@dataclass(frozen=True)
class StepDecay:
    """value * gamma^(number of `milestones`, in epochs, that are reached); CACR-A: 155, 170, 185 of 200."""

    value: float
    total_steps: int
    steps_per_epoch: int
    milestones: tuple[float, ...] = (155, 170, 185)
    gamma: float = 0.1

    def __call__(self, step: int) -> float:
        return self.value * self.gamma ** sum(step >= epoch * self.steps_per_epoch for epoch in self.milestones)


@dataclass(frozen=True)
class Cosine:
    """final + (value - final) * (1 + cos(pi (t + offset)/T)) / 2.

    Momentum of the teacher with final=1: ReSA and MoCo v3 offset 0 (t/T is MoCo v3's fractional epoch over epochs), RSA
    offset 1, as its counter is incremented before use. RSA's beta: final=0, offset 1, so the last step has beta 0.
    """

    value: float
    total_steps: int
    steps_per_epoch: int
    final: float = 0.0
    offset: int = 0

    def __call__(self, step: int) -> float:
        return self.final + (self.value - self.final) * _half_cosine((step + self.offset) / self.total_steps)


KINDS: Mapping[str, type] = MappingProxyType(
    {
        "constant": Constant,
        "warmup_cosine": WarmupCosine,
        "linspace_cosine": LinspaceCosine,
        "epoch_cosine": EpochCosine,
        "epoch_exponential": EpochExponential,
        "step_decay": StepDecay,
        "cosine": Cosine,
    }
)


def schedule(kind: str, value: float, *, total_steps: int, steps_per_epoch: int, **options) -> Schedule:
    """The schedule named `kind` that starts from, or peaks at, `value`, with that kind's `options`; see the classes.

    Raises UserError for an unknown kind or option, or a run without steps.

    Examples:
        >>> rate = schedule("warmup_cosine", 4.0, total_steps=100, steps_per_epoch=10, warmup_epochs=1)
        >>> [round(rate(step), 2) for step in (0, 5, 10, 55, 100)]
        [0.0, 2.0, 4.0, 2.0, 0.0]
    """
    allowed = list(schedule_options(kind))
    if total_steps < 1 or steps_per_epoch < 1:
        raise UserError(f"a schedule needs at least one step, not {total_steps} in all and {steps_per_epoch} per epoch")
    if unknown := sorted(set(options) - set(allowed)):
        raise UserError(f"schedule {kind!r} has no option {unknown[0]!r}; it takes {', '.join(allowed) or 'none'}")
    return KINDS[kind](value, total_steps, steps_per_epoch, **options)


def schedule_options(kind: str) -> dict[str, tuple[Any, Any]]:
    """What a kind of schedule takes: option -> its type and its usual value, None where it has none.

    Examples:
        >>> schedule_options("linspace_cosine")
        {'warmup_epochs': (<class 'float'>, 2.0), 'final': (<class 'float'>, 0.1)}
    """
    if kind not in KINDS:
        raise UserError(f"unknown schedule {kind!r}; choose one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    hints = get_type_hints(KINDS[kind])
    return {f.name: (hints[f.name], None if f.default is MISSING else f.default) for f in fields(KINDS[kind])[3:]}
