"""python -m benchmarks.profile_step [flags of train.py]: where the time of a training step goes."""

from __future__ import annotations

import sys

import torch
from torch.profiler import ProfilerActivity, profile

from saccade.base.command import run_command
from saccade.tools.benchmark.rows import columns
from saccade.tools.benchmark.trainer import Trainer

WARM_UP, STEPS = 3, 5
KINDS = (  # the first whose words occur in an operator's name
    ("convolutions", ("convolution", "mkldnn_conv", "conv2d", "cudnn", "implicit_gemm")),
    ("batch norm", ("batch_norm", "native_batch_norm")),
    ("optimizer and teacher", ("_foreach", "fused_sgd", "fused_adam", "optimizer")),
    ("matrix products", ("addmm", "::mm", "bmm", "gemm", "linear")),
    ("activations", ("relu", "threshold", "gelu", "clamp")),
    (
        "copies and casts",
        ("copy", "cat", "contiguous", "to_copy", "memcpy", "memset", "fill", "zero", "clone", "select"),
    ),
    ("reductions and softmax", ("softmax", "sum", "mean", "norm", "nll", "logsumexp", "arg", "sort", "max")),
)


def profile_step(argv: list[str]) -> int:
    """Print the share of each kind of work in steps whose batches are made as well, and the costliest operators."""
    trainer = Trainer(argv)
    cuda = trainer.device.type == "cuda"
    batches = iter(trainer.pipeline)
    for _ in range(WARM_UP):
        trainer.step(next(batches))
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as profiler:
        for _ in range(STEPS):
            with torch.profiler.record_function("make the batch"):
                batch = next(batches)
            trainer.step(batch)
    own: dict[str, float] = {}
    for event in profiler.key_averages():
        if event.key.startswith("ProfilerStep"):
            continue
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        own[event.key] = own.get(event.key, 0.0) + spent / STEPS / 1000
    total = sum(own.values())
    recipe = trainer.config.recipe
    print(
        f"{recipe.method} on {trainer.source.name}, {recipe.backbone.name}, batch {recipe.batch_size}: "
        f"{total:.1f} ms of operators a step"
    )
    print(_table("kind of work", by_kind(own), total))
    print()
    print(_table("operator", own, total, most=12))
    trainer.pipeline.close()
    return 0


def by_kind(own: dict[str, float]) -> dict[str, float]:
    """Milliseconds by KINDS, and "make the batch" and "everything else"."""
    kinds: dict[str, float] = {}
    for name, spent in own.items():
        kind = next((k for k, words in KINDS if any(word in name.lower() for word in words)), "everything else")
        kind = name if name == "make the batch" else kind
        kinds[kind] = kinds.get(kind, 0.0) + spent
    return kinds


def _table(what: str, spent: dict[str, float], total: float, most: int = 99) -> str:
    ranked = sorted(spent.items(), key=lambda item: -item[1])[:most]
    return columns(
        [(what, "ms a step", "share"), *((name[:60], f"{ms:.1f}", f"{ms / total:.1%}") for name, ms in ranked)], left=1
    )


def main() -> int:
    return profile_step(sys.argv[1:])


if __name__ == "__main__":
    run_command("benchmarks.profile_step", main)
