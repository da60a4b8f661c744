"""The parts of the GPU report that ask how fast: what the device reaches, then steps, runs, loaders, and what helps."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_part import Bench, Part, small_argv, tflop_per_image
from saccade.base.machine import available_cpus
from saccade.losses.registry import methods
from saccade.pipelines import pipeline
from saccade.tools.benchmark.contenders import epochs, loaders, steps
from saccade.tools.benchmark.measure import Clock, Contender
from saccade.tools.benchmark.rows import Row
from saccade.tools.benchmark.suites import Work, build_suite, describe, noise, photo_recipe
from saccade.tools.benchmark.trainer import Trainer

CIFAR_IMAGES = 50_000


def ceilings(bench: Bench) -> Iterator[Row]:
    """What the device reaches at best: a copy within its memory, and a large matrix product in bf16."""
    count, side = (1 << 22, 256) if bench.size.miniature else (1 << 30, 8192)
    source = torch.ones(count, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = _shortest(bench, lambda: target.copy_(source))
    yield bench.row("ceiling", "copy", bytes_per_second=2 * count / seconds)
    left = torch.ones(side, side, dtype=torch.bfloat16, device=bench.device)
    seconds = _shortest(bench, lambda: left @ left)
    yield bench.row("ceiling", "product", flop_per_second=2 * side**3 / seconds)


def stec_cifar10(bench: Bench) -> Iterator[Row]:
    """The CIFAR recipe's loader, S-TEC's step and run, and the plain loop a user would write."""
    work = bench.cifar("stec", "cifar10")
    argv = [*small_argv("stec", bench.size.backbone)[2:], "--batch-size", str(bench.size.batch)]
    trainer = Trainer(["--method", "stec", *argv], work.source)
    plain = Trainer(["--method", "simclr", *argv], work.source, plain=True)
    loader = loaders(work, ("resident",), bench.device)[0]
    yield from _with_flops(bench.measure([loader, *steps(work, trainer, plain)]), ["--method", "stec", *argv[:-2]], 32)


def large_views(bench: Bench) -> Iterator[Row]:
    """2 x 224 and 2 x 224 + 6 x 96 with colour and blur, from decoded pixels that lie on the device."""
    size = bench.size
    source = noise(32 * size.large_batch, size.photo * 8 // 7)
    for crops in (0, 6):
        views = photo_recipe(size.photo, crops)
        work = Work(f"decoded {describe(views)}", views, source.name, source, size.large_batch)
        yield from bench.measure(loaders(work, ("resident",), bench.device)[:1])


def simclr_cifar10(bench: Bench) -> Iterator[Row]:
    """200 epochs of SimCLR, projected from whole epochs."""
    yield from _epochs(bench, "simclr", "cifar10", 200)


def rsa_cifar100(bench: Bench) -> Iterator[Row]:
    """800 epochs of RSA, projected from whole epochs."""
    yield from _epochs(bench, "rsa", "cifar100", 800)


def large_steps(bench: Bench) -> Iterator[Row]:
    """ReSA on ResNet-50 with two views, ReSSL with five, and ReSA on a ViT, at 224 px."""
    size = bench.size
    cases = {"resa": ("imagenet", size.large_backbone), "ressl": ("imagenet-5crop", size.large_backbone)}
    for method, (recipe, backbone) in {**cases, "resa ": ("imagenet-vit", size.vit)}.items():
        photo = 64 if backbone == "test_vit" else size.photo
        source = noise(4 * size.large_batch, photo * 8 // 7)
        argv = ["--method", method.strip(), "--recipe", recipe, "--backbone", backbone, "--image-size", str(photo)]
        trainer = Trainer([*argv, "--batch-size", str(size.large_batch)], source)
        views = trainer.config.recipe.views
        work = Work(describe(views), views, source.name, source, size.large_batch)
        yield from _with_flops(bench.measure(steps(work, trainer, None)[:1]), argv, photo, batch=8)
        del trainer
        _forget(bench)


def launches(bench: Bench) -> Iterator[Row]:
    """Kernels a step launches, and the share of its time in which the GPU computes, for each method, not compiled."""
    argv = ["--batch-size", "16" if bench.size.miniature else "256", "--no-compile"]
    for method in methods():
        trainer = Trainer([*small_argv(method, bench.size.backbone), *argv], noise(256, 32))
        yield _profiled(bench, trainer, method)


def launches_compiled(bench: Bench) -> Iterator[Row]:
    """The same of S-TEC and the largest method with their networks compiled."""
    flag = "--no-compile" if bench.size.miniature else "--compile"
    for method in ("stec", "cacr-momentum"):
        argv = [*small_argv(method, bench.size.backbone), "--batch-size", "16" if bench.size.miniature else "256", flag]
        yield _profiled(bench, Trainer(argv, noise(256, 32)), f"{method}, compiled")


def waits(bench: Bench) -> Iterator[Row]:
    """How often a step, and the making of a batch, make the host wait for the GPU, by torch's count (None on a CPU)."""
    for method in methods():
        argv = [*small_argv(method, "test_resnet"), "--batch-size", "32", "--no-compile"]
        trainer = Trainer(argv, noise(128, 32))
        batches = iter(trainer.pipeline)
        trainer.step(next(batches))  # makes the optimizer's state, draws the block's parameters
        made: list = []
        found = {"pipeline_waits": _waits(bench, lambda b=batches, m=made: m.append(next(b)))}
        found["host_waits"] = _waits(bench, lambda t=trainer, m=made: t.step(m[0]))
        yield bench.row("step", method, **found)


