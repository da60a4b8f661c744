"""python -m tools.finetune DATA --from RUN: a classifier of your images out of a backbone, and how good it is."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade import __version__
from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.base.machine import git_commit, hardware, versions
from saccade.base.program import command_parser
from saccade.base.text import printable
from saccade.evaluation.calibration import best_temperature, calibration_error, crossed
from saccade.evaluation.classifier import Classifier, write_classifier
from saccade.evaluation.evaluate import Settings
from saccade.evaluation.finetune import few_and_rest
from saccade.evaluation.intervals import wilson
from saccade.evaluation.options import (
    add_machine_flags,
    add_model_flags,
    check_numbers,
    check_shared,
    chosen_settings,
    chosen_subject,
    shown_to,
)
from saccade.evaluation.processes import on_processes
from saccade.evaluation.readable import readable
from saccade.evaluation.subject import Subject
from saccade.models.backbone import BackboneSpec, create_backbone, export_backbone, known_backbone
from saccade.models.layouts import IMAGENET
from saccade.pipelines.data import open_data
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.holdout import FEW, hold_out, once
from saccade.pipelines.sources.options import add_flags
from saccade.runs.folder import default_folder
from saccade.runs.ranks import Ranks
from saccade.runs.record import published
from saccade.tools.tuning import FOLDS, Fitted, Recipe, fit, in_folds, logits, recipe_of

EXAMPLES = {
    "PHOTOS --labels labels.csv --from outputs/RUN": "all of the network, on the images that labels.csv names",
    "PHOTOS --from outputs/RUN --head-only": "a classifier on fixed features, in seconds",
    "cifar10 --from outputs/RUN --fraction 0.01": "on 1 % of the labels of each class, drawn by --seed",
    "PHOTOS --from none --backbone resnet18 --image-size 64": "from random weights: what pre-training is worth",
}


def parser() -> argparse.ArgumentParser:
    command = command_parser("python -m tools.finetune", main.__doc__ or "", EXAMPLES)
    command.add_argument("data", metavar="DATA", help="labelled images, as --data of saccade train takes them")
    command.add_argument(
        "--from", dest="start", required=True, metavar="RUN", help="a run, a file of weights, a timm name, or none"
    )
    command.add_argument("--val-data", help="images to test on (default: a split beside DATA, or folds, or a fifth)")
    command.add_argument("--data-dir", default="data", help="where cifar10, cifar100 and stl10 lie (default: data)")
    add_flags(command)
    how = command.add_argument_group("how")
    how.add_argument("--head-only", action="store_true", help="leave the backbone as it is: a linear classifier")
    how.add_argument("--fraction", type=float, default=1.0, help="of each class's labels, such as 0.01 (default: 1)")
    how.add_argument("--shots", type=int, help="or so many labels of each class")
    how.add_argument("--folds", type=int, help=f"where no images are left to test on (default: {FOLDS} up to {FEW:,})")
    how.add_argument("--epochs", type=int, help="(default: 30 or more, so that there are 300 steps; a classifier: 100)")
    how.add_argument("--lr", type=float, help="of the backbone; of a new classifier ten times that (default: 3e-4)")
    how.add_argument("--seed", type=int, default=0, help="of labels, folds, order and crops (default: 0)")
    how.add_argument("--out", help="the folder (default: outputs/finetune-DATA-TIME)")
    add_model_flags(command.add_argument_group("the model"))
    add_machine_flags(command.add_argument_group("machine"))
    return command


def main(argv: list[str] | None = None) -> int:
    """Train a backbone and a new classifier on labelled images and say, with a 95 % interval, how often it is right:
    on the images of a split, or, where there is none, in five folds, each tested by a network that never saw it. The
    folder is what saccade predict and saccade export take. Stopped, the same command goes on."""
    flags = parser().parse_args(argv)
    check(flags)
    with on_processes(flags) as ranks:
        finetune(flags, ranks)
    return 0


def finetune(flags: argparse.Namespace, ranks: Ranks) -> None:
    settings, began = chosen_settings(flags, ranks), time.perf_counter()
    subject = ranks.first_on_each_node("opening the backbone", lambda: start(flags))
    train, test = ranks.first_on_each_node("opening the images", lambda: labelled(flags, subject, ranks.main))
    out = Path(flags.out or ranks.of_main("the folder", str(default_folder("finetune", flags.data))))
    classes = _classes(train, test)
    recipe = recipe_of(flags, len(train))
    print(f"{'from':>10}  {printable(subject.name)}: {subject.architecture}, {subject.image_size} px")
    print(printable(f"{'labels':>10}  {len(train):,} images, {len(classes)} classes; {recipe.told(len(train))}"))
    fitted, answers, truth, tested_on = tried(recipe, subject, train, test, len(classes), settings, flags)
    temperature = best_temperature(answers, truth)
    found = numbers(answers, truth)
    record = {
        "data": flags.data,
        "from": flags.start,
        "how": recipe.told(len(train)),
        "labels": len(train),
        "tested_on": tested_on,
        **found,
        "classes": list(classes),
        "temperature": temperature,
        "fraction": flags.fraction,
        "shots": flags.shots,
        "seed": flags.seed,
        "epochs": recipe.epochs,
        "seconds": round(time.perf_counter() - began, 1),
        "version": __version__,
        "commit": git_commit(),
        "versions": versions(),
        "hardware": hardware(),
    }
    subject = replace(subject, value_range=train.reader.value_range or subject.value_range)
    ranks.on_main("writing the folder", lambda: write(out, subject, fitted, classes, temperature, record))
    low, high = found["interval"]
    print(printable(f"{'tested on':>10}  {tested_on}"))
    print(f"{'accuracy':>10}  {found['top1']:.1f} % (95 %: {low:.1f} to {high:.1f}); chance {found['chance']:.1f} %")
    print(
        f"{'confidence':>10}  {found['confidence']:.1f} % on average, {found['calibration_error']:.1f} % off "
        f"(temperature {temperature:g}; measured on halves, each at the temperature of the other)"
    )
    print(printable(f"{'folder':>10}  {out}   saccade predict DATA --from {quote(str(out))}"))


def check(flags: argparse.Namespace) -> None:
    """Raise UserError for values that no data could make right."""
    check_shared(flags)
    check_numbers(flags, ("epochs", "shots"), least=1)
    check_numbers(flags, ("folds",), least=2)
    check_numbers(flags, ("seed",), least=0)
    if not 0 < flags.fraction <= 1:
        raise UserError(f"--fraction {flags.fraction}: give a share above 0, up to 1.")
    if flags.shots and flags.fraction != 1:
        raise UserError(f"--shots {flags.shots} and --fraction {flags.fraction} both choose labels; give one of them.")
    if flags.lr is not None and not 0 < flags.lr < float("inf"):
        raise UserError(f"--lr {flags.lr} is no learning rate; give a positive number.")
    if flags.out and (Path(flags.out) / "finetuned.json").exists():
        raise UserError(f"--out {flags.out} already holds a fine-tuned network; remove it, or give another folder.")


def start(flags: argparse.Namespace) -> Subject:
    """The backbone to start from; "none": random weights of --backbone."""
    if flags.start != "none":
        return chosen_subject(flags, flags.start)
    if not flags.backbone:
        raise UserError("--from none needs --backbone NAME, and --image-size where it is not 224.")
    size, name = flags.image_size or 224, known_backbone(flags.backbone)
    spec = BackboneSpec(name, flags.stem).of_channels(flags.channels or 3).resolved(size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(flags.seed)
        backbone = create_backbone(spec, size)
    channels = flags.channels or 3
    mean, std = IMAGENET if channels == 3 else ((0.5,) * channels, (0.25,) * channels)
    return Subject("random weights", backbone.eval(), name, size, mean, std, spec=spec)


def labelled(flags: argparse.Namespace, subject: Subject, heard: bool = True) -> tuple[Source, Source | None]:
    """The images to train on, as many as were asked for, and those to test on where there are some; heard: what was
    guessed is printed."""
    train, test = open_data(flags.data, flags.val_data, flags.data_dir, labelled=True, options=shown_to(subject, flags))
    for source in filter(None, (train, test)):
        if heard:
            source.account.show()
        if source.labels is None:
            raise UserError(
                f"{source.name} has no labels; give --labels CSV, or a folder with a sub-folder for each class."
            )
        if source.channels != len(subject.mean):
            raise UserError(f"{subject.name} takes {len(subject.mean)} channels, {source.name} has {source.channels}.")
    train = readable(once(train.labelled()))
    if len(np.unique(train.labels)) < 2:  # type: ignore[arg-type]
        raise UserError(f"{train.name} has labels of one class alone; a classifier needs two.")
    few, rest = few_and_rest(train, flags.fraction, flags.shots, flags.seed)
    if test is None and not flags.folds:
        return few, rest  # their labels are there: more than folds of the few could tell
    return few, test and readable(test.labelled())


def _classes(train: Source, test: Source | None) -> tuple[str, ...]:
    high = max(int(source.labels.max()) for source in (train, test) if source is not None)  # type: ignore[union-attr]
    return train.classes or tuple(map(str, range(high + 1)))


def tried(
    recipe: Recipe, subject: Subject, train: Source, test: Source | None, classes: int, s: Settings, flags: Any
) -> tuple[Fitted, Tensor, Tensor, str]:
    """The network; logits and labels of images that it, or one like it, was not trained on; and which those are."""
    if test is None and not flags.folds and len(train) > FEW:
        train, test, _ = hold_out(train, seed=flags.seed)
    if test is not None:
        if flags.folds:
            raise UserError(f"--folds {flags.folds}: there are images to test on, {test.name}; leave it out.")
        fitted = fit(recipe, subject, train, classes, s)
        return fitted, logits(fitted, test, subject, s), _labels(test), f"{len(test):,} images of {test.name}"
    folds = flags.folds or FOLDS
    alone = [train.class_name(k) for k, n in enumerate(np.bincount(_labels(train))) if n == 1]
    if alone:
        print(
            printable(f"{'note':>10}  one image alone has the label {', '.join(alone[:5])}: in folds it is never right")
        )
    print(
        f"{'folds':>10}  {folds} trainings on {folds - 1} of {folds} parts of the images, then one on all", flush=True
    )
    answers, kept = in_folds(recipe, subject, train, classes, s, folds)
    print("all labels", flush=True)
    fitted = fit(recipe, subject, train, classes, s)
    kept.remove()
    return fitted, answers, _labels(train), f"the {len(train):,} labelled images in {folds} folds"


def _labels(source: Source) -> Tensor:
    assert source.labels is not None
    return torch.from_numpy(source.labels)


def numbers(answers: Tensor, truth: Tensor) -> dict[str, Any]:
    """Of (M, C) logits and (M,) labels: accuracy in percent with its interval, chance, how sure, how surprised."""
    shares = crossed(answers, truth)
    right, images = int((answers.argmax(1) == truth).sum()), len(truth)
    top1, low, high = wilson(right, images)
    return {
        "top1": round(top1, 2),
        "interval": [round(low, 2), round(high, 2)],
        "right": right,
        "images": images,
        "chance": round(100 * float(truth.bincount().max()) / images, 2),  # always the commonest class
        "confidence": round(100 * float(shares.amax(1).mean()), 2),
        "calibration_error": calibration_error(shares, truth),
        "nll": round(float(F.nll_loss(shares.log(), truth)), 4),
        "nll_uncalibrated": round(float(F.cross_entropy(answers, truth)), 4),
    }


def write(
    out: Path, subject: Subject, fitted: Fitted, classes: tuple[str, ...], temperature: float, record: dict[str, Any]
) -> None:
    """The folder, finetuned.json last: where it is, all is."""
    assert subject.spec is not None
    said = {
        "mean": subject.mean,
        "std": subject.std,
        "classes": list(classes),
        "value_range": subject.value_range and str(subject.value_range),
        "method": "fine-tuned",
        "data": published(record["data"]),
    }
    spec = replace(subject.spec, options=dict(subject.spec.options))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made ({error.strerror}); give another folder.") from error
    for name, content in export_backbone(fitted.backbone, spec, subject.image_size, said).items():
        write_atomically(out / name, lambda file, content=content: file.write(content))
    head = fitted.head
    write_classifier(out, Classifier(head.weight.detach(), head.bias.detach(), classes, temperature))
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(out / "finetuned.json", lambda file: file.write(text.encode()))


if __name__ == "__main__":
    run_command("tools.finetune", main)
