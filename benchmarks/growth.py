"""python -m benchmarks.growth FOLDER: how cost grows with batch, views, size, processes, queue, a picture each."""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.machine import available_cpus
from saccade.losses.registry import find_method
from saccade.pipelines.order import Order
from saccade.pipelines.resident import ResidentPipeline
from saccade.tools.benchmark.contenders import epochs
from saccade.tools.benchmark.measure import Contender, measure, memory_mib
from saccade.tools.benchmark.picture import new_axes, save_figure
from saccade.tools.benchmark.rows import Row, device_name, environment, write_rows
from saccade.tools.benchmark.suites import noise
from saccade.tools.benchmark.trainer import Trainer

BACKBONE = "test_resnet"


@dataclass(frozen=True)
class Sweep:
    """One x axis. what: views or step."""

    name: str
    label: str
    values: tuple[int, ...]


BATCH = Sweep("batch", "images in a batch", (16, 32, 64, 128, 256))
VIEWS = Sweep("views", "views of an image", (1, 2, 4, 8))
SIZE = Sweep("size", "pixels of a view", (32, 64, 96, 128))
PROCESSES = Sweep("processes", "processes, one thread each", (1, 2, 4))
QUEUE = Sweep("queue", "keys in the queue", (4096, 16384, 65536, 262144))


def growth(folder: Path, file: Path | None = None, quick: bool = False, seconds: float | None = None) -> int:
    """Measure every sweep; one picture each into `folder`, the rows into `file`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rounds, seconds = 2 if quick else 5, seconds or (0.1 if quick else 1.0)
    machine, rows = environment(), []
    jobs = (
        (BATCH, batch_sweep),
        (VIEWS, views_sweep),
        (SIZE, size_sweep),
        (PROCESSES, process_sweep),
        (QUEUE, queue_sweep),
    )
    for sweep, job in jobs:
        values = sweep.values[:2] if quick else sweep.values
        if sweep is PROCESSES:
            values = tuple(v for v in values if v <= max(2, available_cpus()))
        made = job(replace(sweep, values=values), device, rounds, seconds)
        rows += made
        if file:
            write_rows(file, rows, machine)
        draw_sweep(sweep, made, folder / f"performance-{sweep.name}.png")
        print(f"{folder}/performance-{sweep.name}.png")
        for row in made:
            memory = row.more.get("step_mib", row.memory_mib) or 0
            rate = f"{row.images_per_second:10,.0f} images/s {memory:7,.0f} MiB"
            print(f"  {row.kind:>8} {row.more['x']:>7} {sweep.label}: {rate}")
    return 0


def _loader(x: int, size: int, views: int, batch: int, device: torch.device) -> Contender:
    """The resident executor with CIFAR's recipe at `size` pixels and `views` views."""
    source = noise(max(256, 2 * batch), size)
    recipe = find_method("simclr").recipe("cifar10", 32).views
    view = replace(recipe.views[0], size=size)
    recipe = replace(recipe, views=tuple(replace(view, name=f"view_{i}") for i in range(views)))
    pipeline = ResidentPipeline(source, recipe, Order(len(source), batch), device)
    row = Row(
        "loader",
        "resident",
        f"cifar {views}x{size}",
        source.name,
        device_name(device),
        size,
        batch,
        views,
        more={"x": x},
    )
    return Contender(row, lambda: (len(b.index) for b in epochs(pipeline)), close=pipeline.close)


def _trained(x: int, batch: int, size: int = 32, method: str = "simclr", settings: Sequence[str] = ()) -> Contender:
    """The whole step of timm's smallest ResNet, batches included; the row's step_mib is what it adds to the process."""
    source = noise(max(256, 2 * batch), size)
    argv = [
        "--method",
        method,
        "--recipe",
        "cifar10",
        "--backbone",
        BACKBONE,
        "--batch-size",
        str(batch),
        "--image-size",
        str(size),
    ]
    gc.collect()
    before = memory_mib()
    trainer = Trainer([*argv, *(a for s in settings for a in ("--set", s))], source)
    row = Row(
        "train",
        "resident",
        f"{method} cifar10 {len(trainer.config.recipe.views)}x{size}",
        source.name,
        device_name(trainer.device),
        size,
        batch,
        len(trainer.config.recipe.views),
        None,
        BACKBONE,
        trainer.precision,
    )

    def run() -> Iterator[int]:
        for b in epochs(trainer.pipeline):
            made = trainer.step(b)
            row.more["step_mib"] = max(row.more.get("step_mib", 0.0), round(memory_mib() - before, 1))
            yield made

    row.more["x"] = x
    return Contender(row, run, close=trainer.pipeline.close)


def batch_sweep(sweep: Sweep, device: torch.device, rounds: int, seconds: float) -> list[Row]:
    rows = measure([_loader(x, 32, 2, x, device) for x in sweep.values], device, rounds, seconds)
    return rows + [_alone("trained", [x, x], rounds, seconds) for x in sweep.values]


def views_sweep(sweep: Sweep, device: torch.device, rounds: int, seconds: float) -> list[Row]:
    return measure([_loader(x, 32, x, 128, device) for x in sweep.values], device, rounds, seconds)


