"""python -m tools.doctor [flags of train.py]: what holds your training up here, and what to change."""

from __future__ import annotations

import argparse
import sys

import torch

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.machine import available_cpus
from saccade.runs import flags
from saccade.tools.benchmark.diagnosis import Speeds, advise, bottleneck, warnings_for
from saccade.tools.benchmark.inspection import inspect
from saccade.tools.benchmark.rows import columns

EXAMPLES = {
    "--method stec --data PHOTOS": "the flags you would give to train",
    "--method resa --data cifar10 --batch-size 256 --workers 4": "",
}


def parser() -> argparse.ArgumentParser:
    """The flags of train.py."""
    return flags.parser("python -m tools.doctor", f"{main.__doc__} Takes about half a minute.", EXAMPLES)


def main(argv: list[str] | None = None) -> int:
    """Measures loader, model and the whole step for a few seconds each on your data; names the slowest part."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if "-h" in argv or "--help" in argv:
        parser().print_help()
        return 0
    if "--resume" in argv:
        raise UserError("--resume: the doctor starts no run; give the flags the run was started with.")
    torch.set_num_threads(available_cpus())
    speeds = inspect(argv)
    print(_report(speeds))
    for warning in warnings_for(speeds):
        print(f"warning: {warning}")
    part, why = bottleneck(speeds)
    print(f"\nbottleneck: {part} ({why})")
    for text in advise(speeds, part):
        print(f"  - {text}")
    return 0


def _report(s: Speeds) -> str:
    rates = (
        ("reading the files", s.disk),
        ("decoding, on all CPUs", s.decode),
        ("views without colour and blur", s.geometry),
        ("loader ceiling: all views", s.loader),
        ("copy to the device", s.copy),
        ("model ceiling: the step", s.model),
        ("end to end", s.whole),
    )
    lines = [("part", "images/s")] + [(name, f"{rate:,.0f}") for name, rate in rates if rate]
    return f"{s.title}\n\n{columns(lines, left=1)}"


if __name__ == "__main__":
    run_command("tools.doctor", main)
