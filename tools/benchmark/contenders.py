"""What is timed: our executors, torchvision's loaders, the step on one cached batch, and both together."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from saccade.base.errors import UserError
from saccade.base.machine import available_cpus
from saccade.pipelines.build import build_pipeline, choose_executor
from saccade.pipelines.build import executors as all_executors
from saccade.pipelines.order import Order
from saccade.pipelines.pipeline import Batch, Pipeline
from saccade.pipelines.sources import Source
from saccade.tools.benchmark.baseline import FLAVOURS, baseline_loader
from saccade.tools.benchmark.measure import Contender
from saccade.tools.benchmark.peers.materials import prepare
from saccade.tools.benchmark.peers.process import PeerProcess
from saccade.tools.benchmark.peers.registry import Peer
from saccade.tools.benchmark.rows import Row, device_name
from saccade.tools.benchmark.suites import Work
from saccade.tools.benchmark.trainer import Trainer


def loaders(
    work: Work,
    executors: tuple[str, ...],
    device: torch.device,
    workers: int | None = None,
    skipped: dict[str, str] | None = None,
) -> list[Contender]:
    """A contender for each executor that can read the work (all where `executors` is empty), and the baselines.

    skipped: gets the executors that are left out, and why.
    """
    workers, made = workers or loader_workers(), []
    for entrant in entrants(work, executors, device, skipped):
        try:
            order = Order(len(entrant.source), work.batch_size)
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            pipeline = build_pipeline(entrant.source, work.recipe, order, entrant.name, device, dtype, workers)
        except UserError as error:
            _leave_out(entrant.label, entrant.name in executors, error, skipped)
            continue
        row = _row("loader", entrant.label, work, device, workers)
        bunch = workers if entrant.executor == "reference" else 1  # DataLoader workers deliver in bunches
        start = lambda p=pipeline, done=entrant.executor == "reference": _sizes(p, done)  # noqa: E731
        made.append(Contender(row, start, warm_up=max(2, bunch), stride=bunch, close=pipeline.close))
    for flavour in FLAVOURS if work.source.channels == 3 else ():  # torchvision's loader is PIL's
        row = _row("baseline", flavour, work, device, workers)
        made.append(Contender(row, lambda f=flavour: _plain(work, f, workers, device), warm_up=workers, stride=workers))
    return made


def peers(work: Work, wanted: Mapping[str, Peer], scratch: Path) -> list[Contender]:
    """Other libraries at the same work, each in a process of its own; one that cannot take part fails, saying why."""
    workers, made = loader_workers(), []
    materials = prepare(work, scratch, workers)
    for name, peer in wanted.items():
        if not peer.suits(work):
            continue
        row = _row("peer", name, work, torch.device("cpu"), workers)
        row.more = {"version": peer.version, "leaves_out": peer.leaves_out}
        process = PeerProcess(peer, materials)
        made.append(Contender(row, process.sizes, warm_up=workers, stride=workers, close=process.close))
    return made


def loader_workers() -> int:
    return min(16, available_cpus())


@dataclass(frozen=True)
class Entrant:
    """An executor of the bench, not built yet. name: as it is asked for; label: as its row calls it."""

    name: str
    label: str
    executor: str
    source: Source


def entrants(
    work: Work, executors: tuple[str, ...], device: torch.device, skipped: dict[str, str] | None = None
) -> list[Entrant]:
    """Those of `executors`, or of all that there are, that say they can read the work."""
    found = []
    for name in executors or registered(work):
        labels = {f"ffcv {form}": beton for form, beton in work.betons.items()} if name == "ffcv" else {}
        for label, source in (labels or {"": work.source}).items():
            try:
                executor = choose_executor(name, source, device).executor
            except UserError as error:
                _leave_out(label or name, name in executors, error, skipped)
                continue
            found.append(Entrant(name, label or executor, executor, source))
    return found


def registered(work: Work) -> list[str]:
    """All executors, the slow reference where photos are compared; --pipeline auto is one of the others."""
    return [name for name in all_executors() if name != "auto" and (name != "reference" or work.betons)]


def _leave_out(label: str, asked: bool, error: UserError, skipped: dict[str, str] | None) -> None:
    if asked:  # for by name: say why it cannot
        raise error
    if skipped is not None:
        skipped[label] = str(error)


def _sizes(pipeline: Pipeline, close: bool) -> Iterator[int]:
    """Batch sizes without end. close: when the turn ends, end the workers too, which would run on into the next."""
    try:
        for batch in epochs(pipeline):
            yield len(batch.index)
    finally:
        if close:
            pipeline.close()


def epochs(pipeline: Pipeline) -> Generator[Batch, None, None]:
    """Batches without end."""
    while True:
        yield from pipeline


def _plain(work: Work, flavour: str, workers: int, device: torch.device) -> Iterator[int]:
    for views, _ in baseline_loader(work.source, work.recipe, flavour, work.batch_size, workers, device):
        views = [view.to(device, non_blocking=True) for view in views]
        yield len(views[0])


def steps(work: Work, trainer: Trainer, plain: Trainer | None, workers: int | None = None) -> list[Contender]:
    """The model ceiling, our training end to end, and with `plain` the loop a user would write around a DataLoader."""
    workers = workers or loader_workers()
    device, batch = trainer.device, next(iter(trainer.pipeline))
    executor = choose_executor(trainer.config.pipeline, work.source, device).executor

    def row(kind: str, of: Trainer, executor: str) -> Row:
        made = _row(kind, executor, work, device, workers)
        made.recipe = f"{of.config.recipe.method} {work.recipe_name}"
        made.backbone, made.precision, made.batch_size = (
            of.config.recipe.backbone.name,
            of.precision,
            of.config.recipe.batch_size,
        )
        made.more["compiled"] = of.compiled
        return made

    cached = Contender(row("model", trainer, "none"), lambda: trainer.repeat(batch))
    trained = Contender(
        row("train", trainer, executor),
        lambda: (trainer.step(b) for b in epochs(trainer.pipeline)),
        close=trainer.pipeline.close,
    )
    if plain is None:
        return [cached, trained]

    def loop() -> Iterator[int]:
        loader = baseline_loader(work.source, work.recipe, FLAVOURS[0], plain.config.recipe.batch_size, workers, device)
        for views, label in loader:
            yield plain.step(plain.as_batch(views, label))

    return [cached, trained, Contender(row("baseline", plain, FLAVOURS[0]), loop, warm_up=workers, stride=workers)]


def _row(kind: str, executor: str, work: Work, device: torch.device, workers: int) -> Row:
    return Row(
        kind,
        executor,
        work.recipe_name,
        work.data,
        device_name(device),
        work.image_size,
        work.batch_size,
        len(work.recipe.views),
        workers,
    )
