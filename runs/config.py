"""The configuration of a run, resolved once: defaults < published recipe of method x data set < flags. Immutable."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from saccade.base.errors import UserError
from saccade.base.program import command_parser
from saccade.losses.objective import Method
from saccade.losses.recipe import IMAGE_SIZE, TrainingRecipe
from saccade.losses.registry import find_method, methods
from saccade.models.backbone import check_backbone
from saccade.pipelines.build import EXECUTORS
from saccade.pipelines.data import NAMES
from saccade.pipelines.sources import Source
from saccade.pipelines.views import Views

DATA_FLAGS = (
    "data",
    "val_data",
    "labelled_data",
    "data_dir",
)  # where the images lie may change, which they are may not
MAX_WORKERS, MAX_IMAGE_SIZE = 1024, 4096
RESUMABLE = {
    "resume",
    "workers",
    "device",
    "compile",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep",
    "track",
    *DATA_FLAGS,
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
    workers: int | None
    steps: int | None  # optimizer steps in all; None: the recipe's epochs
    seed: int
    out: Path
    resume: bool
    device: str
    precision: str
    compile: bool | None
    accumulate: int
    joint_views: bool | None  # None: as the method has it
    log_every: int
    eval_every: int | None
    checkpoint_every: int | None
    keep: int
    track: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for config.json and the screen."""
        return json.loads(json.dumps(asdict(self), default=str))


EXAMPLES = {
    "--method stec": "an embedded data set",
    "--method resa --data cifar10": "the published recipe",
    "--data PHOTOS --backbone test_resnet --image-size 32 --batch-size 64 --steps 300": "minutes on a CPU",
    "--resume outputs/RUN": "after a crash or Ctrl-C: exactly where it was",
}
DESCRIPTION = """Pre-train a vision backbone without labels. With no flags but --method it trains on an embedded
data set, so that everything can be seen working in three minutes on two CPU cores."""


def parser(
    prog: str = "train.py", description: str = DESCRIPTION, examples: dict[str, str] = EXAMPLES
) -> argparse.ArgumentParser:
    """The flags of train.py, grouped."""
    p = command_parser(prog, description, examples)
    what = p.add_argument_group("what to train")
    what.add_argument("--method", default="stec", help=f"one of {', '.join(methods())} (default: stec)")
    what.add_argument(
        "--data",
        default="textures",
        help="a folder of images, an .npz, a .beton, tar shards (a path, x-{000..127}.tar, a URL), or one of "
        f"{', '.join(NAMES)} (default: textures, embedded)",
    )
    what.add_argument("--val-data", help="images to evaluate on (default: a val/ or test/ split found beside the data)")
    what.add_argument("--allow-pipe", action="store_true", help="allow pipe: URLs in --data; they run a shell command")
    what.add_argument(
        "--labelled-data",
        help="labelled images beside unlabelled --data, for the classifier that SimCLR and S-TEC "
        "train and for kNN (default: with stl10 its own 5,000)",
    )
    what.add_argument("--data-dir", default="data", help="where cifar10, cifar100 and stl10 are kept (default: data)")
    what.add_argument(
        "--recipe",
        help="take this recipe, of those that python -m tools.recipes METHOD lists "
        "(default: --data, or the nearest in size)",
    )
    what.add_argument("--backbone", help="any timm model name (default: the recipe's)")
    what.add_argument(
        "--image-size", type=int, help="pixels of a full-size view (default: the recipe's, or the images')"
    )
    what.add_argument(
        "--stec-base",
        default="simclr",
        help="what --method stec adds its inverse model to: simclr, or byol, which is "
        "our extension, not the authors' (default: simclr)",
    )
    training = p.add_argument_group("training (default: the recipe's value)")
    training.add_argument("--epochs", type=int, help="passes over the data")
    training.add_argument("--steps", type=int, help="optimizer steps in all, instead of --epochs")
    training.add_argument("--batch-size", type=int, help="images per optimizer step, over all processes")
    training.add_argument(
        "--accumulate", type=int, default=1, help="split a step into this many forward passes (default: 1)"
    )
    training.add_argument("--lr", type=float, help="peak learning rate (default: the recipe's, scaled with the batch)")
    training.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change any value of the recipe, e.g. options.temperature=0.2 or optimizer.weight_decay=1e-4",
    )
    training.add_argument("--seed", type=int, default=0)
    training.add_argument(
        "--joint-views",
        action=argparse.BooleanOptionalAction,
        help="the student's views of one size in one forward: faster where batches are small; their BatchNorm "
        "statistics are then shared, which changes the method (default: as the method has it)",
    )
    machine = p.add_argument_group("machine")
    machine.add_argument("--pipeline", default="auto", help=f"executor: {', '.join(EXECUTORS)} (default: auto)")
    machine.add_argument(
        "--shard-group",
        type=int,
        default=0,
        metavar="N",
        help="tar shards: shuffle the images of N shards at a time (default: 0, all images at once)",
    )
    machine.add_argument(
        "--workers", type=int, help="decoding processes or threads per process (default: from the CPUs)"
    )
    machine.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    machine.add_argument(
        "--precision", default="auto", help="auto, fp32, bf16 or fp16 (default: bf16 on a GPU, else fp32)"
    )
    machine.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile (default: on a GPU)")
    run = p.add_argument_group("the run")
    run.add_argument("--out", help="run folder (default: outputs/METHOD-DATA-TIME)")
    run.add_argument("--resume", metavar="FOLDER", help="continue the run in this folder from its last checkpoint")
    run.add_argument("--log-every", type=int, default=10, help="steps between lines of metrics.jsonl (default: 10)")
    run.add_argument(
        "--eval-every", type=int, help="epochs between kNN evaluations, 0 for none (default: a tenth of the run)"
    )
    run.add_argument(
        "--checkpoint-every", type=int, help="steps between checkpoints (default: every epoch, a minute apart)"
    )
    run.add_argument("--keep", type=int, default=2, help="checkpoints kept (default: 2)")
    run.add_argument("--track", default="", help="also log to tensorboard, wandb, csv (comma-separated; default: none)")
    return p


