"""What every part of the GPU report shares, and the process one runs in: python -m benchmarks.gpu_part NAME FILE."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from saccade.base.command import run_command
from saccade.losses.registry import find_method
from saccade.tools.benchmark.measure import Contender, measure
from saccade.tools.benchmark.rows import Row, device_name, environment, write_rows
from saccade.tools.benchmark.suites import Work, describe, noise
from saccade.tools.benchmark.trainer import Trainer


@dataclass(frozen=True)
class Size:
    """How large the parts are: the real ones, or a miniature for a CPU."""

    backbone: str
    large_backbone: str
    vit: str
    images: int
    batch: int
    large_batch: int
    photo_batch: int  # of the loaders alone: enough batches for every worker of a DataLoader
    photo: int  # pixels of a view of a photo
    seconds: float
    rounds: int
    miniature: bool


GPU = Size("resnet18", "resnet50", "vit_small_patch16_224", 50_000, 1024, 256, 64, 224, 2.0, 5, False)
MINIATURE = Size("test_resnet", "test_resnet", "test_vit", 64, 16, 8, 8, 48, 0.0, 1, True)


@dataclass(frozen=True)
class Bench:
    """What a part is given. deadline: when it should begin nothing more, by time.monotonic()."""

    size: Size
    device: torch.device
    scratch: Path
    deadline: float

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def measure(self, contenders: list[Contender], rounds: int | None = None) -> list[Row]:
        budget = float("inf") if self.size.miniature else max(0.0, self.deadline - time.monotonic())
        return measure(contenders, self.device, rounds or self.size.rounds, self.size.seconds, budget, tolerant=True)

    def row(self, kind: str, what: str, **more: Any) -> Row:
        """A row without a rate: what was found is in `more`."""
        return Row(kind, "none", what, "none", device_name(self.device), 0, 0, 0, more=more)

    def synchronise(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def cifar(self, method: str, data: str) -> Work:
        """Noise of CIFAR's size under the method's views."""
        views = find_method(method).recipe(data, 32).views
        source = noise(self.size.images, 32, classes=100 if data == "cifar100" else 10)
        return Work(f"{data} {describe(views)}", views, source.name, source, self.size.batch)


Part = Callable[[Bench], Iterator[Row]]


def small_argv(method: str, backbone: str) -> list[str]:
    return ["--method", method, "--recipe", "cifar10", "--backbone", backbone, "--image-size", "32"]


def tflop_per_image(argv: list[str], size: int, batch: int = 16) -> float:
    """Of a training step, counted by torch on one that is not compiled."""
    trainer = Trainer([*argv, "--batch-size", str(batch), "--no-compile"], noise(batch, size))
    views = next(iter(trainer.pipeline))
    with FlopCounterMode(display=False) as counter:
        trainer.step(views)
    trainer.pipeline.close()
    return counter.get_total_flops() / batch / 1e12


def run_part(part: Part, name: str, out: Path, seconds: float, quick: bool) -> None:
    """Run `part`, writing all its rows so far to `out` after each of them; its errors are the caller's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = GPU if device.type == "cuda" else MINIATURE
    if quick and not size.miniature:
        size = replace(size, seconds=0.5, rounds=3)
    machine, rows, start = environment(), [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="saccade-gpu-") as scratch:
        for row in part(Bench(size, device, Path(scratch), start + seconds)):
            row.more |= {"part": name, "miniature": size.miniature, "part_seconds": round(time.monotonic() - start, 1)}
            rows.append(row)
            write_rows(out, rows, machine)


def main(argv: list[str] | None = None) -> int:
    """One part of the GPU report, in this process."""
    from benchmarks.gpu_right import RIGHT
    from benchmarks.gpu_speed import SPEED

    command = argparse.ArgumentParser(prog="benchmarks.gpu_part", description=main.__doc__)
    command.add_argument("name", choices=[*RIGHT, *SPEED])
    command.add_argument("out", type=Path)
    command.add_argument("--seconds", type=float, default=60)
    command.add_argument("--quick", action="store_true")
    flags = command.parse_args(argv)
    run_part({**RIGHT, **SPEED}[flags.name], flags.name, flags.out, flags.seconds, flags.quick)
    return 0


if __name__ == "__main__":
    run_command("benchmarks.gpu_part", main)