def size_sweep(sweep: Sweep, device: torch.device, rounds: int, seconds: float) -> list[Row]:
    rows = measure([_loader(x, x, 2, 16, device) for x in sweep.values], device, rounds, seconds)
    return rows + measure([_trained(x, 16, x) for x in sweep.values], device, rounds, seconds)


def queue_sweep(sweep: Sweep, device: torch.device, rounds: int, seconds: float) -> list[Row]:
    """MoCo v2: a queue of K keys of dimension D costs 4 K D bytes and a product of the batch with it."""
    settings = [[f"options.queue_size={x}"] for x in sweep.values]
    return [
        _alone("trained", [x, 64, 32, "moco-v2", s], rounds, seconds)
        for x, s in zip(sweep.values, settings, strict=True)
    ]


def process_sweep(sweep: Sweep, device: torch.device, rounds: int, seconds: float) -> list[Row]:
    """Several processes that each render at once, as with one process per GPU: their rates added up."""
    rows = []
    for x in sweep.values:
        made = [_wait(p) for p in [_start("loader", [x, 32, 2, 128], rounds, max(seconds, 0.2)) for _ in range(x)]]
        total = made[0]
        for name in (
            "images_per_second",
            "views_per_second",
            "views_per_second_low",
            "views_per_second_high",
            "memory_mib",
        ):
            setattr(total, name, sum(getattr(row, name) or 0.0 for row in made))
        total.workers = x
        rows.append(total)
    return rows


# A process of its own for what is measured: its memory is then its own too.


def _alone(what: str, arguments: list, rounds: int, seconds: float) -> Row:
    return _wait(_start(what, arguments, rounds, seconds))


def _start(what: str, arguments: list, rounds: int, seconds: float) -> subprocess.Popen:
    code = "import sys, json; from benchmarks.growth import answer; answer(*json.loads(sys.argv[1]))"
    command = [sys.executable, "-c", code, json.dumps([what, arguments, rounds, seconds])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[1])


def _wait(process: subprocess.Popen) -> Row:
    printed = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"a measuring process ended with code {process.returncode}")
    return Row(**json.loads(printed.splitlines()[-1]))


def answer(what: str, arguments: list, rounds: int, seconds: float) -> None:
    """What a process started by `_start` does: measure, and print the row as JSON. A lone loader has one thread."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1 if what == "loader" else available_cpus())
    contender = _loader(*[*arguments, device]) if what == "loader" else _trained(*arguments)
    print(json.dumps(asdict(measure([contender], device, rounds, seconds)[0])))


def draw_sweep(sweep: Sweep, rows: list[Row], path: Path) -> None:
    """Images per second, and where it was measured the memory of a step, against the sweep's values."""
    from matplotlib.ticker import LogLocator

    with_memory = [r for r in rows if "step_mib" in r.more] if sweep.name in ("batch", "queue") else []
    figure, axes = new_axes(2 if with_memory else 1, 5.6 if with_memory else 3.0, 6.0)
    kinds = {"loader": ("views made, no training", "#1f77b4"), "train": (f"trained, {BACKBONE}", "#009e73")}
    for kind, (name, colour) in kinds.items():
        chosen = [r for r in rows if r.kind == kind]
        if chosen:
            x = [r.more["x"] for r in chosen]
            axes[0].plot(x, [r.images_per_second for r in chosen], "o-", color=colour, label=name)
            axes[0].fill_between(
                x,
                [r.views_per_second_low / r.views_per_image for r in chosen],
                [r.views_per_second_high / r.views_per_image for r in chosen],
                color=colour,
                alpha=0.2,
                lw=0,
            )
    axes[0].set_ylabel("images per second")
    rates = [r.images_per_second for r in rows]
    if max(rates) > 3 * min(rates):
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # a sweep may lie within one power of ten
    else:
        axes[0].set_ylim(bottom=0)
    axes[0].yaxis.set_major_formatter("{x:,.0f}")
    axes[0].legend(frameon=False, fontsize=8)
    if with_memory:
        axes[1].plot(
            [r.more["x"] for r in with_memory], [r.more["step_mib"] for r in with_memory], "s-", color="#cc79a7"
        )
        axes[1].set_ylabel("MiB that a run adds")
        axes[1].set_ylim(bottom=0)
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xticks(
            list(dict.fromkeys(r.more["x"] for r in rows)), [f"{r:,}" for r in dict.fromkeys(r.more["x"] for r in rows)]
        )
        ax.minorticks_off()
        ax.set_xlabel(sweep.label)
    save_figure(figure, path)


def main(argv: list[str] | None = None) -> int:
    """How cost grows with batch, views, image size, processes and queue: a picture each."""
    command = argparse.ArgumentParser(prog="benchmarks.growth", description=main.__doc__)
    command.add_argument("folder", type=Path, help="for the pictures, e.g. docs/pictures")
    command.add_argument("--json", type=Path, metavar="FILE", help="the rows, with versions, hardware, commit and date")
    command.add_argument("--quick", action="store_true", help="two values of each, short turns")
    command.add_argument("--seconds", type=float, help="of one turn (default: 1)")
    flags = command.parse_args(argv)
    if flags.seconds is not None and not 0 < flags.seconds < float("inf"):
        raise UserError(f"--seconds {flags.seconds} is not positive; give a number above 0.")
    return growth(flags.folder, flags.json, flags.quick, flags.seconds)


if __name__ == "__main__":
    run_command("benchmarks.growth", main)