def parse_flags(argv: Sequence[str], prog: str = "train.py") -> argparse.Namespace:
    """The flags; with --resume those of the interrupted run, where only machine, logging and data flags may differ."""
    flags = parser(prog).parse_args(argv)
    if flags.resume is None:
        return flags
    folder = Path(flags.resume)
    try:
        saved = dict(json.loads((folder / "config.json").read_text())["flags"])
        if wrong := sorted(
            name
            for name in vars(flags)
            if type(saved[name]) is not type(getattr(flags, name))
            and None not in (saved[name], parser().get_default(name))
        ):
            raise ValueError(f"{wrong[0]} is {saved[wrong[0]]!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--resume {folder}: no run is there to continue (its config.json cannot be read: {type(error).__name__})."
        ) from error
    given = {name for name, value in vars(flags).items() if value != parser().get_default(name)}
    changed = sorted(name for name in given - RESUMABLE if getattr(flags, name) != saved.get(name))
    if changed:
        raise UserError(
            f"--resume continues the run as it was; drop --{changed[0].replace('_', '-')} "
            f"(only {', '.join(sorted('--' + n.replace('_', '-') for n in RESUMABLE))} may change)."
        )
    kept = {name: getattr(flags, name) for name in given & RESUMABLE}
    return argparse.Namespace(**{**vars(flags), **saved, **kept, "resume": flags.resume, "out": flags.resume})


def check_flags(flags: argparse.Namespace) -> None:
    """Raise UserError for values that no data or machine could make right."""
    for name in ("epochs", "steps", "batch_size", "accumulate", "log_every", "keep", "image_size", "checkpoint_every"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} is not positive; give 1 or more.")
    for name in ("workers", "eval_every", "seed", "shard_group"):
        value = getattr(flags, name)
        if value is not None and value < 0:
            raise UserError(f"--{name.replace('_', '-')} {value} is negative; give 0 or more.")
    if flags.workers is not None and flags.workers > MAX_WORKERS:
        raise UserError(f"--workers {flags.workers} is too many; give {MAX_WORKERS} or fewer.")
    if flags.seed >= 2**32:
        raise UserError(f"--seed {flags.seed} is too large; give a number below 2^32.")
    for name in ("data", "val_data", "labelled_data"):
        if getattr(flags, name) is not None and not getattr(flags, name).strip():
            raise UserError(f"--{name.replace('_', '-')} is empty; give a folder, a file or a data set's name.")
    if flags.steps is not None and flags.epochs is not None:
        raise UserError("--steps and --epochs both say how long to train; give one of them.")
    if flags.lr is not None and not 0 < flags.lr < float("inf"):
        raise UserError(f"--lr {flags.lr} is no learning rate; give a positive number.")
    for name, allowed in (
        ("precision", ("auto", "fp32", "bf16", "fp16")),
        ("device", ("auto", "cpu", "cuda")),
        ("pipeline", EXECUTORS),
    ):
        if getattr(flags, name) not in allowed:
            raise UserError(f"--{name} {getattr(flags, name)} is unknown; use one of {', '.join(allowed)}.")
    unknown = set(filter(None, flags.track.split(","))) - {"tensorboard", "wandb", "csv"}
    if unknown:
        raise UserError(f"--track {', '.join(sorted(unknown))} is unknown; use tensorboard, wandb or csv.")
    for tracker in {"tensorboard", "wandb"} & set(flags.track.split(",")):
        if find_spec(tracker) is None:
            raise UserError(f"--track {tracker} needs the package {tracker}; pip install {tracker}, or leave it out.")
    if flags.backbone:
        check_backbone(flags.backbone)
    check_recipe_name(method_of(flags), flags.recipe)


