"""The flags of every command that looks through a frozen backbone: which one, how images are shown to it, where."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch

from saccade.base.errors import UserError
from saccade.evaluation.evaluate import Settings
from saccade.evaluation.subject import Subject, open_subject
from saccade.models.backbone import STEMS, known_backbone
from saccade.pipelines.build import executors, find_executor
from saccade.pipelines.sources.options import Options, options_of
from saccade.runs.ranks import ONE, PATIENCE, Ranks

DEFAULT = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"}  # ImageNet's, for the sentence
_OF_SOME = ("seed", "epochs", "lr", "k", "batch_norm_drift", "crop_pct", "interpolation", "keep_features")


def add_model_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--backbone", help="timm name of the model in a file, where its weights do not tell, or path/to/file.py:NAME"
    )
    group.add_argument("--stem", default="auto", help=f"stem of that model: {', '.join(STEMS)} (default: its layout's)")
    group.add_argument("--image-size", type=int, help="pixels of the images it is shown (default: the run's, or its)")
    group.add_argument(
        "--mean", metavar="R,G,B", help="subtracted from pixels of 0 to 1 (default: the run's, or timm's)"
    )
    group.add_argument("--std", metavar="R,G,B", help="pixels are divided by it (default: the run's, or timm's)")


def add_crop_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--crop-pct", type=float, help="share of the short side that the centre crop takes, up to 1")
    group.add_argument("--interpolation", choices=("bilinear", "bicubic"), help="of that crop's resize")


def add_machine_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    group.add_argument(
        "--precision", default="fp32", choices=("fp32", "bf16", "fp16"), help="of the backbone (default: fp32)"
    )
    group.add_argument("--batch-size", type=int, default=256, help="images per forward pass (default: 256)")
    group.add_argument(
        "--pipeline", default="auto", help=f"executor: {', '.join(executors())}, or your own (default: auto)"
    )
    group.add_argument("--workers", type=int, help="decoding processes or threads (default: from the CPUs)")
    group.add_argument(
        "--rank-timeout",
        type=float,
        default=PATIENCE,
        metavar="SECONDS",
        help="several processes: end all when one has stood still for so long (default: 600)",
    )


def check_shared(flags: argparse.Namespace) -> None:
    """Raise UserError for values of those flags that no data or machine could make right."""
    check_machine(flags)
    check_numbers(flags, ("image_size",), least=1)
    crop = getattr(flags, "crop_pct", None)
    if crop is not None and not 0 < crop <= 1:
        raise UserError(f"--crop-pct {crop}: give a share above 0, up to 1.")
    if flags.stem not in ("auto", *STEMS):
        raise UserError(f"--stem {flags.stem} is unknown; use auto or one of {', '.join(STEMS)}.")


def check_machine(flags: argparse.Namespace) -> None:
    """The same of the machine's alone."""
    find_executor(flags.pipeline)
    check_numbers(flags, ("batch_size",), least=1)
    check_numbers(flags, ("workers",), least=0)
    if not 1 <= flags.rank_timeout <= 1e6:
        raise UserError(f"--rank-timeout {flags.rank_timeout} is no time to wait; give 1 to 1000000 seconds.")
    if flags.device not in ("auto", "cpu") and not flags.device.startswith("cuda"):
        raise UserError(f"--device {flags.device} is unknown; use auto, cpu or cuda.")
    if flags.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {flags.device}: no usable GPU was found here; use --device cpu or leave it out.")
    if flags.precision == "fp16" and not flags.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("--precision fp16 needs a GPU; use fp32 or bf16 on a CPU.")


def check_numbers(flags: argparse.Namespace, names: tuple[str, ...], least: int) -> None:
    """UserError for a number that is given and smaller."""
    for name in names:
        value = getattr(flags, name)
        if value is not None and value < least:
            wrong = {0: "is negative", 1: "is not positive"}.get(least, "is too few")
            raise UserError(f"--{name.replace('_', '-')} {value} {wrong}; give {least} or more.")


class Usual(str):
    """The name of a file that the user did not give."""


def add_overwrite_flag(group: argparse._ActionsContainer) -> None:
    group.add_argument("--overwrite", action="store_true", help="replace a file of that name (default: refuse)")


def check_out(flags: argparse.Namespace, **endings: tuple[str, ...]) -> None:
    """UserError where a file that a flag names cannot be written, is there, or does not end as it must; a `Usual` name
    that is taken gets a number."""
    for name, allowed in endings.items():
        value = getattr(flags, name)
        if not value:
            continue
        flag, folder = f"--{name.replace('_', '-')} {value}", Path(value).absolute().parent
        if Path(value).suffix not in allowed or not folder.is_dir():
            raise UserError(f"{flag}: give a file ending in {' or '.join(allowed)} in a folder that exists.")
        if Path(value).is_dir():
            raise UserError(f"{flag} is a folder; give the name of a file.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{flag}: the folder {folder} cannot be written.")
        if isinstance(value, Usual) and not flags.overwrite:
            setattr(flags, name, free_name(value))
        elif not flags.overwrite and os.path.lexists(value):
            raise UserError(f"{flag} exists already; give another name, or --overwrite.")


def free_name(name: str) -> str:
    """The name, or where a file has it name-2, name-3 and so on."""
    path, number = Path(name), 1
    while os.path.lexists(name):
        number += 1
        name = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
    return name


def shown_to(subject: Subject, flags: argparse.Namespace) -> Options:
    """How the flags have a data set read; its deep images as the backbone saw those of its training."""
    options = options_of(flags)
    if flags.value_range is None and subject.value_range is not None:
        return replace(options, value_range=replace(subject.value_range, asked=False))
    return options


def chosen_subject(flags: argparse.Namespace, place: str) -> Subject:
    """The backbone at `place` (a run folder, a checkpoint, a file of weights, a timm name), as the flags have it."""
    if not place.strip():
        raise UserError("the backbone's place is empty; give a run folder, a file of weights or a timm name.")
    backbone = flags.backbone and known_backbone(flags.backbone)
    subject = open_subject(Path(place).expanduser(), backbone, flags.stem, flags.image_size)
    if backbone and subject.run is not None and subject.architecture != backbone:
        raise UserError(f"--backbone {backbone}: {subject.name} is of a {subject.architecture}; leave the flag out.")
    given = {name: _each(flags, name, len(subject.mean)) for name in ("mean", "std") if getattr(flags, name)}
    return replace(subject, **given)


def chosen_device(flags: argparse.Namespace) -> str:
    return flags.device if flags.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def chosen_settings(flags: argparse.Namespace, ranks: Ranks = ONE) -> Settings:
    """Those of `Settings` that a command has flags for."""
    return Settings(
        chosen_device(flags) if ranks.device is None else str(ranks.device),
        flags.batch_size,
        flags.precision,
        flags.pipeline,
        flags.workers,
        progress=ranks.main,
        ranks=ranks,
        **{name: getattr(flags, name) for name in _OF_SOME if hasattr(flags, name)},
    )


def _each(flags: argparse.Namespace, name: str, channels: int) -> tuple[float, ...]:
    """A flag's numbers, one for each channel: of red, green and blue."""
    text = getattr(flags, name)
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != channels or (name == "std" and min(values) <= 0):
        numbers = f"three numbers R,G,B, such as {DEFAULT[name]}" if channels == 3 else f"{channels} numbers"
        raise UserError(f"--{name} {text}: give {numbers}.")
    return values
