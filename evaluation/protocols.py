"""The evaluation protocols of the papers, and common practice: data only. Sources of a value: [code] the authors'
repository, [proposal] ours where none was found."""

from __future__ import annotations

from saccade.evaluation.kinds.attentive import Attentive
from saccade.evaluation.kinds.knn import KNN
from saccade.evaluation.kinds.linear import Linear
from saccade.evaluation.kinds.online import Online
from saccade.evaluation.protocol import Protocol
from saccade.pipelines.views import Crop

STEP_60_80 = {"milestones": (60, 80), "gamma": 0.1}
WIDE_CROP = Crop((0.08, 1.0))

PROTOCOLS = (
    Protocol(
        "knn",
        "k = 20 nearest neighbours, cosine, weight exp(s/0.07)",
        "Wu et al. 2018; DINO's default k and T",
        (KNN(),),
    ),
    Protocol(
        "knn-200",
        "k = 200 nearest neighbours, cosine, weight exp(s/0.1)",
        "Wu et al. 2018; RSA [code]",
        (KNN((200,), 0.1),),
    ),
    Protocol(
        "linear",
        "linear classifier on cached, standardised features, no augmentation",
        "[proposal]",
        (Linear(100, 256, 0.02, lr_batch=256, optimizer="nesterov", weight_decay=1e-4, prepare="standardise"),),
    ),
    Protocol(
        "linear-aug",
        "linear classifier on new random crops and flips every epoch",
        "[proposal]",
        (
            Linear(
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
    ),
    Protocol(
        "attentive",
        "one learned query over the patches, then a linear classifier; crops and flips",
        "CAE, Atten4Vis/CAE [code]; pooling as in AIM, apple/ml-aim [code]",
        (
            Attentive(
                90,
                256,
                0.4,
                lr_batch=8192,
                schedule="warmup_cosine",
                schedule_options={"warmup_epochs": 10},
                crop=WIDE_CROP,
            ),
        ),
        notes=("CAE's batch is 8,192 images; here 256, its rate scaled with them",),
    ),
    Protocol(
        "resa-cifar",
        "k = 5 Euclidean neighbours and a linear classifier by Adam, on the momentum encoder",
        "winci-ai/resa_cifar [code]",
        (
            KNN((5,), None, "euclidean"),
            Linear(
                500,
                1000,
                1e-2,
                optimizer="adam",
                weight_decay=5e-6,
                schedule="epoch_exponential",
                schedule_options={"final": 1e-4},
                init="default",
            ),
        ),
        encoder="teacher",
        notes=("the original normalises CIFAR-100's test images by CIFAR-10's mean and std; here by the run's own",),
    ),
    Protocol(
        "resa-imagenet",
        "linear classifier with crops and flips, and kNN (bicubic), on the momentum encoder",
        "winci-ai/resa [code]",
        (
            KNN((20, 5, 10, 15, 25), 0.07, interpolation="bicubic"),
            Linear(
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
        ),
        encoder="teacher",
        notes=("which k the README quotes is not stated",),
    ),
    Protocol(
        "ressl",
        "linear classifier with crops and flips, SGD lr 0.2, cosine; small images",
        "re-upload of ReSSL's small code",
        (Linear(100, 256, 0.2, optimizer="nesterov", crop=WIDE_CROP, printed="best"),),
        encoder="student",
        fractions={"stl10": 64 / 70},
        large="ressl-imagenet",
        notes=("100 epochs are a proposal: the re-upload's default is 800, its step schedule implies 100",),
    ),
    Protocol(
        "ressl-imagenet",
        "linear classifier with crops and flips, SGD lr 0.3, cosine; ImageNet",
        "KyleZheng1997/ReSSL [code]",
        (Linear(100, 256, 0.3, crop=WIDE_CROP, printed="best"),),
        encoder="student",
    ),
    Protocol(
        "cacr-a",
        "linear classifier by Adam with crops and flips; CACR's small-scale code",
        "CACR, code of align_uniform [code]",
        (
            Linear(
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
        ),
        encoder="student",
        fractions={"stl10": 64 / 70},
        notes=("the original reads the second last block of its SmallAlexNet; here the backbone's pooled features",),
    ),
    Protocol(
        "cacr-b",
        "MoCo v2's linear classifier with crops and flips, SGD lr 30",
        "CACR-B, facebookresearch/moco [code]",
        (
            Linear(
                100,
                256,
                30.0,
                schedule="step_decay",
                schedule_options=STEP_60_80,
                crop=WIDE_CROP,
                printed="best",
            ),
        ),
        encoder="student",
    ),
    Protocol(
        "cacr-c",
        "MoCo v3's linear classifier with crops and flips, and kNN (bicubic)",
        "CACR-C, moco-v3 [code]",
        (
            KNN((20, 10, 100, 200), 0.07, interpolation="bicubic"),
            Linear(
                90,
                1024,
                0.1,
                lr_batch=256,
                lr_for={"vit": 3.0},
                schedule="epoch_cosine",
                crop=WIDE_CROP,
                printed="best",
            ),
        ),
        encoder="student",
        notes=("which k the table quotes is not stated", "CACR leaves the rate open: MoCo v3's 0.1, 3 for a ViT"),
    ),
    Protocol(
        "rsa-small",
        "linear classifier with crops and flips, SGD lr 30; small images",
        "tmllab/2022_NeurIPS_RSA [code]",
        (
            Linear(
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
        ),
        encoder="student",
        fractions={"stl10": 64 / 96},
        large="rsa-imagenet",
        notes=("the original trains the classifier with the backbone in train mode: --batch-norm-drift does too",),
    ),
    Protocol(
        "rsa-imagenet",
        "Mean-Shift: unit length, standardised, linear classifier with crops and flips",
        "tmllab/2022_NeurIPS_RSA [code]",
        (
            Linear(
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
        ),
        encoder="student",
        notes=("mean and variance are those of centre crops of this very backbone, never cached",),
    ),
    Protocol(
        "stec-online",
        "the classifier trained beside the backbone, tested as it ended",
        "NeuromorphicComputing/S-TEC [code]",
        (Online(),),
        encoder="student",
    ),
    Protocol(
        "stec-stl10",
        "linear classifier with crops and flips, 9,700 steps",
        "NeuromorphicComputing/S-TEC README",
        (
            Linear(
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
        encoder="student",
    ),
)