def method_of(flags: argparse.Namespace) -> Method:
    """The method that --method and --stec-base name."""
    if flags.stec_base not in ("simclr", "byol"):
        raise UserError(f"--stec-base {flags.stec_base} is unknown; use simclr or byol.")
    if flags.stec_base != "simclr" and flags.method != "stec":
        raise UserError(
            f"--stec-base {flags.stec_base} goes with --method stec, not with {flags.method}; leave it out."
        )
    return find_method("stec-byol" if flags.stec_base == "byol" else flags.method)


def check_recipe_name(method: Method, name: str | None) -> None:
    """Raise UserError unless `name` (None: any) is a data set of the project or a variant that the method publishes."""
    known = [*IMAGE_SIZE, *(variant for variant in method.published if variant not in IMAGE_SIZE)]
    if name is not None and name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise UserError(
            f"--recipe {name} is unknown for {method.name}; use one of {', '.join(known)}"
            + (f" (did you mean {near[0]}?)." if near else ".")
        )


def resolve(flags: argparse.Namespace, source: Source, out: Path) -> Config:
    """defaults < published recipe < flags, given the opened training data."""
    data = flags.recipe or (flags.data if flags.data in NAMES else "custom")
    size = flags.image_size
    if size is None and data == "custom" and (images := source.array()) is not None:
        size = images.shape[1]
    recipe = method_of(flags).recipe(data, size)
    recipe = with_settings(recipe, flags.set)
    check_recipe(recipe)
    if flags.backbone:
        recipe = replace(recipe, backbone=recipe.backbone.renamed(flags.backbone))
    recipe = replace(
        recipe,
        backbone=recipe.backbone.resolved(recipe.image_size),
        epochs=flags.epochs or recipe.epochs,
        batch_size=flags.batch_size or _fitting_batch(recipe.batch_size, len(source)),
    )
    spec = recipe.optimizer
    lr = flags.lr or spec.lr * recipe.batch_size / spec.lr_batch
    recipe = replace(recipe, optimizer=replace(spec, lr=lr, lr_batch=recipe.batch_size))
    kept = {**vars(flags), **{name: _absolute(getattr(flags, name)) for name in DATA_FLAGS}}
    as_given = {f.name: kept[f.name] for f in dataclasses.fields(Config) if f.name in kept}
    config = Config(
        **{
            **as_given,
            "recipe": recipe,
            "flags": kept,
            "out": out,
            "resume": flags.resume is not None,
            "track": tuple(filter(None, flags.track.split(","))),
        }
    )
    if config.resume:
        check_moved_data(config)
    return config


def _absolute(place: str | None) -> str | None:
    """A path from wherever the run is continued or evaluated; names of data sets and URLs as they are."""
    if place is None or place in NAMES or "://" in place or place.startswith("pipe:"):
        return place
    return os.path.abspath(os.path.expanduser(place))


def check_moved_data(config: Config) -> None:
    """Raise UserError if a resumed run was given data that would change its recipe (the views' size, the batch)."""
    saved = json.loads((config.out / "config.json").read_text())
    now = config.to_json()["recipe"]
    if config.data != saved["data"] and now != saved["recipe"]:
        changed = next(name for name in now if now[name] != saved["recipe"].get(name))
        raise UserError(
            f"--data {config.data}: these are not the images the run was started with, {saved['data']} (the recipe's "
            f"{changed} would change); give those, or start a new run."
        )


