"""python -m benchmarks.gpu OUT.json: every GPU number of docs/performance.md, the most important first.

The file is rewritten, whole, after every part, so a report that is cut off keeps what it has. Without a GPU the same
parts run in miniature, to be tested; their rows say so.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from saccade.base.command import run_command
from saccade.base.machine import available_cpus
from saccade.losses.registry import find_method, methods
from saccade.tools.benchmark.contenders import epochs, loaders, steps
from saccade.tools.benchmark.measure import Contender, measure
from saccade.tools.benchmark.rows import Row, environment, table, write_rows
from saccade.tools.benchmark.suites import Work, build_suite, describe, noise, photo_recipe
from saccade.tools.benchmark.trainer import Trainer

CIFAR_IMAGES, RESERVE = 50_000, 20  # seconds kept for the turn that runs when time is up


@dataclass(frozen=True)
class Size:
    """How large the parts are: the real ones, or a miniature for a CPU."""

    backbone: str
    large_backbone: str
    images: int
    batch: int
    large_batch: int
    photo_batch: int  # of the loaders alone: enough batches for every worker of a DataLoader
    photo: int  # pixels of a view of a photo
    seconds: float
    rounds: int
    miniature: bool
    budget: float = float("inf")  # seconds after which a part begins no more turns


GPU = Size("resnet18", "resnet50", CIFAR_IMAGES, 1024, 256, 64, 224, 2.0, 5, False)
MINIATURE = Size("test_resnet", "test_resnet", 64, 16, 8, 8, 48, 0.0, 1, True)


def report(path: Path, minutes: float = 9, quick: bool = False) -> int:
    """Run the parts until `minutes` are spent; 0 if all were measured, 1 if any failed or was left out."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = GPU if device.type == "cuda" else MINIATURE
    if quick and not size.miniature:
        size = replace(size, seconds=0.5, rounds=3)
    if size.miniature:
        print("no GPU here: the parts run in miniature; their numbers mean nothing", file=sys.stderr)
    rows, machine, deadline, failures = [], environment(), time.monotonic() + 60 * minutes, 0
    write_rows(path, rows, machine)
    with tempfile.TemporaryDirectory(prefix="saccade-gpu-") as scratch:
        for part in PARTS:
            name, start = part.__name__.strip("_"), time.monotonic()
            left = deadline - start
            if left < 30 and not size.miniature:
                made = [_failed(name, size, device, f"left out: {left:.0f} s of {minutes:g} minutes were left")]
            else:
                budget = left - RESERVE if not size.miniature else size.budget
                made = _attempt(part, name, replace(size, budget=budget), device, Path(scratch), rows)
            for row in made:
                row.more |= {"part": name, "miniature": size.miniature, "seconds": round(time.monotonic() - start, 1)}
            failures += any("error" in row.more for row in made)
            rows += made
            write_rows(path, rows, machine)
            print(f"{name}: {time.monotonic() - start:.0f} s\n{table(made)}\n", flush=True)
    for row in rows:
        told = {k: v for k, v in row.more.items() if k not in ("part", "miniature", "seconds", "compiled")}
        if told:
            print(f"{row.more['part']}, {row.kind}: " + ", ".join(f"{k} {v}" for k, v in told.items()))
    return 1 if failures else 0


def _attempt(part: Callable, name: str, size: Size, device: torch.device, scratch: Path, rows: list[Row]) -> list[Row]:
    try:
        return part(size, device, scratch, rows)
    except Exception as error:  # a part that fails, out of memory say, must not take the others with it
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        return [_failed(name, size, device, f"{type(error).__name__}: {str(error)[:300]}")]
    finally:
        if device.type == "cuda":
            torch.compiler.reset()  # each part's shapes are its own; beyond eight, torch would stop compiling
            gc.collect()  # Accelerate's models hold themselves
            torch.cuda.empty_cache()


def _failed(name: str, size: Size, device: torch.device, why: str) -> Row:
    return Row("failed", "none", name, "none", device.type, 0, 0, 0, more={"error": why})


# ---------------------------------------------------------------- parts


def stec_cifar10(size: Size, device: torch.device, scratch: Path, rows: list[Row]) -> list[Row]:
    """The CIFAR recipe's loader, S-TEC's step and run, and the plain loop a user would write."""
    work = _cifar("stec", "cifar10", size)
    argv = ["--recipe", "cifar10", "--backbone", size.backbone, "--batch-size", str(size.batch), "--image-size", "32"]
    trainer = Trainer(["--method", "stec", *argv], work.source)
    plain = Trainer(["--method", "simclr", *argv], work.source, plain=True)
    loader = loaders(work, ("resident",), device)[0]
    made = _measure([loader, *steps(work, trainer, plain)], device, size)
    model = next(row for row in made if row.kind == "model")
    if made[0].images_per_second:
        made[0].more["share_of_step"] = round(model.images_per_second / made[0].images_per_second, 4)
    return made


def simclr_cifar10(size: Size, device: torch.device, scratch: Path, rows: list[Row]) -> list[Row]:
    """200 epochs of SimCLR, projected from whole epochs."""
    return [_epochs("simclr", "cifar10", 200, size, device)]


def rsa_cifar100(size: Size, device: torch.device, scratch: Path, rows: list[Row]) -> list[Row]:
    """800 epochs of RSA, projected from whole epochs."""
    return [_epochs("rsa", "cifar100", 800, size, device)]


