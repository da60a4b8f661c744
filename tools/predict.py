"""python -m tools.predict DATA --from FINETUNED: what each image is, and how sure that is, as a CSV."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.files import write_csv
from saccade.base.program import command_parser
from saccade.base.text import printable
from saccade.evaluation.classifier import Classifier, read_classifier
from saccade.evaluation.intervals import wilson
from saccade.evaluation.options import (
    Usual,
    add_machine_flags,
    add_model_flags,
    add_overwrite_flag,
    check_out,
    check_shared,
    chosen_settings,
    chosen_subject,
    shown_to,
)
from saccade.evaluation.processes import on_processes
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.open import open_dataset
from saccade.pipelines.sources.options import add_flags
from saccade.runs.ranks import Ranks
from saccade.tools.tuning import Fitted, logits

SHOWN = 5  # images whose answers are printed too
EXAMPLES = {
    "NEW_PHOTOS --from outputs/FINETUNED --out predictions.csv": "name,label,confidence of each image",
    "PHOTOS --split val --from outputs/FINETUNED": "of one split; where it has labels, how often that is right",
}


def parser() -> argparse.ArgumentParser:
    command = command_parser("python -m tools.predict", main.__doc__ or "", EXAMPLES)
    command.add_argument("data", metavar="DATA", help="images, as --data of saccade train takes them")
    command.add_argument(
        "--from", dest="start", required=True, metavar="FOLDER", help="what saccade finetune has written"
    )
    command.add_argument("--out", default=Usual("predictions.csv"), help="the table (default: predictions.csv)")
    add_overwrite_flag(command)
    command.add_argument("--split", help="only this split (default: all)")
    command.add_argument("--data-dir", default="data", help="where cifar10, cifar100 and stl10 lie (default: data)")
    add_flags(command)
    add_model_flags(command.add_argument_group("the model"))
    add_machine_flags(command.add_argument_group("machine"))
    return command


def main(argv: list[str] | None = None) -> int:
    """Write name, label and confidence of every image: of 100 images that are said with 80 %, about 80 are right, as
    far as they are like those it was tested on. Images that cannot be read are left out, and said."""
    flags = parser().parse_args(argv)
    check_shared(flags)
    check_out(flags, out=(".csv",))
    with on_processes(flags) as ranks:
        predict(flags, ranks)
    return 0


def predict(flags: argparse.Namespace, ranks: Ranks) -> None:
    subject = ranks.first_on_each_node("opening the backbone", lambda: chosen_subject(flags, flags.start))
    classifier = read_classifier(subject.folder) if subject.folder else None
    if classifier is None:
        raise UserError(f"--from {flags.start}: it has no classifier; make one with saccade finetune.")
    options = replace(shown_to(subject, flags), data_dir=flags.data_dir)
    data = ranks.first_on_each_node("opening the images", lambda: open_dataset(flags.data, options, flags.split))
    fitted = Fitted(subject.backbone, classifier.layer())
    several = len(data.splits) > 1
    lines = [["name", *(["split"] if several else []), "label", "confidence"]]
    seen = bool(subject.folder and trained_on(subject.folder, flags.data))
    for split, source in data.splits.items():
        if ranks.main:
            source.account.show()
        if source.channels != len(subject.mean):
            raise UserError(f"{subject.name} takes {len(subject.mean)} channels, {source.name} has {source.channels}.")
        sure, which = logits(fitted, source, subject, chosen_settings(flags, ranks)).softmax(1).max(1)
        for i in range(len(source)):
            if source.name_of(i) not in source.known_bad:
                row = [f"{classifier.classes[int(which[i])]}", f"{float(sure[i]):.4f}"]
                lines.append([printable(source.key_of(i)), *([split] if several else []), *row])
        print(printable(f"{split}: {told(source, which, sure, classifier, seen)}"))
    ranks.on_main("writing the table", lambda: write_csv(Path(flags.out), lines))
    if ranks.main and len(lines) - 1 <= SHOWN:
        for name, *_, label, confidence in lines[1:]:
            print(printable(f"  {name}: {label}, {100 * float(confidence):.1f} % sure"))
    print(printable(f"{flags.out}: {len(lines) - 1:,} images"))


def trained_on(folder: Path, data: str) -> bool:
    """Whether the classifier's record says that it was made of these very images."""
    try:
        recorded = json.loads((folder / "finetuned.json").read_text(encoding="utf-8"))["data"]
        return os.path.realpath(recorded) == os.path.realpath(data)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def told(source: Source, which: torch.Tensor, sure: torch.Tensor, classifier: Classifier, seen: bool = False) -> str:
    """A line on what was found, and on how often it is right where the images have labels of these classes. seen: some
    of them it was trained on."""
    line = f"{len(source):,} images, {100 * float(sure.mean()):.1f} % sure on average"
    if source.known_bad:
        line += f"; {len(source.known_bad)} unreadable ones left out, such as {next(iter(source.known_bad))}"
    if source.labels is None or not (source.labels >= 0).any():
        return line
    place = {name: k for k, name in enumerate(classifier.classes)}
    names = source.classes or tuple(map(str, range(int(source.labels.max()) + 1)))
    number = np.array([*(place.get(name, -1) for name in names), -1])[source.labels]
    known = number >= 0
    if source.known_bad:
        known &= np.array([source.name_of(i) not in source.known_bad for i in range(len(source))])
    if not known.any():
        return f"{line}; its labels are of other classes"
    right = int((which.numpy()[known] == number[known]).sum())
    value, low, high = wilson(right, int(known.sum()))
    line += f"; {value:.1f} % right (95 %: {low:.1f} to {high:.1f}) of {int(known.sum()):,} with a label"
    return line + ("; it was trained on some of these, which it knows better than others" if seen else "")


if __name__ == "__main__":
    run_command("tools.predict", main)
