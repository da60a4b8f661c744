"""Recipes of losses/ressl.py, with the source of every value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from saccade.losses.ablation import Ablation, Recipe, with_options
from saccade.losses.objective import Method
from saccade.losses.recipe import (
    NORMALISATION,
    OptimizerSpec,
    ScheduleSpec,
    TrainingRecipe,
    choose_recipe,
    embedded_recipe,
)
from saccade.losses.ressl import ReSSL, ReSSLOptions
from saccade.models.backbone import BackboneSpec
from saccade.pipelines.operations import Blur, Grey, Jitter
from saccade.pipelines.operations.cutout import Cutout
from saccade.pipelines.operations.randaugment import RandAugment
from saccade.pipelines.views import Crop, View, Views

CODE = "KyleZheng1997/ReSSL @4d67daa"

SMALL_CODE = "re-upload of the authors' small-data code (cywinski/ressl_audio), unverified"

SMALL_NORMALISATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "stl10": NORMALISATION["stl10"],
    "tiny-imagenet": NORMALISATION["tiny-imagenet"],
}


def _views(size: int, normalisation: tuple) -> Views:
    crop = Crop((0.2, 1.0))
    contrastive = View("contrastive", size, crop, operations=(Jitter(0.4, 0.4, 0.4, 0.1), Grey(0.2), Blur(0.5)))
    return Views((View("weak", size, crop), contrastive), *normalisation)


def _five_crops(base: Views) -> Views:
    scales = {224: (0.2, 1.0), 192: (0.172, 0.86), 160: (0.143, 0.715), 128: (0.114, 0.571), 96: (0.086, 0.429)}
    weak, crop = base
    crops = (replace(crop, name=f"crop_{size}", size=size, crop=Crop(scale)) for size, scale in scales.items())
    return replace(base, views=(weak, *crops))


def _small(data: str, size: int, stem: str, queue_size: int, momentum: float) -> TrainingRecipe[ReSSLOptions]:
    return TrainingRecipe(
        method="ressl",
        data=data,
        image_size=size,
        views=_views(size, SMALL_NORMALISATION[data]),
        backbone=BackboneSpec("resnet18", stem, zero_init_last=False),
        options=ReSSLOptions(queue_size=queue_size, teacher_momentum=momentum),
        optimizer=OptimizerSpec("sgd", 0.06, 256, weight_decay=5e-4),
        schedule=ScheduleSpec("warmup_cosine", {"warmup_epochs": 5}),
        epochs=800,
        batch_size=256,
        batch_norm="split-8",
        protocol="ressl",
        sources={
            "optimizer.weight_decay": "the author in issue 11 of KyleZheng1997/ReSSL, on everything",
            "optimizer.lr": SMALL_CODE,
            "options": SMALL_CODE,
            "views": SMALL_CODE,
            "batch_norm": f"{SMALL_CODE}: 8 splits in student and teacher, the teacher's batch shuffled",
            "backbone.stem": SMALL_CODE,
        },
        proposals={"epochs": "the re-upload's default; the paper's is not known"},
    )


def _imagenet(data: str = "imagenet") -> TrainingRecipe[ReSSLOptions]:
    return TrainingRecipe(
        method="ressl",
        data=data,
        image_size=224,
        views=_views(224, NORMALISATION[data]),
        backbone=BackboneSpec("resnet50", "plain", zero_init_last=False),
        options=ReSSLOptions(teacher_momentum=0.999, projector_hidden=4096, projector_dim=512, queue_size=131072),
        optimizer=OptimizerSpec("sgd", 0.05, 256, weight_decay=1e-4, rule="name"),
        schedule=ScheduleSpec("warmup_cosine", {"warmup_epochs": 5}),
        epochs=200,
        batch_size=256,
        batch_norm="group-32",
        protocol="ressl-imagenet",
        sources={
            "optimizer.rule": f"{CODE}: names with bn or bias, which leaves the four downsample gammas decayed",
            "batch_norm": f"{CODE}: 32 images on each of 8 GPUs, the teacher's shuffled",
            "options": CODE,
            "views": CODE,
            "epochs": "README: 200 epochs linear 69.9; 74.7 with five crops (--recipe imagenet-5crop)",
        },
    )


_IMAGENET = _imagenet()

_IMAGENET100 = _imagenet("imagenet100")

RECIPES = {
    r.name: r
    for r in (
        _small("cifar10", 32, "cifar", 4096, 0.99),
        _small("cifar100", 32, "cifar", 4096, 0.99),
        _small("stl10", 64, "cifar-maxpool", 16384, 0.996),
        _small("tiny-imagenet", 64, "cifar-maxpool", 16384, 0.996),
        replace(
            _IMAGENET100,
            options=replace(_IMAGENET100.options, queue_size=16384, teacher_momentum=0.996),
            proposals={
                "all": "the authors give no recipe: that of ImageNet with the queue and momentum of their "
                "middle-sized sets"
            },
        ),
        _IMAGENET,
        replace(_IMAGENET, variant="5crop", views=_five_crops(_IMAGENET.views)),
    )
}

RECIPES["textures"] = embedded_recipe(
    replace(RECIPES["cifar10"], batch_norm="sync"), ReSSLOptions(queue_size=2048, projector_hidden=512)
)

PUBLISHED = tuple(name for name, recipe in RECIPES.items() if "all" not in recipe.proposals)


def ressl_recipe(data: str, image_size: int | None = None) -> TrainingRecipe[ReSSLOptions]:
    """ReSSL as its authors train it on `data`, or a marked proposal."""
    return choose_recipe(RECIPES, data, image_size)


def _contrastive(recipe: Recipe) -> Recipe:
    """The teacher sees what the student sees: the other views' jitter, grey and blur."""
    first = recipe.views.views[0]
    other = next(view for view in recipe.views if view.name != first.name)
    return _views_of(recipe, lambda view: replace(view, operations=other.operations) if view is first else view)


