"""The configuration of a run, resolved once: defaults < published recipe of method x data set < flags. Immutable."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from saccade.base.errors import UserError
from saccade.base.own import absolute
from saccade.losses.recipe import IMAGE_SIZE, SMALL, TrainingRecipe, at_size, small_epochs
from saccade.models.backbone import known_backbone
from saccade.pipelines.data import NAMES
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.mixed import PLUS
from saccade.pipelines.sources.options import FOLDER_LABELS, NO_LABELS
from saccade.pipelines.sources.own import is_own
from saccade.pipelines.sources.ranges import channel_statistics
from saccade.pipelines.views import PLAIN, check_channels
from saccade.runs.check_recipe import MAX_IMAGE_SIZE, check_recipe
from saccade.runs.checkpoint import Found
from saccade.runs.choice import chosen_recipe, data_named, method_of, named_operations
from saccade.runs.flags import DATA_FLAGS
from saccade.runs.initial import TIMM, read_initial, started_from
from saccade.runs.precision import on_gpu, training_precision
from saccade.runs.recipe_file import is_file
from saccade.runs.settings import blamed, with_settings

FEW = 10_000  # images of which a paper's batches make no more than a few steps an epoch
SHARE_OF_WARMUP = 0.1
LARGEST_CIFAR = 48  # pixels; the small recipe gives no larger images the stem of small ones
PLACES = (*DATA_FLAGS, "labels", "init")  # paths, of what may be moved
ONE_OF = {  # a flag, and what --set calls the same
    "epochs": "epochs",
    "batch_size": "batch_size",
    "image_size": "image_size",
    "lr": "optimizer.lr",
    "backbone": "backbone.name",
}


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. `recipe` is final: flags are already in it."""

    recipe: TrainingRecipe
    flags: Mapping[str, Any]  # what the user wrote, for --resume
    data: str
    val_data: str | None
    labelled_data: str | None
    data_dir: str
    pipeline: str
    shard_group: int
    sampling: str | None  # balanced, sqrt or a column of the CSV of labels; None: each image once an epoch
    workers: int | None
    cache: str | None  # ram or disk:FOLDER, where decoded images are kept
    cache_limit: float | None  # GB
    decode: str  # exact, or scaled: large JPEGs at the scale that the crops need
    steps: int | None  # optimizer steps in all; None: the recipe's epochs
    seed: int
    out: Path
    resume: bool
    device: str
    precision: str  # what it computes in, as in `recipe`: fp32, bf16 or fp16
    published_precision: str  # what the recipe was published in
    renderer: str
    compile: bool | None
    init: str | None
    accumulate: int
    joint_views: bool | None  # None: as the method has it
    log: str
    log_every: int
    eval_every: int | None
    checkpoint_every: str  # runs.interval
    keep: int
    track: tuple[str, ...]
    changes: tuple[str, ...] = ()  # what a resumed run goes on with that its checkpoint had otherwise

    def __repr__(self) -> str:
        return f"<Config {self.recipe!r} on {self.data}, seed {self.seed}: {self.out}>"

    @property
    def table(self) -> str | None:
        """The CSV that labels the images, or lists them."""
        labels = self.flags.get("labels")
        listed = self.data if self.data.lower().endswith((".csv", ".tsv")) else None
        return listed if labels in (None, NO_LABELS, FOLDER_LABELS) else labels

    def to_json(self) -> dict[str, Any]:
        """Plain values, for config.json and the screen."""
        return json.loads(json.dumps(asdict(self), default=str))


@dataclass(frozen=True)
class Kept:
    """What a resumed run takes over from its checkpoint."""

    recipe: TrainingRecipe  # final, with the changes
    published_precision: str
    flags: Mapping[str, Any]  # those of the recipe, as they were written
    changes: tuple[str, ...]  # told in words
    checkpoint: Found


