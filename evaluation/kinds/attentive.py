"""An attentive probe: one learned query looks over the patches of the frozen backbone, then a linear classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.evaluation.accuracy import Accuracy, accuracy
from saccade.evaluation.kinds.linear import Linear
from saccade.evaluation.linear import ProbeResult
from saccade.models.feature_map import FeatureMap
from saccade.models.heads import linear_classifier

if TYPE_CHECKING:
    from saccade.evaluation.evaluate import Evaluation

HEAD_WIDTH = 64  # features of one attention head: AIM's 12 heads of a ViT-B


class AttentiveClassifier(nn.Module):
    """Patches (N, h, w, D), or (N, h w D), -> class scores (N, C).

    s_t = softmax_t(q . K x_t / sqrt(width of a head)), pooled = sum_t s_t V x_t, in each head; x normalised by a batch
    norm without parameters; no output projection, MLP or skip. Source: CAE (arXiv 2202.03026); AIM (arXiv 2401.08541).
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.heads = next(n for n in range(max(1, features // HEAD_WIDTH), 0, -1) if features % n == 0)
        self.norm = nn.BatchNorm1d(features, eps=1e-6, affine=False)
        self.query = nn.Parameter(0.02 * torch.randn(features))
        self.key = nn.Linear(features, features, bias=False)
        self.value = nn.Linear(features, features, bias=False)
        self.classifier = linear_classifier(features, classes)

    def forward(self, patches: Tensor) -> Tensor:
        return self.classifier(self.pooled(patches))

    def pooled(self, patches: Tensor) -> Tensor:
        """(N, D)"""
        patches = patches.flatten(1).unflatten(1, (-1, self.features))
        patches = self.norm(patches.flatten(0, 1)).view_as(patches)
        query = self.query.expand(len(patches), 1, -1)
        query, key, value = (
            x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (query, self.key(patches), self.value(patches))
        )
        return F.scaled_dot_product_attention(query, key, value).flatten(1)


@dataclass(frozen=True)
class Attentive(Linear):
    """The numbers are a linear probe's, on new crops every epoch: patches are made anew, never kept."""

    title: ClassVar = "attentive"

    def takes(self) -> tuple[str, ...]:
        return ("epochs", "lr")

    def train(self, on: Evaluation) -> ProbeResult:
        s, patches = on.settings, FeatureMap(on.backbone)
        width = patches.shape(on.subject.image_size, len(on.subject.mean))[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.seed)
            head = AttentiveClassifier(width, on.classes).to(s.device)
        whole, labels = nn.Sequential(patches, head), on.test_features.labels

        def test() -> Accuracy:
            return accuracy(on.extract(on.test, backbone=whole).features, labels)

        return self.on_crops(on, patches, head, test)
