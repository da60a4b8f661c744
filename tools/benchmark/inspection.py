"""Measures, for the doctor, each part that a run with the user's flags consists of."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from saccade.base.machine import available_cpus, available_memory
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.order import Order
from saccade.pipelines.sources import BadImage, Source
from saccade.pipelines.views import Views
from saccade.tools.benchmark.contenders import epochs
from saccade.tools.benchmark.diagnosis import Speeds
from saccade.tools.benchmark.forecast import FittingBatch, decoded_gib, loader_cost, sampled
from saccade.tools.benchmark.measure import Contender, measure
from saccade.tools.benchmark.rows import Row
from saccade.tools.benchmark.trainer import Trainer

SECONDS, ROUNDS, BUDGET = 0.7, 3, 20.0


def inspect(argv: list[str]) -> Speeds:
    """Run train.py's pipeline and step for a few seconds; images per second of every part."""
    fitting = FittingBatch(SECONDS, loader_cost)
    trainer = Trainer(argv, prog="tools.doctor", fitting=fitting)
    if fitting.said:
        print(f"{fitting.said}\n", flush=True)
    config, source, device = trainer.config, trainer.source, trainer.device
    recipe, executor = config.recipe, trainer.pipeline.choice.partition(" (")[0]
    batch = next(iter(trainer.pipeline))

    def contender(kind: str, start: Callable) -> Contender:
        row = Row(
            kind,
            executor,
            recipe.data,
            source.name,
            device.type,
            recipe.image_size,
            recipe.batch_size,
            len(recipe.views),
        )
        return Contender(row, start)

    order = Order(len(source), recipe.batch_size)
    given = executor, device, batch_dtype(batch), config.workers
    plain = build_pipeline(source, without_colour(recipe.views), order, *given, decode=config.decode)
    rows = measure(
        [
            contender("loader", lambda: (len(b.index) for b in epochs(trainer.pipeline))),
            contender("geometry", lambda: (len(b.index) for b in epochs(plain))),
            contender("model", lambda: trainer.repeat(batch)),
            contender("train", lambda: (trainer.step(b) for b in epochs(trainer.pipeline))),
        ],
        device,
        ROUNDS,
        SECONDS,
        BUDGET,
    )
    plain.close()
    trainer.pipeline.close()
    rate = {row.kind: row.images_per_second for row in rows}
    cpus = available_cpus()
    return Speeds(
        title=f"{recipe.method} on {source.name}: {len(source)} images, {executor}, {recipe.backbone.name}, batch "
        f"{recipe.batch_size}, {device.type}, {trainer.precision}, {cpus} CPUs",
        executor=executor,
        device=device.type,
        precision=trainer.precision,
        loader=rate["loader"],
        model=rate["model"],
        whole=rate["train"],
        geometry=rate["geometry"],
        decode=decode_rate(source, cpus),
        disk=disk_rate(source),
        copy=copy_rate(batch.views.values(), device),
        cpus=cpus,
        machine_cpus=os.cpu_count() or 1,
        workers=config.workers,
        threads=torch.get_num_threads(),
        free_memory=available_memory() / 2**30,
        decoded_set=decoded_gib(source),
        shared_memory=shutil.disk_usage("/dev/shm").free / 2**30 if Path("/dev/shm").exists() else None,
        stem=recipe.backbone.stem,
        image_size=recipe.image_size,
        is_jpeg=source.name_of(0).lower().endswith((".jpg", ".jpeg")),
    )


def batch_dtype(batch) -> torch.dtype:
    return next(iter(batch.views.values())).dtype


def without_colour(recipe: Views) -> Views:
    """The same crops only: what is left of the cost is colour and blur."""
    return replace(recipe, views=tuple(replace(v, operations=()) for v in recipe))


def decode_rate(source: Source, cpus: int) -> float | None:
    """Images decoded per second by as many threads as CPUs; None where nothing is to be decoded."""
    if source.array() is not None:
        return None

    def read(i: int) -> int:
        try:
            source.read(i)
        except BadImage:
            return 0
        return 1

    numbers = sampled(source)
    with ThreadPoolExecutor(cpus) as pool:
        list(pool.map(read, numbers[: 2 * cpus]))  # libraries are loaded
        start = time.perf_counter()
        done = sum(pool.map(read, numbers))
        return done / (time.perf_counter() - start) if done else None


def disk_rate(source: Source) -> float | None:
    """Image files read per second by four threads, from the disk and not from the page cache."""
    folder = getattr(source, "folder", None)
    if folder is None or not hasattr(os, "posix_fadvise"):
        return None
    files = [folder / source.key_of(i) for i in sampled(source)]
    for file in files:
        with open(file, "rb") as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Path.read_bytes, files))
    return len(files) / (time.perf_counter() - start)


def copy_rate(views: Iterable[torch.Tensor], device: torch.device) -> float | None:
    """Images whose finished views are copied from pinned memory per second; None on a CPU."""
    if device.type != "cuda":
        return None
    pinned = [view.cpu().pin_memory() for view in views]
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(5):
        for view in pinned:
            view.to(device, non_blocking=True)
    torch.cuda.synchronize(device)
    return 5 * len(pinned[0]) / (time.perf_counter() - start)
