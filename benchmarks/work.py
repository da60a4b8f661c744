"""python -m benchmarks.work: the work of a training step, counted by tracing it, and what an H100 should make of it.

Nothing is measured: every speed is a prediction for the first run on a GPU to test. It needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.fake_cuda import environment, fake_trainer, pretend, trace_step
from benchmarks.operators import Operator
from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.base.machine import git_commit, versions
from saccade.losses.registry import methods
from saccade.runs.session import COMPILING_PAYS
from saccade.tools.benchmark.suites import noise

PRODUCTS = ("aten::convolution", "aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product")
CIFAR = 50_000
LARGE = ["--recipe", "imagenet", "--backbone", "resnet50", "--batch-size", "256"]
CASES = {
    **{f"{name}, CIFAR-10": ["--method", name, "--recipe", "cifar10"] for name in methods()},
    "rsa, CIFAR-100, 800 epochs": ["--method", "rsa", "--recipe", "cifar100", "--epochs", "800"],
    "simclr, 2 x 224": ["--method", "simclr", *LARGE],
    "resa, 2 x 224": ["--method", "resa", *LARGE],
    "the default command": ["--method", "stec", "--recipe", "textures"],
}


@dataclass(frozen=True)
class Machine:
    """What a GPU and its host are taken to reach. Products in bf16 and in float32, memory, an operator's cost."""

    bf16: float  # FLOP/s
    fp32: float
    memory: float  # bytes/s
    kernel: float  # seconds the shortest kernel takes
    eager: float  # seconds of the host for an operator that is not compiled
    compiled: float  # and for a kernel of a compiled network


PEAK = Machine(989e12, 67e12, 3.35e12, 0, 0, 0)  # NVIDIA's data sheet, H100 SXM, dense
SLOW = Machine(200e12, 30e12, 1.2e12, 3e-6, 8e-6, 5e-6)  # a fifth and a third of the peak: convolutions of few channels
FAST = Machine(400e12, 50e12, 2.2e12, 2e-6, 4e-6, 2e-6)


@dataclass(frozen=True)
class Work:
    """What one step takes. bytes, launches: eager, and with the networks' operators between products fused."""

    flops: int
    bytes: int
    bytes_compiled: int
    launches: int
    launches_compiled: int
    operators: int


@dataclass(frozen=True)
class Piece:
    """Operators that run as one: a product, a fused run between products, or one operator of eager torch."""

    flops: int
    bytes: int
    launches: int
    dtype: str
    is_compiled: bool


def pieces(operators: list[Operator], compiled: bool) -> Iterator[Piece]:
    """What runs, in order; the networks' operators between two products as one where `compiled`."""
    last_read = {block: i for i, o in enumerate(operators) for block in o.reads}
    run: list[int] = []
    for i, o in enumerate(operators):
        fused = compiled and o.region == "network"
        if fused and not o.name.startswith(PRODUCTS):
            run.append(i)
            continue
        if run and o.launches:
            yield _fuse(operators, run, last_read)
            run = []
        if o.launches:
            yield Piece(o.flops, o.bytes, o.launches, o.dtype, fused)
    if run:
        yield _fuse(operators, run, last_read)


def _fuse(operators: list[Operator], run: list[int], last_read: dict[int, int]) -> Piece:
    """One kernel, and one more for each batch norm, which reads its input twice; what stays inside is not moved."""
    reads: dict[int, int] = {}
    made: dict[int, int] = {}
    norms = again = 0
    for i in run:
        o = operators[i]
        reads.update({block: n for block, n in o.reads.items() if block not in made and block not in reads})
        made.update(o.writes)
        if "batch_norm" in o.name or "layer_norm" in o.name:
            norms += 1
            again += max(o.reads.values())
    kept = sum(n for block, n in made.items() if last_read.get(block, -1) > run[-1])
    return Piece(0, sum(reads.values()) + kept + again, (1 if made else 0) + norms, "bfloat16", True)


def work(operators: list[Operator]) -> Work:
    eager, fused = list(pieces(operators, False)), list(pieces(operators, True))
    return Work(
        sum(p.flops for p in eager),
        sum(p.bytes for p in eager),
        sum(p.bytes for p in fused),
        sum(p.launches for p in eager),
        sum(p.launches for p in fused),
        len(operators),
    )


def seconds(operators: list[Operator], compiled: bool, machine: Machine) -> tuple[float, float]:
    """Of the GPU, each piece by whichever takes it longest; and of the host, which runs ahead of it."""
    device = host = 0.0
    for p in pieces(operators, compiled):
        rate = machine.fp32 if p.dtype == "float32" else machine.bf16
        device += max(p.flops / rate, p.bytes / machine.memory, p.launches * machine.kernel)
        host += p.launches * (machine.compiled if p.is_compiled else machine.eager)
    return device, host


