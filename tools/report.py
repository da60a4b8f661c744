"""python -m tools.report outputs/RUN: report.html, one offline page of what a run learned."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.program import command_parser
from saccade.evaluation.options import check_numbers, chosen_device
from saccade.evaluation.report import find, write_report
from saccade.evaluation.subject import Subject, open_subject
from saccade.pipelines.data import open_data
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.options import add_flags, options_of
from saccade.runs.record import check_local

MOST = 20_000  # images that a page still opens with
EXAMPLES = {
    "outputs/RUN": "the map, neighbours, duplicates and odd pictures of 2,000 of the run's images",
    "outputs/RUN --images 10000 --data PHOTOS": "of more, or of other images",
}


def parser() -> argparse.ArgumentParser:
    command = command_parser("python -m tools.report", main.__doc__ or "", EXAMPLES)
    command.add_argument("run", metavar="RUN", help="the folder of a finished run")
    command.add_argument("--images", type=int, default=2000, help="how many are looked at (default: 2000)")
    command.add_argument("--data", help="other images than the run's")
    command.add_argument("--data-dir", help="where cifar10, cifar100 and stl10 are kept (default: the run's)")
    command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="(default: auto)")
    command.add_argument("--workers", type=int, help="decoding processes or threads (default: from the CPUs)")
    add_flags(command)
    return command


def main(argv: list[str] | None = None) -> int:
    """Write report.html into the run's folder: verdict, curves, views, a map of the images, their neighbours,
    near-duplicates, worst and odd ones, recipe, machine. It needs no network, now or later."""
    flags = parser().parse_args(argv)
    check_numbers(flags, ("images",), least=3)
    check_numbers(flags, ("workers",), least=0)
    if flags.images > MOST:
        raise UserError(f"--images {flags.images} is more than a page can show; give {MOST} or fewer.")
    folder = Path(flags.run).expanduser()
    if not folder.is_dir():
        raise UserError(f"{flags.run} is no run folder.")
    subject, device = open_subject(folder), chosen_device(flags)
    source = images_of(flags, subject, folder)
    source.account.show()
    found = find(
        subject.backbone.to(device),
        source,
        subject.image_size,
        subject.mean,
        subject.std,
        flags.images,
        device,
        flags.workers,
    )
    print(f"{write_report(folder, found)}: {len(found.names):,} of {len(source):,} images")
    return 0


def images_of(flags: argparse.Namespace, subject: Subject, folder: Path) -> Source:
    """The images that the flags name, or those the run was trained on."""
    run, options = subject.run, options_of(flags)
    if flags.data is None:
        if run is None:
            raise UserError(f"{folder} does not say which images it was trained on; give --data.")
        for place in (run.data, run.val_data):
            check_local(place, "--data", folder)
        options = replace(run.options, **{name: v for name, v in vars(options).items() if v is not None})
    data_dir = flags.data_dir or (run.data_dir if run else "data")
    source, _ = open_data(
        flags.data or (run.data if run else ""),
        None if flags.data or run is None else run.val_data,
        data_dir,
        options=options,
    )
    if source.channels != len(subject.mean):
        raise UserError(f"{folder} takes images of {len(subject.mean)} channels, {source.name} has {source.channels}.")
    if len(source) < 3:
        raise UserError(f"{source.name} has {len(source)} images; a report needs 3 or more.")
    return source


if __name__ == "__main__":
    run_command("tools.report", main)
