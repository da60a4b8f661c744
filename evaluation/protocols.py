"""The evaluation protocols by name: what each paper, or common practice, fixes. Data only; `evaluate` runs them.

Sources of a value: [code] the authors' repository, [proposal] ours where none was found.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from saccade.base.errors import UserError
from saccade.evaluation.linear import Probe
from saccade.pipelines.views import Crop

LARGE_IMAGE = 160  # pixels; from here on tests show the central 224/256, as the ImageNet protocols do


@dataclass(frozen=True)
class KNN:
    """k nearest neighbours; the first of `ks` is reported as the protocol's number."""

    ks: tuple[int, ...] = (20,)
    temperature: float | None = 0.07  # None: one vote each
    metric: str = "cosine"
    interpolation: str = "bilinear"  # of the resize before the centre crop


@dataclass(frozen=True)
class Protocol:
    """What is measured, on which network, with which test crop. `top1` is the probe's if there is one, else the kNN's.

    encoder: "method" (the one the run exported), "student" or "teacher"; fractions: data set -> share of the short side
    the test crop shows, where it is not 1 (small images) or 224/256.
    """

    name: str
    summary: str
    source: str
    encoder: str = "method"
    knn: KNN | None = None
    probe: Probe | None = None
    online: bool = False  # the classifier that was trained beside the backbone, from the checkpoint
    fractions: Mapping[str, float] = field(default_factory=dict)
    large: str | None = None  # the protocol that takes its place for images of 160 pixels or more
    notes: tuple[str, ...] = ()

    @property
    def knn_alone(self) -> bool:
        """Whether the same images may be the neighbours and, one at a time, the test."""
        return self.knn is not None and self.probe is None and not self.online

    def fraction(self, data: str, image_size: int) -> float:
        """Share of an image's short side that the test crop shows."""
        return self.fractions.get(data, 224 / 256 if image_size >= LARGE_IMAGE else 1.0)


STEP_60_80 = {"milestones": (60, 80), "gamma": 0.1}
WIDE_CROP = Crop((0.08, 1.0))

