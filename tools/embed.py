"""python -m tools.embed DATA --from RUN --out x.parquet: a vector of every image, with its name and class; --dense: one
of each of its patches."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from saccade import __version__
from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.program import command_parser
from saccade.base.text import printable
from saccade.evaluation.embeddings import ENDINGS, Block, arrow, names_file, write_embeddings
from saccade.evaluation.evaluate import Settings
from saccade.evaluation.feature_file import FeatureFile
from saccade.evaluation.features import extract
from saccade.evaluation.kept import key_of
from saccade.evaluation.options import (
    add_crop_flags,
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
from saccade.evaluation.subject import Subject
from saccade.models.backbone import RESIZE, shown_share
from saccade.models.feature_map import FeatureMap
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.open import open_dataset
from saccade.pipelines.sources.options import add_flags
from saccade.runs.ranks import Ranks

EXAMPLES = {
    "PHOTOS --from outputs/RUN --out photos.parquet": "name, split, class, label and vector of every image",
    "cifar10 --from resnet18.a1_in1k --split test --out x.npy": "timm's own weights; names beside it, in x.names.csv",
    "PHOTOS --labels labels.csv --from weights.pth --out photos.csv": "",
    "PHOTOS --from outputs/RUN --dense --out patches.npy": "(images, rows, columns, features) in float16: every patch",
}
ROWS, NUMBERS = 4096, 2**24  # of a block, at most


def parser() -> argparse.ArgumentParser:
    command = command_parser("python -m tools.embed", main.__doc__ or "", EXAMPLES)
    command.add_argument("data", metavar="DATA", help="images, labelled or not, as --data of saccade train takes them")
    command.add_argument(
        "--from",
        dest="start",
        required=True,
        metavar="RUN",
        help="a run, a checkpoint, a file of weights or a timm name",
    )
    command.add_argument("--out", required=True, help=f"the table, ending in {', '.join(ENDINGS)}")
    add_overwrite_flag(command)
    command.add_argument(
        "--dense",
        action="store_true",
        help="the features of every patch, (h, w, D) in float16: a ViT's patch tokens, a CNN's last map",
    )
    command.add_argument("--split", help="only this split (default: all)")
    command.add_argument("--data-dir", default="data", help="where cifar10, cifar100 and stl10 lie (default: data)")
    add_flags(command)
    model = command.add_argument_group("the model")
    add_model_flags(model)
    add_crop_flags(model)
    add_machine_flags(command.add_argument_group("machine"))
    return command


def main(argv: list[str] | None = None) -> int:
    """Write the features of every image, as saccade eval extracts them, beside its name, split, class and label.
    Images that cannot be read are left out, and said. Stopped, the same command goes on."""
    flags = parser().parse_args(argv)
    check_shared(flags)
    check_out(flags, out=ENDINGS)
    if flags.out.endswith(".npy") and not flags.overwrite and (names := names_file(Path(flags.out))).exists():
        raise UserError(
            f"--out {flags.out}: {names}, which goes with it, exists already; give another, or --overwrite."
        )
    if flags.dense and flags.out.endswith(".csv"):
        raise UserError(f"--dense --out {flags.out}: patches are no rows of numbers; give a .parquet or a .npy.")
    if flags.out.endswith(".parquet"):
        arrow()
    with on_processes(flags) as ranks:
        embed(flags, ranks)
    return 0


def embed(flags: argparse.Namespace, ranks: Ranks) -> None:
    settings, out = chosen_settings(flags, ranks), Path(flags.out)
    subject = ranks.first_on_each_node("opening the backbone", lambda: chosen_subject(flags, flags.start))
    shape = None
    if flags.dense:
        dense = FeatureMap(subject.backbone)
        shape = dense.shape(subject.image_size, len(subject.mean))
        subject = replace(subject, backbone=dense)
    options = replace(shown_to(subject, flags), data_dir=flags.data_dir)
    data = ranks.first_on_each_node("opening the images", lambda: open_dataset(flags.data, options, flags.split))
    fraction = settings.crop_pct or shown_share(subject.image_size)
    how = {
        "from": flags.start,
        "data": flags.data,
        "labels": flags.labels,
        "backbone": subject.architecture,
        "image_size": subject.image_size,
        "resize": RESIZE,
        "crop_fraction": fraction,
        "interpolation": settings.interpolation or "bilinear",
        "mean": subject.mean,
        "std": subject.std,
        "precision": settings.precision,
        "version": __version__,
        **({"grid": shape[:2], "features": shape[2]} if shape else {}),
    }
    print(
        printable(f"{'from':>10}  {subject.name}: {subject.architecture}, {subject.image_size} px, crop {fraction:g}")
    )
    for line in subject.read:
        print(printable(f"{'read as':>10}  {line}"))
    parts, began = out.parent / f".{out.name}.parts", time.perf_counter()
    found = {}
    for split, source in data.splits.items():
        print(printable(f"{split:>10}  {source.name}: {source.describe()}"))
        if ranks.main:
            source.account.show()
        found[split] = features(subject, source, settings, how, parts)
    kept = {split: readable(source) for split, source in data.splits.items()}
    rows, shape = sum(map(len, kept.values())), shape or next(iter(found.values())).shape[1:]
    blocks = (b for split, source in data.splits.items() for b in cut(split, source, found[split], kept[split], shape))
    ranks.on_main("writing the table", lambda: write_embeddings(out, blocks, rows, shape, how))
    ranks.on_main("removing the parts", lambda: shutil.rmtree(parts, ignore_errors=True))
    seconds = time.perf_counter() - began
    numbers = " x ".join(map(str, shape))
    print(printable(f"{out}: {rows:,} images, {numbers} numbers each, {seconds:.1f} s, {rows / seconds:.0f} images/s"))
    if bad := [name for source in data.splits.values() for name in source.known_bad]:
        print(printable(f"{len(bad):,} unreadable images are left out, such as {bad[0]}"))


def features(subject: Subject, source: Source, s: Settings, how: dict[str, Any], parts: Path) -> np.ndarray:
    """(N, D) float32, of patches (N, h w D) float16, mapped, of all images; where an earlier call was stopped, the rest
    of them."""
    if source.channels != len(subject.mean):
        raise UserError(f"{subject.name} takes {len(subject.mean)} channels, {source.name} has {source.channels}.")
    backbone = subject.backbone.to(s.device)
    key = key_of(backbone, (source,), *sorted(how.items(), key=str))
    dtype = np.float16 if "grid" in how else np.float32
    kept = FeatureFile(key, len(source), parts, dtype, "give --out in another folder", s.ranks)
    shown = (subject.image_size, subject.mean, subject.std, how["crop_fraction"])
    machine = (s.device, s.batch_size, s.precision, s.executor, s.workers)
    found = extract(backbone, source, *shown, *machine, None, how["interpolation"], s.progress, kept, s.ranks).features
    numbers = found.numpy()
    step = rows_of(numbers.shape[1])
    if not all(np.isfinite(numbers[k : k + step]).all() for k in range(0, len(numbers), step)):
        raise UserError(f"{subject.name}: its features are not finite numbers; the backbone has diverged.")
    return numbers


def readable(source: Source) -> np.ndarray:
    """The numbers of the images that could be read: another's pixels stood in for the rest."""
    if not source.known_bad:
        return np.arange(len(source))
    return np.array([i for i in range(len(source)) if source.name_of(i) not in source.known_bad])


def rows_of(width: int) -> int:
    """So many rows of `width` numbers are looked at in one go."""
    return max(1, min(ROWS, NUMBERS // width))


def cut(split: str, source: Source, found: np.ndarray, rows: np.ndarray, shape: tuple[int, ...]) -> Iterator[Block]:
    step = rows_of(found.shape[1])
    for start in range(0, len(rows), step):
        chosen = rows[start : start + step]
        labels = np.array([source.label_of(int(i)) for i in chosen])
        classes = [source.class_name(int(label)) for label in labels]
        yield Block(
            [printable(source.key_of(int(i))) for i in chosen],
            split,
            classes,
            labels,
            found[chosen].reshape(-1, *shape),
        )


if __name__ == "__main__":
    run_command("tools.embed", main)
