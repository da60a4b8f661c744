"""A training recipe: everything a method's paper fixes for a data set, with where each value was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from saccade.models.backbone import BackboneSpec
from saccade.pipelines.views import Views

NO_NORMALISATION = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
NORMALISATION = {  # data set: mean, std of the RGB channels in [0, 1]
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": ((0.4408, 0.4279, 0.3867), (0.2682, 0.2610, 0.2686)),
    "tiny-imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet100": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
IMAGE_SIZE = {
    "textures": 32,
    "small": 64,
    "cifar10": 32,
    "cifar100": 32,
    "stl10": 96,
    "tiny-imagenet": 64,
    "imagenet100": 224,
    "imagenet": 224,
}

SMALL = "small"  # the recipe for images of one's own on a CPU, or few of them
SEEN, FEWEST, MOST = 160_000, 10, 200  # images that it shows in all; epochs at the least and at the most
OURS = ("textures", SMALL)


class Options(Protocol):
    """A method's hyper-parameters: a frozen dataclass of its own."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


OptionsT = TypeVar("OptionsT", bound=Options, covariant=True)


@dataclass(frozen=True)
class OptimizerSpec:
    """name: lars, sgd, adam or adamw; lr: the peak at a global batch of `lr_batch`, scaled linearly."""

    name: str
    lr: float
    lr_batch: int
    weight_decay: float
    momentum: float = 0.9
    rule: str = "all"  # which parameters decay: models.optimizers.parameter_groups
    nesterov: bool = False
    trust_coefficient: float = 0.001  # LARS
    lars_norm: str = "separate"  # LARS, the denominator: models.optimizers.LARS
    betas: tuple[float, float] = (0.9, 0.999)  # Adam, AdamW
    clip_norm: float | None = None  # clip the gradient's global norm
    layer_decay: float = 1.0  # the rate of a backbone's layer is this much lower for every layer above it


@dataclass(frozen=True)
class ScheduleSpec:
    """The learning rate over steps: a kind of models.schedules and its options."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingRecipe(Generic[OptionsT]):
    """One method on one data set. `sources` and `proposals` map a field's name to where, or why, its value is from."""

    method: str
    data: str
    image_size: int
    views: Views
    backbone: BackboneSpec
    options: OptionsT  # the method's own frozen dataclass of hyper-parameters
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    epochs: int
    batch_size: int
    precision: str = "fp32"
    batch_norm: str = "sync"  # "sync": over all processes; "split-8", "group-32": over eighths, 32s, of the batch
    protocol: str = "knn"
    sources: Mapping[str, str] = field(default_factory=dict)
    proposals: Mapping[str, str] = field(default_factory=dict)
    imbalance: str = "none"  # "linear", "exponential": fewer images of the first classes, pipelines.sources.imbalance
    companion: Views | None = None  # the view `labelled` of labelled images that go beside unlabelled ones
    variant: str = ""  # of several on one data set, e.g. 5crop

    def __repr__(self) -> str:
        size = f"{self.image_size} px, {self.epochs} epochs"
        return f"<TrainingRecipe {self.method} {self.name}: {self.backbone.name}, {size}>"

    @property
    def name(self) -> str:
        """What --recipe calls it."""
        return f"{self.data}-{self.variant}" if self.variant else self.data


def choose_recipe(
    recipes: Mapping[str, TrainingRecipe[OptionsT]], data: str, image_size: int | None = None
) -> TrainingRecipe[OptionsT]:
    """The recipe called `data`, else that of the nearest image size, marked as a proposal; at `image_size` if given."""
    chosen = recipes.get(data)
    if chosen is None:
        size = image_size or IMAGE_SIZE.get(data, 224)
        served = [r for r in recipes.values() if not r.variant and r.data not in OURS]
        nearest = min(served, key=lambda r: abs(r.image_size - size))
        whose = "images of your own" if data == "custom" else data
        why = f"{nearest.method} was published for no {whose}; this is its {nearest.name} recipe, the nearest in size"
        chosen = replace(nearest, data=data, proposals={**nearest.proposals, "data": why})
    return at_size(chosen, image_size)


def at_size(recipe: TrainingRecipe[OptionsT], image_size: int | None) -> TrainingRecipe[OptionsT]:
    """The recipe for images of `image_size` pixels, marked as a proposal; None: as it is."""
    if image_size is None or image_size == recipe.image_size:
        return recipe
    why = f"{recipe.image_size} px in the recipe; every view is scaled with it"
    factor = image_size / recipe.image_size
    return replace(
        recipe,
        image_size=image_size,
        views=_scaled(recipe.views, factor),
        companion=recipe.companion and _scaled(recipe.companion, factor),
        proposals={**recipe.proposals, "image_size": why},
    )


def derive_recipe(
    recipe: TrainingRecipe[Any], method: str, options: OptionsT, **changes: Any
) -> TrainingRecipe[OptionsT]:
    """The recipe of a method that follows another's: its own options, and what else changes."""
    return replace(recipe, method=method, options=options, **changes)


def embedded_recipe(recipe: TrainingRecipe[OptionsT], options: OptionsT) -> TrainingRecipe[OptionsT]:
    """A proposal for the embedded set: timm's smallest ResNet, a quarter of the resolution, plain SGD, eight epochs.

    Its classes differ in fine detail, which a blur at 32 pixels wipes out: the views are without.
    """
    why = "ours, to be seen working in two minutes on two CPU cores; the loss and, but for blur, the views are theirs"
    views = tuple(view.replaced("blur", None) for view in recipe.views)
    return replace(
        recipe,
        data="textures",
        options=options,
        views=replace(recipe.views, views=views),
        backbone=BackboneSpec("test_resnet", "plain", True),
        optimizer=OptimizerSpec("sgd", 0.05, 128, weight_decay=5e-4, rule="ndim"),
        schedule=ScheduleSpec("warmup_cosine", {"warmup_epochs": 0.8}),
        epochs=8,
        batch_size=128,
        precision="fp32",
        protocol="knn",
        sources={},
        proposals={"all": why},
    )


def small_recipe(embedded: TrainingRecipe[OptionsT], image_size: int | None) -> TrainingRecipe[OptionsT]:
    """A proposal for photos of one's own on two CPU cores: the embedded set's recipe at 64 pixels, for longer."""
    why = "ours, for a CPU or a set of few images; --recipe imagenet (stl10, cifar10) takes a paper's"
    schedule = replace(embedded.schedule, options={**embedded.schedule.options, "warmup_epochs": 8.0})
    recipe = at_size(embedded, image_size or IMAGE_SIZE[SMALL])
    return replace(recipe, data=SMALL, schedule=schedule, epochs=100, proposals={"all": why})


def small_epochs(images: int) -> int:
    """Epochs of the small recipe on so many images: about SEEN images in all, ten minutes of two CPU cores.

    Examples:
        >>> small_epochs(1640), small_epochs(50), small_epochs(1_000_000)
        (98, 200, 10)
    """
    return min(MOST, max(FEWEST, round(SEEN / images)))


def _scaled(views: Views, factor: float) -> Views:
    return replace(views, views=tuple(replace(view, size=max(1, round(view.size * factor))) for view in views))
