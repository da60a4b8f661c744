"""The network that is trained: student, its momentum teacher, and the objective that compares their outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from saccade.models.gather import world_size
from saccade.models.momentum import MomentumTeacher
from saccade.models.norm import batch_permutation, sees_part_of_the_batch, share_running_statistics, shuffle, unshuffle


@dataclass
class Branch:
    """What one network says of one view, each (N, D): backbone features, and the head outputs there are."""

    features: Tensor
    projection: Tensor
    prediction: Tensor | None = None  # with a predictor only

    @property
    def embedding(self) -> Tensor:
        """What the last head says: the prediction where there is a predictor, else the projection."""
        return self.projection if self.prediction is None else self.prediction

    def split(self, sizes: list[int]) -> list[Branch]:
        parts = [
            t.split(sizes) if t is not None else [None] * len(sizes)
            for t in (self.features, self.projection, self.prediction)
        ]
        return [Branch(*part) for part in zip(*parts, strict=True)]


@dataclass
class Labelled:
    """The student's backbone features (N, D) of labelled images beside the data, no gradient, and their classes."""

    features: Tensor
    label: Tensor


@dataclass
class Outputs:
    """What an objective is given: the outputs of each network by view name; `labelled` if the run has such images."""

    student: dict[str, Branch]
    teacher: dict[str, Branch] = field(default_factory=dict)
    labelled: Labelled | None = None


class Comparison(Protocol):
    """What a learner asks of its objective; losses.objective.Objective says what each is."""

    features: int
    student_views: tuple[str, ...]
    teacher_views: tuple[str, ...]
    joint_forward: bool
    per_image: bool
    shuffle_teacher: bool
    evaluate_teacher: bool
    frozen: bool

    def projector(self) -> nn.Module: ...
    def predictor(self) -> nn.Module | None: ...
    def momentum(self, step: int, /) -> float: ...
    def begin_step(self, step: int) -> None: ...
    def end_step(self) -> None: ...
    def __call__(self, outputs: Outputs, params: dict[str, Any], label: Tensor | None) -> dict[str, Tensor]: ...


class Student(nn.Module):
    """backbone -> projector -> predictor (optional)."""

    def __init__(self, backbone: nn.Module, projector: nn.Module, predictor: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone, self.projector, self.predictor = backbone, projector, predictor

    def forward(self, images: Tensor) -> Branch:
        features = self.backbone(images)
        projection = self.projector(features)
        return Branch(features, projection, self.predictor(projection) if self.predictor else None)


class Learner(nn.Module):
    """One call is one forward of everything: `learner(views, params, label)` -> {"loss": ..., parts}.

    `objective` (losses/objective.py) says which views the student and the teacher see and whether the student's views
    share one forward and so their BatchNorm statistics. `begin_step` and `end_step` bracket an optimizer step: the
    teacher moves in the first, queues are filled in the second, so gradient accumulation changes neither.
    """

    def __init__(self, backbone: nn.Module, objective: Comparison, seed: int = 0) -> None:
        super().__init__()
        self._seed, self._step = seed, 0
        self.features: Tensor | None = None  # (N, D) of the last forward's first view, for whoever watches them
        self.student = Student(backbone, objective.projector(), objective.predictor())
        if objective.frozen:
            self.student.requires_grad_(False)
        self.objective = objective
        self.teacher = MomentumTeacher(Student(backbone, self.student.projector)) if objective.teacher_views else None

    def train(self, mode: bool = True) -> Learner:
        """A frozen student stays in eval mode."""
        super().train(mode)
        if self.objective.frozen:
            self.student.eval()
        return self

    @property
    def backbone(self) -> nn.Module:
        """The backbone the method evaluates: the teacher's where its paper does, else the student's."""
        if not self.objective.evaluate_teacher:
            return self.student.backbone
        assert self.teacher is not None, "evaluate_teacher needs teacher_views"
        return self.teacher.network.backbone

    def begin_step(self, step: int, again: bool = False) -> None:
        """Set the objective's schedules for this optimizer step (0-based) and move the teacher, which `again` has been
        moved for it already."""
        self._step = step
        self.objective.begin_step(step)
        if self.teacher is not None and not again:
            self.teacher.update(Student(self.student.backbone, self.student.projector), self.objective.momentum(step))

    def end_step(self) -> None:
        self.objective.end_step()
        share_running_statistics(self)

    def forward(
        self,
        views: dict[str, Tensor],
        params: dict[str, Any],
        label: Tensor | None = None,
        companion: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """views, params: by name; label: (N,) classes; companion: images and classes for `Outputs.labelled`."""
        names = self.objective.student_views
        student = (
            self._together(views, names) if self.objective.joint_forward else {n: self.student(views[n]) for n in names}
        )
        self.features = student[names[0]].features.detach()
        teacher = {}
        if self.teacher is not None:
            with torch.no_grad():
                teacher = {name: self._teach(views[name], k) for k, name in enumerate(self.objective.teacher_views)}
        return self.objective(Outputs(student, teacher, self._labelled(companion)), params, label)

    def _together(self, views: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Branch]:
        """Views of one size go through the student as one batch."""
        of_size: dict[int, list[str]] = {}
        for name in names:
            of_size.setdefault(views[name].shape[-1], []).append(name)
        student = {}
        for same in of_size.values():
            branch = self.student(torch.cat([views[name] for name in same]) if len(same) > 1 else views[same[0]])
            student.update(zip(same, branch.split([len(views[name]) for name in same]), strict=True))
        return {name: student[name] for name in names}

    @torch.no_grad()
    def _labelled(self, companion: tuple[Tensor, Tensor] | None) -> Labelled | None:
        """A second backbone pass, in train mode: these images too move the running statistics (S-TEC on STL-10)."""
        return companion and Labelled(self.student.backbone(companion[0]), companion[1])

    def _teach(self, images: Tensor, view: int = 0) -> Branch:
        assert self.teacher is not None
        if not self._shuffles:
            return self.teacher(images)
        order = batch_permutation(len(images) * world_size(), self._seed, self._step, view, images.device)
        taught = self.teacher(shuffle(images, order))
        return Branch(unshuffle(taught.features, order), unshuffle(taught.projection, order))

    @cached_property
    def _shuffles(self) -> bool:
        """Known at the first step only: by then batch norms are converted and the processes have found each other."""
        return self.objective.shuffle_teacher and self.teacher is not None and sees_part_of_the_batch(self.teacher)

    def compile_networks(self) -> None:
        """Compile student and teacher in place (parameter names stay); the first step of each shape is slow."""
        self.student.compile(dynamic=False)  # as many compilations as view sizes, each as fast as it gets
        if self.teacher is not None:
            self.teacher.compile(dynamic=False)