def two_large_views(size: Size, device: torch.device, scratch: Path, rows: list[Row]) -> list[Row]:
    """2 x 224 with colour and blur, from decoded pixels that lie on the device."""
    source, recipe = noise(32 * size.large_batch, size.photo * 8 // 7), photo_recipe(size.photo)
    work = Work(f"decoded {describe(recipe)}", recipe, source.name, source, size.large_batch)
    return _measure(loaders(work, ("resident",), device)[:1], device, size)


def resa_resnet50(size: Size, device: torch.device, scratch: Path, rows: list[Row]) -> list[Row]:
    """ReSA, two views of 224 px, ResNet-50, batch 256: memory and images per second."""
    source = noise(8 * size.large_batch, size.photo * 8 // 7)
    argv = [
        "--method",
        "resa",
        "--recipe",
        "imagenet",
        "--backbone",
        size.large_backbone,
        "--image-size",
        str(size.photo),
    ]
    trainer = Trainer([*argv, "--batch-size", str(size.large_batch)], source)
    recipe = trainer.config.recipe.views
    work = Work(describe(recipe), recipe, source.name, source, size.large_batch)
    return _measure(steps(work, trainer, None), device, size)


def photos(size: Size, device: torch.device, scratch: Path, rows: list[Row]) -> list[Row]:
    """JPEG to 2 x 224 by every executor, next to torchvision's DataLoader with all cores, at most 16."""
    work = build_suite("photos", scratch, size.photo_batch, size.photo, quick=size.miniature, copies=20)
    skipped: dict[str, str] = {}
    contenders = loaders(work, (), device, min(16, available_cpus()), skipped)
    made = _measure(contenders, device, replace(size, rounds=min(3, size.rounds)))
    need = next((r.images_per_second for r in rows if r.kind == "model" and r.backbone == "resnet50"), None)
    if need:
        for row in made:
            row.more["times_resnet50_step"] = round(row.images_per_second / need, 2)
    return made + [
        Row("skipped", name, work.recipe_name, work.data, device.type, 0, 0, 0, more={"why": why})
        for name, why in skipped.items()
    ]


def host_waits(size: Size, device: torch.device, scratch: Path, rows: list[Row]) -> list[Row]:
    """How often a step of each method makes the host wait for the GPU, by torch's own count (None on a CPU)."""
    source, made = noise(128, 32), []
    for method in methods():
        argv = ["--method", method, "--recipe", "cifar10", "--backbone", "test_resnet", "--image-size", "32"]
        trainer = Trainer([*argv, "--batch-size", "64", "--no-compile"], source)
        batch = next(iter(trainer.pipeline))
        trainer.step(batch)  # makes the optimizer's state
        row = Row("step", "none", method, source.name, device.type, 32, 64, len(batch.views), backbone="test_resnet")
        row.more["host_waits"] = (
            _waits(lambda step=trainer.step, batch=batch: step(batch)) if device.type == "cuda" else None
        )
        made.append(row)
    return made


def _waits(work: Callable) -> int:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in seen)


PARTS = (stec_cifar10, two_large_views, simclr_cifar10, rsa_cifar100, host_waits, resa_resnet50, photos)


def _measure(contenders: list[Contender], device: torch.device, size: Size) -> list[Row]:
    return measure(contenders, device, size.rounds, size.seconds, size.budget, tolerant=True)


def _cifar(method: str, data: str, size: Size) -> Work:
    recipe = find_method(method).recipe(data, 32).views
    source = noise(size.images, 32, classes=100 if data == "cifar100" else 10)
    return Work(f"{data} {describe(recipe)}", recipe, source.name, source, size.batch)


def _epochs(method: str, data: str, count: int, size: Size, device: torch.device) -> Row:
    """Turns of one whole epoch each, and what `count` of them would take."""
    work = _cifar(method, data, size)
    trainer = Trainer(
        ["--method", method, "--recipe", data, "--backbone", size.backbone, "--image-size", "32"], work.source
    )
    made = steps(work, trainer, None)[1]

    def epoch() -> Iterator[int]:
        batches, steps_per_epoch = epochs(trainer.pipeline), len(trainer.pipeline)
        while True:
            yield sum(trainer.step(next(batches)) for _ in range(steps_per_epoch))

    whole = replace(size, rounds=max(1, size.rounds // 2), seconds=0.0)
    row = _measure([Contender(made.row, epoch, warm_up=0, close=made.close)], device, whole)[0]
    if "error" in row.more:
        return row
    row.more |= {
        "epoch_seconds": round(CIFAR_IMAGES / row.images_per_second, 3),
        "epochs": count,
        "minutes_projected": round(count * CIFAR_IMAGES / row.images_per_second / 60, 2),
    }
    return row


def main(argv: list[str] | None = None) -> int:
    """Every GPU number of docs/performance.md."""
    command = argparse.ArgumentParser(prog="benchmarks.gpu", description=main.__doc__)
    command.add_argument("out", type=Path)
    command.add_argument("--minutes", type=float, default=9)
    command.add_argument("--quick", action="store_true")
    flags = command.parse_args(argv)
    return report(flags.out, minutes=flags.minutes, quick=flags.quick)


if __name__ == "__main__":
    run_command("benchmarks.gpu", main)