def resolve(flags: argparse.Namespace, source: Source, out: Path, kept: Kept | None = None) -> Config:
    """defaults < published recipe, or a file's < flags, given the opened training data; kept: of a resumed run."""
    if kept is None:
        published = published_for(flags, source)
        recipe = resolved_recipe(published, flags, source)
    else:
        recipe = kept.recipe
        check_moved_data(recipe, flags, kept, source)
    written = {name: value for name, value in vars(flags).items() if name not in ("given", "final", "allow_changes")}
    written |= {name: _absolute(getattr(flags, name)) for name in PLACES}
    as_given = {f.name: written[f.name] for f in dataclasses.fields(Config) if f.name in written}
    return Config(
        **{
            **as_given,
            "recipe": recipe,
            "precision": recipe.precision,
            "published_precision": kept.published_precision if kept else published.precision,
            "flags": {**written, **(kept.flags if kept else {})},
            "out": out,
            "resume": kept is not None,
            "changes": kept.changes if kept else (),
            "track": tuple(filter(None, flags.track.split(","))),
        }
    )


def published_for(flags: argparse.Namespace, source: Source) -> TrainingRecipe:
    """The recipe that the flags name, for images of this size; where they name none, a small one on a CPU or for a
    set of few images, else the nearest paper's."""
    size, named = flags.image_size, data_named(flags)
    small = named == SMALL or (named == "custom" and (not on_gpu(flags.device) or len(source) < FEW))
    if size is None and named in ("custom", SMALL) and (images := source.array()) is not None:
        size = min(images.shape[1], IMAGE_SIZE[SMALL]) if small else images.shape[1]
    recipe = method_of(flags).recipe(SMALL, size) if small and named == "custom" else chosen_recipe(flags, size)
    if recipe.data == SMALL and not is_file(flags.recipe):
        return replace(recipe, epochs=small_epochs(len(source)))
    return recipe


def resolved_recipe(published: TrainingRecipe, flags: argparse.Namespace, source: Source) -> TrainingRecipe:
    """The recipe with all that the flags change, for these images."""
    recipe = changed(published, flags)
    recipe = replace(recipe, precision=training_precision(flags, recipe))
    if flags.init:
        recipe = started(recipe, flags)
        if (taken := recipe.backbone.options.get("in_chans", 3)) != source.channels:
            raise UserError(
                f"--init {flags.init}: its backbone takes {taken} channels, the images have {source.channels}; give "
                "weights of that many, or leave --init out."
            )
    final = getattr(flags, "final", False)  # a run's own recipe: the batch was as it is
    recipe = scaled(recipe, flags, recipe.batch_size if final else _fitting_batch(recipe.batch_size, len(source)))
    if recipe.data == SMALL and not is_file(flags.recipe) and not any(s.startswith("schedule") for s in flags.set):
        recipe = with_short_warmup(recipe, flags.steps, len(source))
    return with_channels(recipe, source, flags.labelled_data is not None)


