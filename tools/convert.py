"""python -m tools.convert SRC DST: bring images into a fast format, or back, without losing a label."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.machine import available_cpus
from saccade.base.program import command_parser
from saccade.pipelines.sources.open import open_dataset
from saccade.pipelines.sources.options import add_flags, options_of
from saccade.tools.conversion.job import SINGLE, WRITERS, Job
from saccade.tools.conversion.prepare import Settings
from saccade.tools.conversion.run import convert

EXAMPLES = {
    "PHOTOS photos.beton": "a folder into one FFCV file, the JPEG files as they are",
    "PHOTOS shards --to wds --max-side 512": "smaller images in WebDataset tars of 1000",
    "PHOTOS images.npz --labels labels.csv": "a flat folder with rows FILE,LABEL beside it",
    "cifar10 cifar10.parquet --to parquet --split train": "",
}
_PART = {"wds": 1000, "folder": 1000, "beton": 1000, "npz": 10000, "parquet": 2000}


def main(argv: list[str] | None = None) -> int:
    """SRC: a folder of images (with class folders, train/ and val/, or --labels), CIFAR or STL-10 (by name or their
    folder), .npz, webdataset tars ({000..127} too), parquet with image bytes, .beton. DST: a folder, or NAME.beton or
    NAME.npz. Image files are kept byte for byte unless --max-side or --quality is given. A stopped conversion goes on
    where it was."""
    flags = parser().parse_args(argv)
    job = _job(flags)
    if flags.channels not in (None, 3):
        raise UserError(
            f"--channels {flags.channels}: images of 3 channels are converted; train and eval read others as they are."
        )
    data = open_dataset(flags.src, replace(options_of(flags), data_dir=flags.data_dir), flags.split)
    manifest = convert(job, data)
    images = sum(split.images for split in manifest.splits.values())
    checked = {"full": "all read back and equal", "sample": "a sample read back and equal", "none": "not read back"}
    print(
        f"{job.dst}: {images:,} images, {checked[job.verify]}"
        + (f"; {len(manifest.left_out)} bad ones left out, see {_listing(job)}" if manifest.left_out else "")
    )
    return 0


def parser() -> argparse.ArgumentParser:
    command = command_parser("python -m tools.convert", main.__doc__ or "", EXAMPLES)
    command.add_argument("src", metavar="SRC")
    command.add_argument("dst", metavar="DST")
    command.add_argument("--to", choices=sorted(WRITERS), help="the format (default: by DST's extension)")
    add_flags(command)
    command.add_argument("--split", help="convert only this split")
    command.add_argument("--data-dir", default="data", help="where cifar10, cifar100 and stl10 lie (default: data)")
    command.add_argument("--max-side", type=int, metavar="PIXELS", help="make longer images smaller")
    command.add_argument("--quality", type=int, help="encode everything as JPEG of this quality, 1 to 100")
    command.add_argument(
        "--store",
        choices=("keep", "jpg", "raw", "proportion"),
        help="for .beton: JPEG files as they are and others as pixels (keep, the default), all as JPEG, all "
        "as pixels (largest, fastest), or a proportion as JPEG and the rest as pixels",
    )
    command.add_argument("--proportion", type=float, default=0.5, help="share of JPEG images with --store proportion")
    command.add_argument("--shard-size", type=int, help="images per tar, parquet file or part (default: 1000)")
    command.add_argument(
        "--shuffle",
        type=int,
        metavar="SEED",
        help="write the images in a shuffled order (default: tars "
        "with seed 0, so that a tar holds all classes; other formats keep the order); -1 keeps the order",
    )
    command.add_argument(
        "--verify",
        choices=("full", "sample", "none"),
        default="full",
        help="compare what was written with the source: all of it (default), 1000 images, nothing",
    )
    command.add_argument("--max-bad", type=float, default=0.1, help="share of unreadable images that is put up with")
    command.add_argument("--workers", type=int, help="threads (default: the CPUs this process may use)")
    return command


def _job(flags: argparse.Namespace) -> Job:
    dst = Path(flags.dst).expanduser()
    to = flags.to or {extension: name for name, extension in SINGLE.items()}.get(dst.suffix)
    src = Path(flags.src).expanduser()
    if flags.src.strip() and src.is_dir() and src.resolve() in dst.resolve().parents:
        raise UserError(f"{dst} lies inside {src}, which would then hold its own copy; give a DST outside of it.")
    if to is None:
        raise UserError(
            f"{dst}: say which format with --to {', '.join(sorted(WRITERS))}, or give a DST ending in "
            f"{' or '.join(SINGLE.values())}."
        )
    if dst.suffix in SINGLE.values() and SINGLE.get(to) != dst.suffix:
        raise UserError(f"{dst} with --to {to}: the extension says otherwise; leave --to out or change the name.")
    if flags.store and to != "beton":
        raise UserError(f"--store {flags.store}: only a .beton has the choice, not {to}.")
    for name, low, high in (
        ("max_side", 1, 65535),
        ("quality", 1, 100),
        ("proportion", 0, 1),
        ("shard_size", 1, 10**9),
        ("max_bad", 0, 1),
        ("workers", 1, 1024),
    ):
        value = getattr(flags, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name.replace('_', '-')} {value}: give a value from {low} to {high}.")
    form = flags.store or WRITERS[to].forms[0]
    if flags.quality is not None and form == "raw":
        raise UserError("--quality: this target holds pixels, not JPEG; leave it out, or use --to beton --store jpg.")
    shuffle = flags.shuffle if flags.shuffle is not None else 0 if to == "wds" and not _is_parquet(flags.src) else -1
    return Job(
        flags.src,
        dst,
        to,
        Settings(form, flags.max_side, flags.quality, flags.proportion),
        flags.shard_size or _PART[to],
        None if shuffle < 0 else shuffle,
        flags.verify,
        flags.max_bad,
        flags.workers or available_cpus(),
    )


def _is_parquet(src: str) -> bool:
    path = Path(src).expanduser()
    return path.suffix == ".parquet" or (path.is_dir() and any(path.glob("**/*.parquet")))


def _listing(job: Job) -> Path:
    return job.dst.with_name(job.dst.name + ".bad.txt") if job.single else job.dst / "bad_images.txt"


if __name__ == "__main__":
    run_command("tools.convert", main)
