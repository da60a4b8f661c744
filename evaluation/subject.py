"""What is evaluated: the backbone of a run, of one of its checkpoints, or of any timm checkpoint file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.losses.registry import methods
from saccade.models.backbone import BackboneSpec, create_backbone, feature_size, load_backbone
from saccade.models.layouts import load_foreign, weights_in
from saccade.pipelines.sources.decode import ValueRange
from saccade.pipelines.sources.options import PLAIN, Options, read_value_range
from saccade.runs.checkpoint import checkpoints, holds_run, newest_whole, read_checkpoint
from saccade.runs.initial import timms_own
from saccade.runs.record import read_record

PREFIXES = {"student": "student.backbone.", "teacher": "teacher.network.backbone."}
CLASSIFIER = "objective.classifier."


@dataclass(frozen=True)
class Run:
    """What config.json says of a run, as far as evaluating it needs."""

    data: str
    val_data: str | None
    data_dir: str
    method: str
    recipe_data: str  # the data set whose recipe it followed
    batch_size: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    backbone: BackboneSpec
    exported: str  # the network whose backbone it exports: "teacher" where the method's paper evaluates that
    protocol: str = "knn"  # by which its recipe's paper evaluates
    options: Options = PLAIN  # how its data was read


@dataclass(frozen=True)
class Subject:
    """A backbone in eval mode on the CPU, and how its images must look. `network`: student, teacher, given (no run)."""

    name: str
    backbone: nn.Module
    architecture: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    network: str = "given"
    run: Run | None = None
    checkpoint: Path | None = None  # of the run: the newest, or the one that was asked for
    read: tuple[str, ...] = ()  # of a foreign file: its layout, and what was taken for granted
    classifier: Mapping[str, Tensor] = field(default_factory=dict)  # of a foreign file that holds one
    spec: BackboneSpec | None = None  # by which timm makes it
    folder: Path | None = None  # of the run
    value_range: ValueRange | None = None  # of the deep images it was trained on

    def at(self, image_size: int | None) -> Subject:
        """The same for images of another size; UserError if the backbone cannot take them."""
        changed = replace(self, image_size=image_size or self.image_size)
        try:
            feature_size(self.backbone, changed.image_size, len(self.mean))
        except AssertionError as error:  # how timm's transformers refuse a size
            raise UserError(
                f"{self.architecture} cannot take images of {changed.image_size} pixels ({error})."
            ) from error
        return changed


def read_run(folder: Path) -> Run:
    """What evaluating needs of a run's record."""
    config = read_record(folder)
    try:
        recipe = config["recipe"]
        return Run(
            config["data"],
            config["val_data"],
            config["data_dir"],
            recipe["method"],
            recipe["data"],
            recipe["batch_size"],
            recipe["image_size"],
            tuple(recipe["views"]["mean"]),
            tuple(recipe["views"]["std"]),
            BackboneSpec(**recipe["backbone"]),
            _exported(config),
            str(recipe.get("protocol", "knn")),
            _options(config),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: its config.json cannot be read ({type(error).__name__}: {error}).") from error


def _exported(config: Mapping[str, Any]) -> str:
    """As the record says, which knows the user's own methods too; one of before 2026-11-25 does not say."""
    method = methods().get(config["recipe"]["method"])
    usual = "teacher" if method and method.objective.evaluate_teacher else "student"
    return "teacher" if config.get("exported", usual) == "teacher" else "student"


def _options(config: Mapping[str, Any]) -> Options:
    """How a run's data was read: what its flags said, and the range of values that its images told."""
    flags = config.get("flags", {})
    told = {name: flags.get(name) for name in ("labels", "image_key", "label_key", "channels")}
    return Options(**told, value_range=read_value_range(config.get("value_range") or flags.get("value_range")))


def open_subject(path: Path, backbone: str | None = None, stem: str = "auto", image_size: int | None = None) -> Subject:
    """From a run folder, a checkpoint below one, a file of weights that other code wrote (models/layouts.py), or a
    timm name, whose own weights are fetched."""
    if not path.exists() and timm.is_model(str(path)):
        subject = _of_timm(str(path), image_size)
    elif not path.exists():
        raise UserError(f"{path}: no such run folder or checkpoint, nor a model that timm knows.")
    elif path.is_dir() and weights_in(path) == path:
        subject = _run_folder(path)
    elif path.parent.name == "checkpoints" and (path.parent.parent / "config.json").exists():
        subject = _run_checkpoint(path.parent.parent, path)
    elif path.name == "backbone.safetensors" and (path.parent / "backbone.json").exists():
        subject = _run_folder(path.parent)
    else:
        subject = _foreign(path, backbone, stem, image_size)
    return subject.at(image_size)


def with_encoder(subject: Subject, wanted: str) -> tuple[Subject, str | None]:
    """The subject with the network a protocol asks for, and a sentence where there is none and another is evaluated."""
    if wanted in ("method", subject.network) or subject.run is None:
        return subject, None
    weights = _part(_learner(subject.checkpoint), PREFIXES[wanted]) if subject.checkpoint else {}
    if not weights:
        return (
            subject,
            f"the protocol evaluates the {wanted}, of which the run holds no weights; this is its {subject.network}",
        )
    backbone = create_backbone(subject.run.backbone, subject.run.image_size)
    _load(backbone, weights, subject.checkpoint)
    return replace(subject, backbone=backbone.eval(), network=wanted), None


def classifier_weights(subject: Subject) -> Mapping[str, Tensor]:
    """Of the classifier that was trained beside the backbone; empty where there is none."""
    return subject.classifier or (_part(_learner(subject.checkpoint), CLASSIFIER) if subject.checkpoint else {})


def untrained(subject: Subject, seed: int = 0) -> nn.Module | None:
    """The same network with random weights, in eval mode: what training is worth is the difference. None where it is
    not known how it is made."""
    spec = subject.run.backbone if subject.run else subject.spec
    if spec is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_backbone(spec, subject.image_size).eval()


def online_classifier(subject: Subject) -> nn.Linear:
    """The classifier that was trained beside the backbone."""
    weights = classifier_weights(subject)
    if not weights:
        raise UserError(
            f"{subject.name} has no online classifier in a checkpoint; S-TEC and SimCLR train one when the training "
            "data has labels. Use --protocol linear or knn instead."
        )
    head = nn.Linear(weights["weight"].shape[1], weights["weight"].shape[0])
    _load(head, weights, subject.checkpoint)
    return head


def _run_folder(folder: Path) -> Subject:
    run = read_run(folder) if (folder / "config.json").exists() else None
    newest = (checkpoints(folder) or [None])[-1]
    if (folder / "backbone.json").exists():
        backbone, description = load_backbone(folder)
        try:
            return Subject(
                str(folder),
                backbone,
                description["architecture"],
                description["image_size"],
                tuple(description["mean"]),
                tuple(description["std"]),
                run.exported if run else "given",
                run,
                newest,
                () if "checksum" in description else ("an export without a checksum: damage would not be noticed",),
                spec=BackboneSpec(description["architecture"], description["stem"], options=description["options"]),
                folder=folder,
                value_range=_range(description.get("value_range")) or (run.options.value_range if run else None),
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder / 'backbone.json'} lacks {error}; export the run again.") from error
    if run and holds_run(folder):
        return _run_checkpoint(folder, newest_whole(folder, partial(print, file=sys.stderr)))
    raise UserError(
        f"{folder} is no run folder: it needs backbone.safetensors with backbone.json, or config.json with "
        "checkpoints/."
    )


def _range(text: object) -> ValueRange | None:
    return read_value_range(text) if isinstance(text, str) else None


def _run_checkpoint(folder: Path, checkpoint: Path) -> Subject:
    """The exported network as it was at a checkpoint."""
    run = read_run(folder)
    backbone = create_backbone(run.backbone, run.image_size)
    _load(backbone, _part(_learner(checkpoint), PREFIXES[run.exported]), checkpoint)
    return Subject(
        str(checkpoint),
        backbone.eval(),
        run.backbone.name,
        run.image_size,
        run.mean,
        run.std,
        run.exported,
        run,
        checkpoint,
        spec=run.backbone,
        folder=folder,
    )


def _of_timm(name: str, image_size: int | None) -> Subject:
    usual = timm.get_pretrained_cfg(name)
    found = timms_own(name, image_size or (usual.input_size[1] if usual else 224), name)
    backbone = found.backbone.eval()
    said = (found.layout,)
    return Subject(name, backbone, name, found.image_size, found.mean, found.std, read=said, spec=found.spec)


def _foreign(path: Path, backbone: str | None, stem: str, image_size: int | None) -> Subject:
    """Weights that other code wrote, of a known layout or of timm's names."""
    found = load_foreign(path, backbone, stem, image_size)
    return Subject(
        str(path),
        found.backbone,
        found.spec.name,
        found.image_size,
        found.mean,
        found.std,
        read=(f"{found.layout}; {found.spec.name}, stem {found.spec.stem}", *found.said),
        classifier=found.classifier,
        spec=found.spec,
    )


def _learner(checkpoint: Path) -> Mapping[str, Tensor]:
    return read_checkpoint(checkpoint)["learner"]


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _load(module: nn.Module, weights: Mapping[str, Tensor], origin: Path | None) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        if "pos_embed" in str(error):
            raise UserError(
                f"{origin}: the weights are those of another image size (their position embedding has another length); "
                "leave out --image-size, or give the one they were trained with."
            ) from error
        first = " ".join(str(error).split())[:300]
        raise UserError(
            f"{origin}: the weights are not those of the model ({first}); check --backbone and --stem."
        ) from error
