"""saccade segment RUN --data IMAGES --masks MASKS: what one linear layer on the frozen patches knows of every pixel.

Masks are PNGs of class numbers, called as their images are (a.jpg, a.png), 255 for pixels that do not count. IMAGES and
MASKS hold train/ and val/, or --val-data names images to test on, or a fifth is held out. The backbone sees the centre
square of each image, and its pixels alone count. Mean IoU and pixel accuracy stand beside the same network untrained,
the raw pixels of each patch, and the commonest class.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.program import command_parser
from saccade.base.text import printable
from saccade.eval import keep
from saccade.evaluation.evaluate import Settings
from saccade.evaluation.options import (
    add_machine_flags,
    add_model_flags,
    check_numbers,
    check_shared,
    chosen_settings,
    chosen_subject,
)
from saccade.evaluation.processes import on_processes
from saccade.evaluation.segmentation import (
    Labelled,
    RawPatches,
    commonest,
    iou,
    labelled,
    probe_for,
    probed,
    summary,
)
from saccade.evaluation.subject import Subject, untrained
from saccade.models.feature_map import FeatureMap
from saccade.pipelines.data import open_data
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.masks import IGNORED, Masks
from saccade.pipelines.sources.options import NO_LABELS, Options
from saccade.runs.ranks import Ranks

SHARE = 0.2  # of the images, held out where nobody made a split
EXAMPLES = {
    "outputs/RUN --data images --masks masks": "images/train, images/val, masks/train, masks/val",
    "weights.pth --data VOC/images --masks VOC/masks --classes 21 --image-size 224": "weights that other code wrote",
}


def parser() -> argparse.ArgumentParser:
    p = command_parser("python -m tools.segment", __doc__ or "", EXAMPLES)
    p.add_argument("run", metavar="RUN_OR_FILE", help="a run, a checkpoint, a file of weights or a timm name")
    what = p.add_argument_group("images and masks")
    what.add_argument("--data", required=True, metavar="IMAGES", help="a folder of images, or one of train/ and val/")
    what.add_argument("--masks", required=True, help="the folder of their masks, in folders of the same names")
    what.add_argument("--val-data", metavar="IMAGES", help="images to test on (default: val/ or test/ of --data)")
    what.add_argument("--val-masks", metavar="MASKS", help="their masks (default: those of --masks)")
    what.add_argument("--classes", type=int, help="how many there are (default: the training masks' highest + 1)")
    add_model_flags(p.add_argument_group("the model"))
    probe = p.add_argument_group("the probe")
    probe.add_argument("--epochs", type=int, help="default: 50")
    probe.add_argument("--lr", type=float, help="default: 0.01")
    probe.add_argument("--seed", type=int, default=0, help="of its start, its order and the intervals (default: 0)")
    machine = p.add_argument_group("machine")
    add_machine_flags(machine)
    machine.add_argument("--no-baselines", action="store_true", help="do not measure what it is to be read beside")
    return p


def main(argv: list[str] | None = None) -> int:
    """Check every mask, train the layer, print a table and, as the last line, one JSON object; kept with the run."""
    flags = parser().parse_args(argv)
    check_flags(flags)
    with on_processes(flags) as ranks:
        segment(flags, ranks)
    return 0


def segment(flags: argparse.Namespace, ranks: Ranks) -> None:
    s, began = chosen_settings(flags, ranks), time.perf_counter()
    subject = ranks.first_on_each_node("opening the backbone", lambda: chosen_subject(flags, flags.run))
    patches = FeatureMap(subject.backbone)
    shape = patches.shape(subject.image_size, len(subject.mean))
    train, test = ranks.first_on_each_node("opening the images", lambda: both(flags, subject))
    classes = flags.classes or train.classes
    if classes < 2:
        raise UserError(f"{train.of.folder}: the masks hold class 0 alone beside {IGNORED}, which does not count.")
    probe, said = probe_for(s, len(train.rows))
    counts, loss = probed(patches, shape, subject, train, test, classes, probe, s)
    beside = {} if flags.no_baselines else baselines(subject, shape, train, test, classes, s)
    result = {
        "protocol": "segment",
        **summary(counts, s.seed),
        "iou": [None if np.isnan(value) else round(float(value), 2) for value in iou(counts)],
        "classes": classes,
        "n_train": len(train.rows),
        "n_test": len(counts.true),
        "backbone": subject.architecture,
        "network": subject.network,
        "image_size": subject.image_size,
        "grid": shape[:2],
        "features": shape[2],
        "pixels_counted": int(counts.true.sum()),
        "epochs": probe.epochs,
        "train_loss": round(loss, 4),
        "unreadable": len(train.source.known_bad) + len(test.source.known_bad),
        "seed": s.seed,
        "deviations": said,
        "beside": beside,
        "seconds": round(time.perf_counter() - began, 2),
    }
    print_table(result, subject, train, test)
    if subject.folder and ranks.main:
        keep(result, subject.folder, "segment", flags)
    print(json.dumps(result))


def check_flags(flags: argparse.Namespace) -> None:
    check_shared(flags)
    check_numbers(flags, ("epochs",), least=1)
    check_numbers(flags, ("seed",), least=0)
    if flags.classes is not None and not 2 <= flags.classes <= IGNORED:
        raise UserError(f"--classes {flags.classes}: give 2 to {IGNORED}, of which {IGNORED} in a mask is none.")
    if flags.lr is not None and not 0 < flags.lr < float("inf"):
        raise UserError(f"--lr {flags.lr} is no learning rate; give a positive number.")


def both(flags: argparse.Namespace, subject: Subject) -> tuple[Labelled, Labelled]:
    """The training and the test images with their masks, every mask checked."""
    channels = len(subject.mean)
    options = Options(labels=NO_LABELS, channels=None if channels == 3 else channels)
    train, test = open_data(flags.data, flags.val_data, options=options)
    if test is None:
        train, test = held_out(train, flags.seed)
    images, masks = Path(flags.data).expanduser(), Path(flags.masks).expanduser()
    training = Masks(masks, train, images)
    if flags.val_data or flags.val_masks:
        images = Path(flags.val_data or flags.data).expanduser()
        masks = Path(flags.val_masks or flags.masks).expanduser()
    testing = Masks(masks, test, images)
    for source in {id(s): s for s in (train, test)}.values():
        source.account.show()
    first = labelled(training, subject.image_size, flags.classes, "--classes")
    told = "--classes" if flags.classes else "as many as the training masks hold"
    return first, labelled(testing, subject.image_size, flags.classes or first.classes, told)


def held_out(source: Source, seed: int) -> tuple[Source, Source]:
    """(the others, a fifth of them, by seed)"""
    kept = max(1, round(SHARE * len(source)))
    if len(source) < 2:
        raise UserError(f"{source.name} has one image; a probe needs others to test on.")
    rows = np.random.default_rng(seed).permutation(len(source))
    source.account.guess(
        f"no validation split lies beside {source.name}: {kept:,} of its images are held out to test on; --val-data "
        "names others"
    )
    test, train = np.sort(rows[:kept]), np.sort(rows[kept:])
    return source.subset(train, f"{source.name}, without those held out"), source.subset(
        test, f"{source.name}, held out"
    )


def baselines(
    subject: Subject, shape: tuple[int, int, int], train: Labelled, test: Labelled, classes: int, s: Settings
) -> dict[str, Any]:
    """The same of what it is to be read beside."""
    probe, _ = probe_for(s, len(train.rows))
    found = {"commonest class": summary(commonest(train, test, classes), s.seed)}
    raw = RawPatches(shape[:2], subject.image_size)
    width = len(subject.mean) * raw.cell**2
    found["raw pixels"] = summary(probed(raw, (*shape[:2], width), subject, train, test, classes, probe, s)[0], s.seed)
    plain = untrained(subject)
    if plain is not None:
        counts, _ = probed(FeatureMap(plain), shape, subject, train, test, classes, probe, s)
        found["untrained"] = summary(counts, s.seed)
    return found


def print_table(result: dict[str, Any], subject: Subject, train: Labelled, test: Labelled) -> None:
    height, width = result["grid"]
    rows = [
        ("backbone", f"{subject.name}: {result['backbone']}, {result['network']} network"),
        *(("read as", line) for line in subject.read),
        ("patches", f"{height} x {width}, {result['features']} features, of {result['image_size']} px"),
        ("train on", f"{train.source.name}: {result['n_train']} images, {result['classes']} classes"),
        ("test on", f"{test.source.name}: {result['n_test']} images, {result['pixels_counted']:,} pixels that count"),
        ("shown", f"the centre squares, {shown_share(test):.1%} of the test images' pixels"),
        ("IoU", ", ".join(f"{k}: {'-' if v is None else f'{v:.1f}'}" for k, v in enumerate(result["iou"]))),
    ]
    ignored = [(part, len(data.of) - len(data.rows)) for part, data in (("training", train), ("test", test))]
    rows += [
        ("left out", f"{count} {part} images, unreadable or all of them {IGNORED}") for part, count in ignored if count
    ]
    rows += [("departs", text) for text in result["deviations"]]
    print("\n".join(f"{name:>10}  {printable(text)}" for name, text in rows))
    print(f"\n{'':>20}{'mean IoU %':>11}  {'95 % interval':<17}{'pixels right %':>14}  95 % interval")
    for name, found in {"this backbone": result, **result["beside"]}.items():
        cells = []
        for key in ("miou", "pixel_accuracy"):
            low, high = found[key]["interval"]
            cells += [found[key]["value"], f"{low:.2f} to {high:.2f}"]
        print(f"{name:>20}{cells[0]:>11.2f}  {cells[1]:<17}{cells[2]:>14.2f}  {cells[3]}")
    print(f"\n{result['seconds']} s")


def shown_share(data: Labelled) -> float:
    sizes = np.array([data.source.size(int(i)) for i in data.rows[:1000]])
    return float((sizes.min(1) ** 2).sum() / sizes.prod(1).sum())


if __name__ == "__main__":
    run_command("tools.segment", main)