def check_recipe(recipe: TrainingRecipe) -> None:
    """Raise UserError for values of --set that no run could use, before anything is written."""
    spec = recipe.optimizer
    for key, value, allowed, right in (
        ("epochs", recipe.epochs, "1 or more", recipe.epochs >= 1),
        ("batch_size", recipe.batch_size, "2 or more", recipe.batch_size >= 2),
        ("image_size", recipe.image_size, f"8 to {MAX_IMAGE_SIZE} pixels", 8 <= recipe.image_size <= MAX_IMAGE_SIZE),
        ("optimizer.name", spec.name, "lars, sgd or adamw", spec.name in ("lars", "sgd", "adamw")),
        ("optimizer.lr", spec.lr, "a positive number", 0 < spec.lr < float("inf")),
        ("optimizer.weight_decay", spec.weight_decay, "0 or more", 0 <= spec.weight_decay < float("inf")),
        ("optimizer.momentum", spec.momentum, "0 to 1, without 1", 0 <= spec.momentum < 1),
    ):
        if not right:
            flag = "--image-size" if key == "image_size" else f"--set {key}="
            raise UserError(f"{flag}{' ' if flag == '--image-size' else ''}{value}: give {allowed}.")
    for name, value in asdict(recipe.options).items():
        if isinstance(value, float) and not (isfinite(value) and (value > 0 or "temperature" not in name)):
            raise UserError(
                f"--set options.{name}={value}: give a {'positive' if 'temperature' in name else 'finite'} number."
            )


def _fitting_batch(batch: int, samples: int) -> int:
    """The recipe's batch, or on a smaller set the largest power of two that leaves at least four steps an epoch."""
    if batch * 4 <= samples:
        return batch
    fitting = 1
    while fitting * 8 <= samples:
        fitting *= 2
    return min(batch, max(fitting, 2))


def with_settings(recipe: TrainingRecipe, settings: Sequence[str]) -> TrainingRecipe:
    """The recipe with each KEY=VALUE applied; KEY is a dotted path to a field, VALUE is read as the field's type."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write KEY=VALUE, e.g. options.temperature=0.2.")
        if key in ("method", "data"):
            raise UserError(f"--set {setting}: a recipe belongs to its method and data set; use --method or --recipe.")
        if key == "views":
            raise UserError(
                f"--set {setting}: name a view's field, e.g. views.{recipe.views.names[0]}.crop.scale=0.2,1.0, "
                "or views.views=NAME,NAME for some of them."
            )
        recipe = _set(recipe, key.split("."), text, key)
    return recipe


def _set(node: Any, path: list[str], text: str, key: str) -> Any:
    name = path[0]
    if isinstance(node, Mapping):
        return {**node, name: _read(text, type(node.get(name)) if name in node else Any, key)}
    if isinstance(node, Views) and name in (*node.names, "views"):
        return _set_views(node, path, text, key)
    names = _field_names(node)
    if name not in names:
        raise UserError(f"--set {key}: the recipe has no {name!r} there; use one of {', '.join(names) or 'none'}.")
    if len(path) > 1:
        return replace(node, **{name: _set(getattr(node, name), path[1:], text, key)})
    if inside := _field_names(getattr(node, name)):
        raise UserError(
            f"--set {key}: that is a group of values; set one of {', '.join(f'{key}.{field}' for field in inside)}."
        )
    return replace(node, **{name: _read(text, get_type_hints(type(node))[name], key)})


def _field_names(value: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []


def _set_views(node: Views, path: list[str], text: str, key: str) -> Views:
    """views.NAME.FIELD changes one view; views.views=NAME,NAME keeps these views alone."""
    if path == ["views"]:
        kept = [name.strip() for name in text.split(",")]
        if unknown := [name for name in kept if name not in node.names]:
            raise UserError(f"--set {key}: the recipe has no view {unknown[0]!r}; use some of {', '.join(node.names)}.")
        return replace(node, views=tuple(node[name] for name in kept))
    if len(path) == 1:
        raise UserError(f"--set {key}: name a field of the view, e.g. {key}.crop.scale=0.2,1.0.")
    changed = _set(node[path[0]], path[1:], text, key)
    return replace(node, views=tuple(changed if view.name == path[0] else view for view in node))


def _read(text: str, hint: Any, key: str) -> Any:
    """`text` as a value of the annotated type."""
    if get_origin(hint) in (types.UnionType, Union):
        options = [h for h in get_args(hint) if h is not type(None)]
        return None if text.lower() == "none" else _read(text, options[0], key)
    try:
        if hint is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if hint in (int, float, str):
            return hint(text)
        if get_origin(hint) is tuple:
            kind = get_args(hint)[0]
            return tuple(kind(part) for part in text.strip("()[] ").split(",") if part.strip())
        return json.loads(text)
    except (ValueError, KeyError) as error:
        raise UserError(f"--set {key}={text}: that is no {getattr(hint, '__name__', hint)}.") from error
