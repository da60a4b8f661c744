"""What a method is: the views it needs, who sees them, its heads, its loss, and its published recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.losses.ablation import Ablation, split
from saccade.losses.recipe import IMAGE_SIZE, SMALL, Options, OptionsT, TrainingRecipe, small_recipe
from saccade.models.learner import Outputs
from saccade.models.queue import KeyQueue
from saccade.models.schedules import Schedule, schedule
from saccade.pipelines.draw import ViewParams


class Objective(nn.Module, Generic[OptionsT]):
    """Base of every method: `class Mine(Objective[MyOptions])` types `self.options`.

    A subclass names its views and heads and computes the loss; queues and centres are buffers.

    student_views, teacher_views: names of the recipe's views; joint_forward: the student's views go through the network
    as one batch (SimCLR, S-TEC), else each on its own with its own BatchNorm statistics; shuffle_teacher: the teacher's
    batches are shuffled over all processes (shuffle-BN); evaluate_teacher: the paper evaluates the momentum encoder;
    per_image: no image's loss depends on others of its batch, so that a step in parts (--accumulate) has the same one;
    frozen: the student is in eval mode and learns nothing, only the objective's own parameters do.
    """

    student_views: tuple[str, ...] = ()
    teacher_views: tuple[str, ...] = ()
    joint_forward = False
    per_image = False
    shuffle_teacher = False
    evaluate_teacher = False
    frozen = False

    def __init__(
        self,
        recipe: TrainingRecipe[OptionsT],
        features: int,
        classes: int | None,
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.options: OptionsT = recipe.options
        self.features, self.classes = features, classes
        self._steps_per_epoch, self._total_steps = steps_per_epoch, total_steps
        self.student_views, self.teacher_views = self.wiring(recipe.views.names)

    def wiring(self, views: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The views of student and teacher among the recipe's: those the class names. Override for a free number."""
        needed = dict.fromkeys((*self.student_views, *self.teacher_views))
        if missing := [name for name in needed if name not in views]:
            raise UserError(
                f"{self.recipe.method} needs the views {', '.join(needed)}; the recipe has "
                f"{', '.join(views)} and lacks {', '.join(missing)}."
            )
        return self.student_views, self.teacher_views

    def projector(self) -> nn.Module:
        """A new projector, (N, features) -> (N, D)."""
        raise NotImplementedError

    def predictor(self) -> nn.Module | None:
        """A new predictor on top of the projector, for the student only; None without one."""
        return None

    def momentum(self, step: int, /) -> float:
        """The teacher's momentum at this optimizer step: teacher <- m teacher + (1 - m) student."""
        raise NotImplementedError

    def begin_step(self, step: int) -> None:
        """Set what changes with the optimizer step (0-based): loss weights, temperatures."""

    def end_step(self) -> None:
        """After the optimizer step: fill queues, move centres."""

    def forward(self, outputs: Outputs, params: dict[str, ViewParams], label: Tensor | None) -> dict[str, Tensor]:
        """The loss and its parts, scalars; "loss" is the one that is minimised."""
        raise NotImplementedError

    def _schedule(self, kind: str, value: float, **options) -> Schedule:
        return schedule(kind, value, total_steps=self._total_steps, steps_per_epoch=self._steps_per_epoch, **options)


class QueueOptions(Options, Protocol):
    """What a method with a queue lets one set."""

    @property
    def queue_size(self) -> int: ...

    @property
    def projector_dim(self) -> int: ...


QueueOptionsT = TypeVar("QueueOptionsT", bound=QueueOptions, covariant=True)


class QueueObjective(Objective[QueueOptionsT]):
    """An objective that compares with past keys of the teacher: options.queue_size of options.projector_dim numbers.

    `forward` calls `remember`; the keys of all micro-batches enter the queue after backward, as one batch, in order.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        size, batch = self.options.queue_size, self.recipe.batch_size
        if size % batch:
            fitting = max(b for b in range(1, batch + 1) if size % b == 0)
            raise UserError(
                f"a queue of {size} keys does not hold whole batches of {batch}; give --batch-size "
                f"{fitting} or --set options.queue_size={max(1, round(size / batch)) * batch}."
            )
        self.queue = KeyQueue(self.options.projector_dim, size)
        self._fresh: list[Tensor] = []

    def begin_step(self, step: int) -> None:
        self._fresh = []

    def remember(self, keys: Tensor) -> None:
        """Queue these (n, D) unit keys of a forward pass when the step is over."""
        self._fresh.append(keys.detach())

    def end_step(self) -> None:
        self.queue.enqueue(torch.cat(self._fresh))
        self._fresh = []


@dataclass(frozen=True)
class Method:
    """A row of the table of methods. `recipe(data, image_size)` gives the published recipe, or a marked proposal."""

    name: str
    summary: str
    objective: type[Objective[Any]]
    recipe: Callable[[str, int | None], TrainingRecipe[Any]]
    published: tuple[str, ...]  # recipes of the authors: data sets, and variants of them such as imagenet-5crop
    ablations: tuple[Ablation, ...] = ()  # of the paper; any recipe's name goes before theirs: cifar10-no-sinkhorn

    def __post_init__(self) -> None:
        base = self.recipe

        def recipe(name: str, image_size: int | None = None) -> TrainingRecipe[Any]:
            name, ablation = split(name, self.ablations)
            found = base("textures" if name == SMALL else name, None if name == SMALL else image_size)
            if name == SMALL:
                found = base("custom", image_size) if "data" in found.proposals else small_recipe(found, image_size)
            return ablation.of(found) if ablation else found

        object.__setattr__(self, "recipe", recipe)

    def knows(self, name: str) -> bool:
        """Whether `recipe` has one of this very name: a data set of the project, one of `published`, or an ablation."""
        return split(name, self.ablations)[0] in (*IMAGE_SIZE, *self.published)
