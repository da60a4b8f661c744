"""The network that is exported: a backbone, with its classifier where it has one, and how images are shown to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.evaluation.classifier import Classifier, read_classifier
from saccade.evaluation.subject import Subject
from saccade.models.backbone import RESIZE, BackboneSpec, creation_options, shown_share

Outputs = dict[str, Tensor]  # features (n, D) and, with a classifier, logits (n, C)


class Whole(nn.Module):
    """Pixels of 0 to 1 in, normalised inside; features out and, with a classifier, logits."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, head: nn.Module | None, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.backbone((images - self.mean) / self.std).flatten(1)
        return (features,) if self.head is None else (features, self.head(features))


@dataclass(frozen=True)
class Exported:
    """What every format writes in its own way."""

    subject: Subject
    spec: BackboneSpec
    classifier: Classifier | None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the outputs, in their order."""
        return ("features", "logits") if self.classifier else ("features",)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.classifier.classes if self.classifier else ()

    @property
    def options(self) -> dict[str, Any]:
        """timm.create_model's, beside the name."""
        return creation_options(self.spec, self.subject.image_size)

    def whole(self) -> Whole:
        head = self.classifier.layer() if self.classifier else None
        return Whole(self.subject.backbone, head, self.subject.mean, self.subject.std).eval()

    def pixels(self, count: int) -> Tensor:
        """(count, C, S, S) in 0 to 1, the same in every run: smooth noise, to compare outputs on."""
        size, noise = self.subject.image_size, torch.Generator().manual_seed(0)
        coarse = torch.rand(count, len(self.subject.mean), 8, 8, generator=noise)
        smooth = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
        return (0.8 * smooth + 0.2 * torch.rand(smooth.shape, generator=noise)).clamp(0, 1)

    def outputs(self, pixels: Tensor) -> Outputs:
        """Ours, which a format's must equal."""
        with torch.no_grad():
            return dict(zip(self.names, self.whole()(pixels), strict=True))

    def normalised(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.subject.mean, self.subject.std))
        return (pixels - mean) / std

    def preprocessing(self) -> dict[str, Any]:
        """How an image is shown to the network, as plain values."""
        subject = self.subject
        return {
            "resize": RESIZE,
            "image_size": subject.image_size,
            "crop_fraction": shown_share(subject.image_size),
            "interpolation": "bilinear",
            "channels": "RGB" if len(subject.mean) == 3 else len(subject.mean),
            "pixels": "0 to 1, then minus mean, divided by std",
            "mean": list(subject.mean),
            "std": list(subject.std),
        }


def exported(subject: Subject) -> Exported:
    """A subject with its classifier, if it was fine-tuned."""
    classifier = read_classifier(subject.folder) if subject.folder else None
    if subject.spec is None:
        raise UserError(f"{subject.name}: it is not known how timm makes this backbone; export a run folder.")
    return Exported(subject, subject.spec, classifier)