PROTOCOLS = {
    p.name: p
    for p in (
        Protocol(
            "knn",
            "k = 20 nearest neighbours, cosine, weight exp(s/0.07)",
            "Wu et al. 2018; DINO's default k and T",
            knn=KNN(),
        ),
        Protocol(
            "knn-200",
            "k = 200 nearest neighbours, cosine, weight exp(s/0.1)",
            "Wu et al. 2018; RSA [code]",
            knn=KNN((200,), 0.1),
        ),
        Protocol(
            "linear",
            "linear classifier on cached, standardised features, no augmentation",
            "[proposal]",
            probe=Probe(100, 256, 0.02, lr_batch=256, optimizer="nesterov", weight_decay=1e-4, prepare="standardise"),
        ),
        Protocol(
            "linear-aug",
            "linear classifier on new random crops and flips every epoch",
            "[proposal]",
            probe=Probe(
                100,
                256,
                0.02,
                lr_batch=256,
                optimizer="nesterov",
                weight_decay=1e-4,
                prepare="standardise",
                crop=WIDE_CROP,
            ),
        ),
        Protocol(
            "resa-cifar",
            "k = 5 Euclidean neighbours and a linear classifier by Adam, on the momentum encoder",
            "winci-ai/resa_cifar [code]",
            encoder="teacher",
            knn=KNN((5,), None, "euclidean"),
            probe=Probe(
                500,
                1000,
                1e-2,
                optimizer="adam",
                weight_decay=5e-6,
                schedule="epoch_exponential",
                schedule_options={"final": 1e-4},
                init="default",
            ),
            notes=(
                "the original normalises CIFAR-100's test images by CIFAR-10's mean and std; here by the run's own",
            ),
        ),
        Protocol(
            "resa-imagenet",
            "linear classifier with crops and flips, and kNN (bicubic), on the momentum encoder",
            "winci-ai/resa [code]",
            encoder="teacher",
            knn=KNN((20, 5, 10, 15, 25), 0.07, interpolation="bicubic"),
            probe=Probe(
                100,
                256,
                40.0,
                lr_batch=256,
                lr_for={"batch256": 10.0},
                schedule="step_decay",
                schedule_options=STEP_60_80,
                crop=WIDE_CROP,
                printed="best",
            ),
            notes=("which k the README quotes is not stated",),
        ),
        Protocol(
            "ressl",
            "linear classifier with crops and flips, SGD lr 0.2, cosine; small images",
            "re-upload of ReSSL's small code",
            encoder="student",
            fractions={"stl10": 64 / 70},
            large="ressl-imagenet",
            probe=Probe(100, 256, 0.2, optimizer="nesterov", crop=WIDE_CROP, printed="best"),
            notes=("100 epochs are a proposal: the re-upload's default is 800, its step schedule implies 100",),
        ),
        Protocol(
            "ressl-imagenet",
            "linear classifier with crops and flips, SGD lr 0.3, cosine; ImageNet",
            "KyleZheng1997/ReSSL [code]",
            encoder="student",
            probe=Probe(100, 256, 0.3, crop=WIDE_CROP, printed="best"),
        ),
        Protocol(
            "cacr-a",
            "linear classifier by Adam with crops and flips; CACR's small-scale code",
            "CACR, code of align_uniform [code]",
            encoder="student",
            fractions={"stl10": 64 / 70},
            probe=Probe(
                100,
                128,
                1e-3,
                optimizer="adam",
                betas=(0.5, 0.999),
                schedule="step_decay",
                schedule_options={"milestones": (60, 80), "gamma": 0.2},
                init="default",
                crop=Crop((0.2, 1.0)),
                crop_for={"stl10": WIDE_CROP},
                printed="best",
            ),
            notes=(
                "the original reads the second last block of its SmallAlexNet; here the backbone's pooled features",
            ),
        ),
        Protocol(
            "cacr-b",
            "MoCo v2's linear classifier with crops and flips, SGD lr 30",
            "CACR-B, facebookresearch/moco [code]",
            encoder="student",
            probe=Probe(
                100,
                256,
                30.0,
                schedule="step_decay",
                schedule_options=STEP_60_80,
                crop=WIDE_CROP,
                printed="best",
            ),
        ),
        Protocol(
            "cacr-c",
            "MoCo v3's linear classifier with crops and flips, and kNN (bicubic)",
            "CACR-C, moco-v3 [code]",
            encoder="student",
            knn=KNN((20, 10, 100, 200), 0.07, interpolation="bicubic"),
            probe=Probe(
                90,
                1024,
                0.1,
                lr_batch=256,
                lr_for={"vit": 3.0},
                schedule="epoch_cosine",
                crop=WIDE_CROP,
                printed="best",
            ),
            notes=("which k the table quotes is not stated", "CACR leaves the rate open: MoCo v3's 0.1, 3 for a ViT"),
        ),
        Protocol(
            "rsa-small",
            "linear classifier with crops and flips, SGD lr 30; small images",
            "tmllab/2022_NeurIPS_RSA [code]",
            encoder="student",
            fractions={"stl10": 64 / 96},
            large="rsa-imagenet",
            probe=Probe(
                100,
                256,
                30.0,
                optimizer="nesterov",
                schedule="step_decay",
                schedule_options=STEP_60_80,
                crop=WIDE_CROP,
                drop_last=True,
                printed="best",
            ),
            notes=("the original trains the classifier with the backbone in train mode: --batch-norm-drift does too",),
        ),
        Protocol(
            "rsa-imagenet",
            "Mean-Shift: unit length, standardised, linear classifier with crops and flips",
            "tmllab/2022_NeurIPS_RSA [code]",
            encoder="student",
            probe=Probe(
                40,
                256,
                0.01,
                weight_decay=1e-4,
                schedule="step_decay",
                schedule_options={"milestones": (15, 30), "gamma": 0.1},
                crop=WIDE_CROP,
                prepare="l2-standardise",
                printed="best",
            ),
            notes=("mean and variance are those of centre crops of this very backbone, never cached",),
        ),
        Protocol(
            "stec-online",
            "the classifier trained beside the backbone, tested as it ended",
            "NeuromorphicComputing/S-TEC [code]",
            encoder="student",
            online=True,
        ),
        Protocol(
            "stec-stl10",
            "linear classifier with crops and flips, 9,700 steps",
            "NeuromorphicComputing/S-TEC README",
            encoder="student",
            probe=Probe(
                100,
                1024,
                0.04,
                optimizer="nesterov",
                weight_decay=1e-6,
                schedule="warmup_cosine",
                schedule_options={"warmup_epochs": 10},
                crop=WIDE_CROP,
                steps_per_epoch=97,
            ),
        ),
    )
}


def find_protocol(name: str, image_size: int | None = None) -> Protocol:
    """The protocol, or its form for large images; a UserError that names the nearest where there is none."""
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1)
        raise UserError(
            f"--protocol {name} is unknown; use one of {', '.join(PROTOCOLS)}"
            + (f" (did you mean {near[0]}?)." if near else ".")
        )
    protocol = PROTOCOLS[name]
    if protocol.large and image_size is not None and image_size >= LARGE_IMAGE:
        return PROTOCOLS[protocol.large]
    return protocol