def what_helps(bench: Bench) -> Iterator[Row]:
    """S-TEC's run as it is, and with one thing changed: not compiled, cuDNN's search, CUDA graphs, no prefetching."""
    work = bench.cifar("stec", "cifar10")
    argv = [*small_argv("stec", bench.size.backbone), "--batch-size", str(bench.size.batch)]
    compiled = "--no-compile" if bench.size.miniature else "--compile"
    for name, flag, change in (
        ("as it is", compiled, _nothing),
        ("not compiled", "--no-compile", _nothing),
        ("cudnn.benchmark", compiled, _cudnn_benchmark),
        ("CUDA graphs", compiled, _graphs),
        ("not prefetched", compiled, _not_prefetched),
    ):
        with change():
            trainer = Trainer([*argv, flag], work.source)
            contender = steps(work, trainer, None)[1]
            contender.row.more["variant"] = name
            yield from bench.measure([contender])
        del trainer, contender
        _forget(bench)


def photos(bench: Bench) -> Iterator[Row]:
    """JPEG to 2 x 224 by every executor, next to torchvision's DataLoader with all cores, at most 16."""
    size = bench.size
    work = build_suite("photos", bench.scratch, size.photo_batch, size.photo, quick=size.miniature, copies=20)
    skipped: dict[str, str] = {}
    contenders = loaders(work, (), bench.device, min(16, available_cpus()), skipped)
    yield from bench.measure(contenders, rounds=min(3, size.rounds))
    for name, why in skipped.items():
        row = bench.row("skipped", work.recipe_name, why=why)
        row.executor = name
        yield row


SPEED: dict[str, Part] = {
    part.__name__: part
    for part in (
        *(ceilings, waits, stec_cifar10, large_views, simclr_cifar10, rsa_cifar100),
        *(launches, large_steps, photos, launches_compiled, what_helps),
    )
}


def _epochs(bench: Bench, method: str, data: str, count: int) -> Iterator[Row]:
    """Turns of one whole epoch each, and what `count` of them would take."""
    work = bench.cifar(method, data)
    argv = ["--method", method, "--recipe", data, "--backbone", bench.size.backbone, "--image-size", "32"]
    trainer = Trainer(argv, work.source)
    made = steps(work, trainer, None)[1]

    def epoch() -> Iterator[int]:
        batches, steps_per_epoch = epochs(trainer.pipeline), len(trainer.pipeline)
        while True:
            yield sum(trainer.step(next(batches)) for _ in range(steps_per_epoch))

    whole = replace(bench, size=replace(bench.size, seconds=0.0))
    contender = Contender(made.row, epoch, warm_up=0, close=made.close)
    for row in _with_flops(whole.measure([contender], rounds=max(1, bench.size.rounds // 2)), argv, 32):
        if row.images_per_second:
            epoch_seconds = CIFAR_IMAGES / row.images_per_second
            row.more |= {"epoch_seconds": round(epoch_seconds, 3), "epochs": count}
            row.more["minutes_projected"] = round(count * epoch_seconds / 60, 2)
        yield row


def _with_flops(rows: list[Row], argv: list[str], size: int, batch: int = 16) -> list[Row]:
    """Steps and runs with the work of an image, from which the report makes floors and shares."""
    work = tflop_per_image(argv, size, batch)
    for row in rows:
        if row.kind in ("model", "train"):
            row.more["tflop_per_image"] = work
    return rows


def _shortest(bench: Bench, work: Callable[[], object], rounds: int = 5, calls: int = 10) -> float:
    """Seconds of one call, the least over rounds."""
    work()
    found = []
    for _ in range(rounds):
        clock = Clock(bench.device)
        for _ in range(calls):
            work()
        found.append(clock.stop() / calls)
    return min(found)


def _profiled(bench: Bench, trainer: Trainer, name: str, count: int = 3) -> Row:
    batch = next(iter(trainer.pipeline))
    for _ in range(3):
        trainer.step(batch)
    bench.synchronise()
    start = time.perf_counter()
    for _ in range(count):
        trainer.step(batch)
    bench.synchronise()
    seconds = (time.perf_counter() - start) / count
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * bench.is_cuda) as profiler:
        for _ in range(count):
            trainer.step(batch)
        bench.synchronise()
    kernels = [e for e in profiler.events() or () if e.device_type == DeviceType.CUDA]
    busy = sum(e.time_range.elapsed_us() for e in kernels) / 1e6 / count
    trainer.pipeline.close()
    found = {
        "launches": len(kernels) / count,
        "step_ms": round(1e3 * seconds, 3),
        "busy_share": round(busy / seconds, 3),
    }
    return bench.row("profile", name, **found)


def _waits(bench: Bench, work: Callable[[], object]) -> int | None:
    if not bench.is_cuda:
        work()
        return None
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in seen)


def _forget(bench: Bench) -> None:
    torch.compiler.reset()  # each case's shapes are its own; beyond eight, torch would stop compiling
    if bench.is_cuda:
        torch.cuda.empty_cache()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _cudnn_benchmark() -> Iterator[None]:
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


@contextmanager
def _graphs() -> Iterator[None]:
    compile_module = nn.Module.compile
    graphs = lambda self, **options: compile_module(self, mode="reduce-overhead", **options)  # noqa: E731
    with patch.object(nn.Module, "compile", graphs):
        yield


@contextmanager
def _not_prefetched() -> Iterator[None]:
    plain = lambda batches, device: batches  # noqa: E731
    with patch.object(pipeline, "prefetched", plain):
        yield
