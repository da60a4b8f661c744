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
from saccade.pipelines.cache import Cache
from saccade.pipelines.order import Order
from saccade.pipelines.pipeline import Batch, Pipeline
from saccade.pipelines.sources import Source
from saccade.pipelines.threads import ThreadsPipeline
from saccade.pipelines.views import View, Views
from saccade.tools.benchmark.baseline import FLAVOURS, baseline_loader
from saccade.tools.benchmark.measure import Contender
from saccade.tools.benchmark.peers.materials import prepare
from saccade.tools.benchmark.peers.process import PeerProcess
from saccade.tools.benchmark.peers.registry import Peer
from saccade.tools.benchmark.rows import Row, device_name
from saccade.tools.benchmark.suites import Work
from saccade.tools.benchmark.trainer import Trainer

CACHED = "threads, cached"


def loaders(
    work: Work,
    executors: tuple[str, ...],
    device: torch.device,
    workers: int | None = None,
    skipped: dict[str, str] | None = None,
) -> list[Contender]:
    """A contender for each executor that can read the work (all where `executors` is empty), and the baselines.

    skipped: gets the executors that cannot read it, and why; without it one that was asked for by name is a UserError.
    One that fails when it is built is a row that says so.
    """
    workers, made = workers or loader_workers(), []
    for entrant in entrants(work, executors, device, skipped):
        row = _row("loader", entrant.label, work, device, workers)
        try:
            pipeline = _built(entrant, work, device, workers)
        except UserError as error:
            if skipped is None and entrant.name in executors:
                raise
            row.more = {"error": _reason(error, entrant.name)}
            made.append(Contender(row, lambda: iter(())))
            continue
        row.more = _leaves_out(entrant)
        bunch = workers if entrant.executor == "reference" else 1  # DataLoader workers deliver in bunches
        start = lambda p=pipeline, done=entrant.executor == "reference": _sizes(p, done)  # noqa: E731
        made.append(Contender(row, start, warm_up=max(2, bunch), stride=bunch, close=pipeline.close))
    for flavour in FLAVOURS if work.source.channels == 3 else ():  # torchvision's loader is PIL's
        row = _row("baseline", flavour, work, device, workers)
        made.append(Contender(row, lambda f=flavour: _plain(work, f, workers, device), warm_up=workers, stride=workers))
    return made


def _built(entrant: Entrant, work: Work, device: torch.device, workers: int) -> Pipeline:
    """Its pipeline; with a cache, whole before anything is timed."""
    source, order = entrant.source, Order(len(entrant.source), work.batch_size)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    cache = "ram" if entrant.is_cached else None
    pipeline = build_pipeline(source, work.recipe, order, entrant.name, device, dtype, workers, cache=cache)
    if isinstance(pipeline, ThreadsPipeline) and pipeline.cache is not None:
        _fill(pipeline.cache, source, workers)
    return pipeline


def _fill(cache: Cache, source: Source, workers: int) -> None:
    """Decode all images into it; UserError where it does not hold them."""
    whole = Order(len(source), max(n for n in range(1, 65) if len(source) % n == 0))
    first = ThreadsPipeline(source, Views((View("small", 32),)), whole, workers=workers)
    first.cache = cache
    with first:
        for _ in first:
            pass
    if (held := len(cache)) + len(source.known_bad) < len(source):
        raise UserError(f"memory holds {held:,} of the {len(source):,} images decoded")


def _leaves_out(entrant: Entrant) -> dict[str, str]:
    if not entrant.is_decoded or entrant.source.array() is not None:
        return {}
    where = "RAM (--cache ram, from the second epoch on)" if entrant.is_cached else "one array"
    return {"leaves_out": f"decoding: each image was decoded once, before the first turn, into {where}"}


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
    """An executor of the bench, not built yet. name: as it is asked for; label: as its row calls it; is_cached: what
    it reads was decoded before it is timed."""

    name: str
    label: str
    executor: str
    source: Source
    is_cached: bool = False

    @property
    def is_decoded(self) -> bool:
        """Whether it holds the whole set as pixels."""
        return self.is_cached or self.executor == "resident"


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
                if skipped is None and name in executors:
                    raise
                if skipped is not None:
                    skipped[label or name] = _reason(error, name)
                continue
            found.append(Entrant(name, label or executor, executor, source))
            if work.is_decoded_once and executor == "threads":
                found.append(Entrant(name, CACHED, executor, source, is_cached=True))
    return found


def registered(work: Work) -> list[str]:
    """All executors, the slow reference where photos are compared; --pipeline auto is one of the others."""
    return [name for name in all_executors() if name != "auto" and (name != "reference" or work.betons)]


def _reason(error: UserError, executor: str) -> str:
    return str(error).removeprefix(f"--pipeline {executor}").lstrip(": ")


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
    executor = trainer.pipeline.choice.partition(" (")[0]

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