def predict(name: str, argv: list[str]) -> dict[str, Any]:
    """The work of the run's step, and images/s between a slow and a fast H100."""
    large = "imagenet" in argv
    trainer, batch, mode = fake_trainer([*argv, "--no-compile"], noise(256 if large else 4096, 224 if large else 32))
    operators = trace_step(trainer, batch, mode).operators
    recipe = trainer.config.recipe
    parameters = sum(p.numel() for p in trainer.learner.parameters())
    compiled = parameters >= COMPILING_PAYS[1]
    row: dict[str, Any] = {
        "case": name,
        "command": argv,
        "backbone": recipe.backbone.name,
        "batch_size": recipe.batch_size,
        "image_size": recipe.image_size,
        "views": len(recipe.views),
        "parameters": parameters,
        "compiled": compiled,
        **asdict(work(operators)),
        "floor_ms": 1e3 * seconds(operators, True, PEAK)[0],
    }
    for label, machine in (("slow", SLOW), ("fast", FAST)):
        device, host = seconds(operators, compiled, machine)
        row[f"{label}_device_ms"], row[f"{label}_host_ms"] = 1e3 * device, 1e3 * host
        row[f"{label}_images_per_second"] = recipe.batch_size / max(device, host)
    if recipe.data.startswith("cifar"):
        row["epochs"] = recipe.epochs
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    titles = "step of|backbone|batch|TFLOP|GB eager, fused|launches eager, fused|floor, ms|predicted images/s|bound by"
    lines = [titles.split("|"), ["---"] * 9]
    for r in rows:
        bound = {"launches" if r[f"{k}_host_ms"] > r[f"{k}_device_ms"] else "the GPU" for k in ("slow", "fast")}
        minutes = (
            [r["epochs"] * CIFAR / r[f"{k}_images_per_second"] / 60 for k in ("fast", "slow")] if "epochs" in r else []
        )
        lines.append(
            [
                r["case"],
                r["backbone"] + ("" if r["compiled"] else ", not compiled"),
                f"{r['batch_size']:,}",
                f"{r['flops'] / 1e12:.2f}",
                f"{r['bytes'] / 1e9:.1f}, {r['bytes_compiled'] / 1e9:.1f}",
                f"{r['launches']:,}, {r['launches_compiled']:,}",
                f"{r['floor_ms']:.1f}",
                f"{_round(r['slow_images_per_second'])} - {_round(r['fast_images_per_second'])}"
                + (f" ({r['epochs']} epochs: {minutes[0]:.0f} - {minutes[1]:.0f} min)" if minutes else ""),
                " or ".join(sorted(bound)),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _round(rate: float) -> str:
    return f"{float(f'{rate:.2g}'):,.0f}"


def main(argv: list[str] | None = None) -> int:
    """FLOP, bytes and kernels of a step of each method, and what an H100 should make of them: predictions."""
    command = argparse.ArgumentParser(prog="benchmarks.work", description=main.__doc__)
    command.add_argument("--json", metavar="FILE", help="the table as JSON, with its assumptions")
    command.add_argument("--only", metavar="WORD", default="", help="only steps whose name has this in it")
    flags = command.parse_args(argv)
    chosen = {name: case for name, case in CASES.items() if flags.only in name}
    if not chosen:
        raise UserError(f"--only {flags.only}: no step is called so; the names are {'; '.join(CASES)}.")
    if not torch.cuda.is_available():
        with tempfile.TemporaryDirectory(prefix="saccade-work-") as folder:
            stub = environment(Path(folder))
            if stub is None:
                raise UserError("benchmarks.work needs torch's CUDA build and a C compiler (cc); install them.")
            given = sys.argv[1:] if argv is None else argv
            return subprocess.run([sys.executable, "-m", "benchmarks.work", *given], env=stub, check=False).returncode
    if "LD_PRELOAD" in os.environ:
        pretend()
    rows = []
    for name, case in chosen.items():
        rows.append(predict(name, case))
        print(f"{name}: {rows[-1]['flops'] / 1e12:.2f} TFLOP", file=sys.stderr)
    print(markdown(rows))
    if flags.json:
        content = {
            "what": "predictions, nothing was measured",
            "machines": {"peak": asdict(PEAK), "slow": asdict(SLOW), "fast": asdict(FAST)},
            "commit": git_commit(),
            "versions": versions(),
            "steps": rows,
        }
        write_atomically(Path(flags.json), lambda f: f.write((json.dumps(content, indent=1) + "\n").encode()))
    return 0


if __name__ == "__main__":
    run_command("benchmarks.work", main)
