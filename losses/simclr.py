"""SimCLR: two views of an image attract, all other images repel. The baseline of S-TEC, and its first half.

Chen et al., ICML 2020 (arXiv 2002.05709), in the form of NeuromorphicComputing/S-TEC:
BatchNorm after the projector, an online classifier on detached features, LARS, no normalisation of the images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.losses.functional import full_precision, normalise
from saccade.losses.ntxent import nt_xent
from saccade.losses.objective import Objective
from saccade.models.heads import linear_classifier, mlp
from saccade.models.learner import Outputs
from saccade.pipelines.draw import ViewParams


@dataclass(frozen=True)
class SimCLROptions:
    """Hyper-parameters of SimCLR as S-TEC's code has them."""

    temperature: float = 0.5
    contrast_weight: float = 2.0  # --discrimination_lambda
    classifier_weight: float = 1.0  # --supervised_lambda; 0 or no labels: no online classifier
    projector_hidden: int = 512
    projector_dim: int = 64
    projector_last_norm: bool = True  # --projection_final_batch_norm
    stop_gradient: int = 1  # --stop_gradient; 0: labels train the backbone too, 2: they train the classifier alone

    def __post_init__(self) -> None:
        if self.stop_gradient not in (0, 1, 2):
            raise UserError(f"stop_gradient is {self.stop_gradient}; give 0, 1 or 2.")


class SimCLR(Objective[SimCLROptions]):
    """L = 2 NT-Xent(z_1, z_2) + CE(classifier(stopgrad h)); one forward of both views shares BatchNorm statistics.

    The classifier learns from both views, or, where labelled images come beside the data (STL-10), from those alone.
    """

    student_views = ("view_1", "view_2")
    joint_forward = True

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.classifier = None
        if self.classes is not None and self.options.classifier_weight > 0:
            self.classifier = linear_classifier(self.features, self.classes)
        self.frozen = self.options.stop_gradient == 2
        if self.frozen and self.classifier is None:
            raise UserError("stop_gradient=2 trains the classifier alone, which needs labels and a classifier_weight.")

    def projector(self) -> nn.Module:
        o = self.options
        norm = "gamma" if o.projector_last_norm else "none"
        return mlp(self.features, [o.projector_hidden], o.projector_dim, out_bias=False, out_norm=norm)

    def forward(self, outputs: Outputs, params: dict[str, ViewParams], label: Tensor | None) -> dict[str, Tensor]:
        first, second = (outputs.student[name] for name in self.student_views)
        contrast, metrics = nt_xent(normalise(first.projection), normalise(second.projection), self.options.temperature)
        parts = {"contrast": contrast, "contrast_top1": metrics["accuracy"]}
        loss = self.options.contrast_weight * contrast
        features, labels = torch.cat([first.features, second.features]), label
        if outputs.labelled is not None:
            features, labels = outputs.labelled.features, outputs.labelled.label
        elif label is not None:
            labels = torch.cat([label, label])
        if self.classifier is not None and labels is not None:
            logits = self.classifier(features.detach() if self.options.stop_gradient else features)
            known = (labels >= 0).sum().clamp(min=1)  # -1: an image without a label
            summed = full_precision(F.cross_entropy)(logits, labels, ignore_index=-1, reduction="sum")
            parts["classifier"] = summed / known
            parts["classifier_top1"] = (logits.argmax(1) == labels).float().sum() / known
            loss = loss + self.options.classifier_weight * parts["classifier"]
        return {"loss": loss, **parts}