def _strong(recipe: Recipe) -> Recipe:
    """The code's "strong" switch, for the student: smaller crops, twice the jitter, RandAugment, a cutout."""

    def stronger(view: View) -> View:
        if view.name == "weak" or not isinstance(view.crop, Crop):
            return view
        colour = tuple(Jitter(0.8, 0.8, 0.8, 0.2, p=o.p) if isinstance(o, Jitter) else o for o in view.operations)
        crop = replace(view.crop, scale=(0.08, view.crop.scale[1]))
        return replace(view, crop=crop, operations=(*colour, RandAugment(), Cutout(p=1.0)))

    return _views_of(recipe, stronger)


def _views_of(recipe: Recipe, change: Callable[[View], View]) -> Recipe:
    return replace(recipe, views=replace(recipe.views, views=tuple(map(change, recipe.views))))


def _weak(change: Callable[[View], View]) -> Callable[[Recipe], Recipe]:
    """A change of the teacher's view alone."""
    return lambda recipe: _views_of(recipe, lambda view: change(view) if view.name == "weak" else view)


_PAPER = "the question is arXiv 2107.09282's (weak augmentation, the teacher's temperature); its tables were not found"
ABLATIONS = (
    Ablation("contrastive-teacher", "the teacher's view augmented as the student's", _PAPER, _contrastive),
    Ablation(
        "jitter-teacher",
        "colour jitter on the teacher's view",
        _PAPER,
        _weak(lambda v: replace(v, operations=(Jitter(0.4, 0.4, 0.4, 0.1),))),
    ),
    Ablation(
        "grey-teacher", "greyscale on the teacher's view", _PAPER, _weak(lambda v: replace(v, operations=(Grey(0.2),)))
    ),
    Ablation(
        "blur-teacher", "blur on the teacher's view", _PAPER, _weak(lambda v: replace(v, operations=(Blur(0.5),)))
    ),
    Ablation("no-flip-teacher", "no flip of the teacher's view", _PAPER, _weak(lambda v: replace(v, flip=0.0))),
    Ablation(
        "weak-student",
        "the student's views cropped and flipped alone",
        _PAPER,
        lambda r: _views_of(r, lambda v: replace(v, operations=())),
    ),
    Ablation(
        "strong", "the code's \"strong\" switch for the student's views", f"{CODE}, off in the released recipe", _strong
    ),
    Ablation(
        "t-teacher-0", "one-hot targets, the limit of the teacher's temperature", _PAPER, with_options(t_teacher=0.0)
    ),
)

METHODS = (
    Method(
        "ressl",
        "similarities to past images: a student's follow a teacher's",
        ReSSL,
        ressl_recipe,
        PUBLISHED,
        ABLATIONS,
    ),
)
