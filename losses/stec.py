"""S-TEC: SimCLR plus an inverse model that tells from two views how one crop lies to the other (the efference copy).

Scherr, Guo, Moraitis, NeurIPS 2022 (arXiv 2210.09224); code NeuromorphicComputing/S-TEC. The targets are read from
the drawn `ViewParams`: nothing is recorded on the side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saccade.base.errors import UserError
from saccade.losses.byol import BYOL, BYOLOptions
from saccade.losses.objective import Objective
from saccade.losses.simclr import SimCLR, SimCLROptions
from saccade.losses.stec_targets import BINS, manipulation_loss, relative_transform, view_to_source
from saccade.models.heads import mlp
from saccade.models.learner import Outputs
from saccade.pipelines.draw import ViewParams
from saccade.pipelines.views import Views


@dataclass(frozen=True)
class InverseModelOptions:
    """Hyper-parameters of the inverse model."""

    manipulation_weight: float = 1.0
    bins: int = BINS  # classes of every entry
    manipulation_hidden: tuple[int, ...] = (512,)  # one width for each hidden layer; () is a linear head
    true_translation: bool = False  # the exact relative translation in place of the original's product
    predicts: tuple[str, ...] = ("crop", "flip")  # the published choice; more as OPERATION.COLUMN, e.g. jitter.hue


@dataclass(frozen=True)
class STECOptions(InverseModelOptions, SimCLROptions):
    """SimCLR's, and the inverse model's."""


@dataclass(frozen=True)
class STECBYOLOptions(InverseModelOptions, BYOLOptions):
    """BYOL's, and the inverse model's."""


class InverseModel(Objective[Any]):
    """Mixed into a two-view objective: + lambda_m CE(inverse model(h_1, h_2), bins of the relative transform), with
    h the student's backbone features.
    """

    options: InverseModelOptions  # beside those of the objective it is mixed into

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if any(width < 1 for width in self.options.manipulation_hidden):
            raise UserError(
                f"manipulation_hidden={self.options.manipulation_hidden}: a hidden layer has 1 unit or more; () is a "
                "linear head."
            )
        self.changes = _changes(self.recipe.views, self.student_views, self.options.predicts)
        solarised = any("solarise" in self.recipe.views[name].keyed for name in self.student_views)
        self.per_image = self.per_image and not solarised  # then pairs that count are counted, over the batch
        entries = 6 + len(self.changes)
        if self.options.bins < 2:
            raise UserError(f"bins is {self.options.bins}; the inverse model tells 2 or more classes apart.")
        self.manipulation = mlp(2 * self.features, self.options.manipulation_hidden, self.options.bins * entries)
        if self.frozen:
            self.manipulation.requires_grad_(False)

    def forward(self, outputs: Outputs, params: dict[str, ViewParams], label: Tensor | None) -> dict[str, Tensor]:
        parts = super().forward(outputs, params, label)
        first, second = self.student_views
        logits = self.manipulation(
            torch.cat([outputs.student[first].features, outputs.student[second].features], dim=1)
        )
        a, b, predicts = params[first], params[second], self.options.predicts
        values, valid = efference_copy(a, b, self.options.true_translation, "crop" in predicts, "flip" in predicts)
        parts["manipulation"], metrics = manipulation_loss(logits, values, valid, _changed(a, b, self.changes))
        parts["manipulation_top1"] = metrics["manipulation_accuracy"]
        return parts | {"loss": parts["loss"] + self.options.manipulation_weight * parts["manipulation"]}


class STEC(InverseModel, SimCLR):
    """L = 2 NT-Xent + lambda_m CE(inverse model) + CE(classifier(stopgrad h))."""

    options: STECOptions


class STECBYOL(InverseModel, BYOL):
    """L = BYOL + lambda_m CE(inverse model). Our extension: the authors released S-TEC on SimCLR alone."""

    options: STECBYOLOptions


def efference_copy(
    a: ViewParams, b: ViewParams, true_translation: bool = False, crop: bool = True, flip: bool = True
) -> tuple[Tensor, Tensor]:
    """The inverse model's targets: (B, 2, 3) float32 relative transforms of view a -> view b, and (B,) bool, pairs that
    count (neither view solarised). crop, flip: whether these are in the transforms, or as if the view had none."""
    from_a, from_b = (_placed(p, crop, flip) for p in (a, b))
    return relative_transform(from_a, from_b, true_translation), ~(a.chosen("solarise") | b.chosen("solarise"))


def _placed(p: ViewParams, crop: bool, flip: bool) -> Tensor:
    source_height, source_width = p.source.unbind(1)
    nothing = torch.zeros_like(source_width)
    top, left, height, width = p.box.unbind(1) if crop else (nothing, nothing, source_height, source_width)
    mirrored = p.flip if flip else torch.zeros_like(p.flip)
    return view_to_source(top, left, height, width, mirrored, source_height, source_width)


def _changes(views: Views, names: tuple[str, ...], predicts: tuple[str, ...]) -> dict[tuple[str, str], float]:
    """(operation, column) -> how far apart its two values can be, of what is predicted beside crop and flip."""
    known: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for name in names:
        for key, operation in views[name].keyed.items():
            for column, lowest_and_highest in operation.ranges().items():
                known.setdefault((key, column), []).append(lowest_and_highest)
    both = {f"{key}.{column}": (key, column) for (key, column), found in known.items() if len(found) == len(names)}
    if not predicts:
        raise UserError("options.predicts is empty; the inverse model predicts crop, flip or something else.")
    chosen = {}
    for what in dict.fromkeys(predicts):
        if what in ("crop", "flip"):
            continue
        if what not in both:
            raise UserError(f"options.predicts has {what!r}; use some of {', '.join(('crop', 'flip', *both))}.")
        lows, highs = zip(*known[both[what]], strict=True)
        chosen[both[what]] = max(max(highs) - min(lows), 1e-6)
    return chosen


def _changed(a: ViewParams, b: ViewParams, changes: dict[tuple[str, str], float]) -> Tensor | None:
    """(B, k) in [-1, 1]: what view b was given more of than view a; None where nothing is asked for."""
    if not changes:
        return None
    return torch.stack([(b.drawn[k][c] - a.drawn[k][c]) / span for (k, c), span in changes.items()], dim=1)