def with_short_warmup(recipe: TrainingRecipe, steps: int | None, images: int) -> TrainingRecipe:
    """The recipe with a warm-up of at most a tenth of the run: `steps`, or its epochs."""
    epochs = steps / max(1, images // recipe.batch_size) if steps else recipe.epochs
    options = recipe.schedule.options
    if "warmup_epochs" not in options:
        return recipe
    warmup = round(min(options["warmup_epochs"], SHARE_OF_WARMUP * epochs), 4)
    return replace(recipe, schedule=replace(recipe.schedule, options={**options, "warmup_epochs": warmup}))


def with_flags(recipe: TrainingRecipe, flags: argparse.Namespace) -> TrainingRecipe:
    """The recipe of a resumed run, final as it is, with what the flags change."""
    recipe = at_size(recipe, flags.image_size) if flags.recipe is None else chosen_recipe(flags, flags.image_size)
    recipe = changed(recipe, flags)
    if flags.precision != "auto":
        recipe = replace(recipe, precision=training_precision(flags, recipe))
    elif recipe.precision == "fp16" and not on_gpu(flags.device):
        raise UserError(
            f"--resume {flags.resume}: the run computes in fp16, which needs a GPU; go on with it on one, or with "
            "--precision bf16 --allow-changes."
        )
    return scaled(recipe, flags, recipe.batch_size)


def scaled(recipe: TrainingRecipe, flags: argparse.Namespace, batch: int) -> TrainingRecipe:
    """The recipe with its learning rate at the batch of the run, which is `batch` where no flag gives it."""
    spec, batch = recipe.optimizer, flags.batch_size or batch
    lr = flags.lr or (spec.lr if batch == spec.lr_batch else spec.lr * batch / spec.lr_batch)
    return replace(
        recipe,
        backbone=recipe.backbone.resolved(recipe.image_size),
        epochs=flags.epochs or recipe.epochs,
        batch_size=batch,
        optimizer=replace(spec, lr=lr, lr_batch=batch),
    )


def changed(recipe: TrainingRecipe, flags: argparse.Namespace) -> TrainingRecipe:
    """The recipe with --backbone, and then --set: what is set of the backbone is set of that one."""
    keys = {setting.partition("=")[0]: setting for setting in flags.set}
    for name, key in ONE_OF.items():
        if getattr(flags, name) is not None and key in keys:
            flag = f"--{name.replace('_', '-')} {getattr(flags, name)}"
            raise UserError(f"{flag} and --set {keys[key]} contradict each other; give one of them.")
    if flags.backbone:
        backbone = recipe.backbone.renamed(known_backbone(flags.backbone))
        if recipe.data == SMALL and recipe.image_size > LARGEST_CIFAR:
            backbone = replace(backbone, stem="plain")  # the other costs a CPU nine times as much
        recipe = replace(recipe, backbone=backbone)
    with blamed(flags.set):
        recipe = with_settings(recipe, flags.set, named_operations(flags))
        check_recipe(recipe)
    return recipe


def started(recipe: TrainingRecipe, flags: argparse.Namespace) -> TrainingRecipe:
    """The recipe with the network and the statistics of --init's weights."""
    found = read_initial(flags.init, recipe.backbone.name, recipe.image_size, named=flags.backbone is not None)
    return started_from(recipe, found, not any(s.startswith(("views.mean", "views.std")) for s in flags.set))


def with_channels(recipe: TrainingRecipe, source: Source, labelled: bool) -> TrainingRecipe:
    """The recipe for images of other than three channels, normalised, where it normalises, by what the images have."""
    channels, views = source.channels, recipe.views
    if channels == 3:
        if not len(views.mean) == len(views.std) == 3:
            raise UserError(
                "views.mean and views.std of the recipe have other than the images' 3 channels; give 3 of each."
            )
        return recipe
    if len(views.mean) != channels or len(views.std) != channels:
        plain = ((0.0,) * channels, (1.0,) * channels)
        mean, std = plain if views.normalisation == PLAIN else channel_statistics(source)
        views = replace(views, mean=mean, std=std)
    beside = recipe.companion and replace(recipe.companion, mean=views.mean, std=views.std)
    check_channels(views, channels)
    if beside and labelled:
        check_channels(beside, channels, "companion")
    return replace(recipe, views=views, companion=beside, backbone=recipe.backbone.of_channels(channels))


def _absolute(place: str | None) -> str | None:
    """A path from wherever the run is continued or evaluated; names of data sets and URLs as they are."""
    if place is not None and PLUS in place:
        return PLUS.join(str(_absolute(part)) for part in place.split(PLUS))
    if place is None or place in (*NAMES, TIMM, NO_LABELS, FOLDER_LABELS):
        return place
    if is_own(place):
        code, _, argument = place.partition(":")
        return f"{absolute(code)}:{argument}"
    if "://" in place or place.startswith("pipe:"):
        return place
    return os.path.abspath(os.path.expanduser(place))


def check_moved_data(recipe: TrainingRecipe, flags: argparse.Namespace, kept: Kept, source: Source) -> None:
    """Raise UserError if a resumed run was given data that its recipe, made for other data, does not fit."""
    own_size = kept.flags.get("recipe") is None and kept.flags.get("image_size") is None and flags.data not in NAMES
    images = source.array() if own_size else None
    most = IMAGE_SIZE[SMALL] if recipe.data == SMALL else MAX_IMAGE_SIZE
    wrong = "image_size" if images is not None and min(images.shape[1], most) != recipe.image_size else None
    if wrong is None and with_channels(recipe, source, flags.labelled_data is not None) != recipe:
        wrong = "channels"
    if wrong:
        raise UserError(
            f"--data {flags.data}: these are not the images the run was started with (the recipe's {wrong} would "
            "change); give those, or start a new run."
        )


def _fitting_batch(batch: int, samples: int) -> int:
    """The recipe's batch, or on a smaller set the largest power of two that leaves at least four steps an epoch."""
    if batch * 4 <= samples:
        return batch
    fitting = 1
    while fitting * 8 <= samples:
        fitting *= 2
    return min(batch, max(fitting, 2))
