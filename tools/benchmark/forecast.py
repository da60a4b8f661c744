"""Before the first turn: how long a bench will take and what memory, and how batch and rounds keep that in bounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from saccade.base.errors import UserError
from saccade.base.files import megabytes
from saccade.base.machine import available_cpus, available_memory
from saccade.base.text import duration
from saccade.models.norm import batch_norm_splits
from saccade.pipelines.sources import BadImage, Source
from saccade.pipelines.views import Views
from saccade.runs.forecast import Cost, free_memory, step_cost
from saccade.runs.session import Session
from saccade.tools.benchmark.baseline import FLAVOURS, ManyCrops, ViewsDataset
from saccade.tools.benchmark.contenders import Entrant
from saccade.tools.benchmark.measure import Contender, memory_mib

SAMPLED = 64
PROBED = 4  # images that are made to tell how long one takes
SMALLEST = 16  # images of a batch that was made smaller
START = 0.4  # seconds in which a loader's processes or threads start
PROCESS, WORKER = 5e8, 1e8  # bytes of a peer's process, which stays, and of a loader's worker process, in its turn
DECODED = 0.2  # of the seconds of an image's views is its decoding
AHEAD = 2  # batches that each worker of a DataLoader, or each batch in work of ours, has waiting


@dataclass(frozen=True)
class Turn:
    """What a contender will need: seconds before it is timed, of the least that can be timed, and before the first turn
    of all; bytes in its turn, and from the first to the last of all."""

    warm_up: float
    least: float
    bytes: float = 0.0
    first: float = 0.0
    kept: float = 0.0

    def lasts(self, seconds: float) -> float:
        return self.warm_up + max(seconds, self.least)


@dataclass
class Part:
    """Contenders that are measured side by side, not made yet. rounds: counted ones, beside one that is not, of which
    none begins after `budget` seconds."""

    make: Callable[[], list[Contender]]
    turns: Sequence[Turn]
    rounds: int = 0
    budget: float = float("inf")

    @property
    def held(self) -> float:
        """Bytes at most: all of them wait for their turns, one has it."""
        return sum(turn.kept for turn in self.turns) + max((turn.bytes for turn in self.turns), default=0.0)

    def lasts(self, seconds: float) -> float:
        first = sum(turn.first + turn.lasts(0.0) for turn in self.turns)
        others = self.rounds * sum(turn.lasts(seconds) for turn in self.turns)
        return first + min(others, max(0.0, self.budget - first) + longest(seconds))


def longest(seconds: float) -> float:
    """Seconds that the least that can be timed may take, where a turn is to last `seconds`."""
    return max(2 * seconds, 2.0)


def planned(parts: Sequence[Part], rounds: int, seconds: float, budget: float) -> str:
    """Settle the rounds of all parts, fewer where turns cannot be short; "about 3 minutes, 2.1 GB: 9 turns of 12 s".

    UserError where the memory is not there.
    """
    held = max(part.held for part in parts)
    if held > available_memory():
        raise UserError(
            f"this bench takes about {megabytes(held)} of memory, and {megabytes(available_memory())} are free; give "
            "a smaller --batch-size or --image-size."
        )
    for part in parts:
        patience = rounds * len(part.turns) * 2 * longest(seconds)
        part.rounds = min(rounds, int(patience / sum(turn.lasts(seconds) for turn in part.turns)))
        part.budget = budget
    whole = sum(part.lasts(seconds) for part in parts)
    turns = sum(len(part.turns) * (part.rounds + 1) for part in parts)
    each = sorted({f"{turn.lasts(seconds):.0f}" for part in parts for turn in part.turns}, key=float)
    said = f"{turns} turns of {' to '.join(dict.fromkeys((each[0], each[-1])))} s"
    if any(part.rounds < rounds for part in parts):
        said += f", in {min(part.rounds for part in parts) or 1} instead of {rounds} rounds where they are long"
    return f"about {duration(whole)}, {megabytes(held + 2**20 * memory_mib())}: {said}"


@dataclass(frozen=True)
class LoaderCost:
    """Of an image's views: seconds of one thread, by the slower of torchvision's; bytes that they fill. decoded: bytes
    of the whole set as pixels."""

    seconds: float
    bytes: float
    decoded: float

    def turns(self, batch: int, entrants: Sequence[Entrant], baselines: int, workers: int) -> list[Turn]:
        """All loaders at the pace of the slowest: the others' turns last as long as was asked for."""
        bunch = batch * self.seconds  # as many batches as workers, by so many workers
        turn = Turn(START + bunch, bunch, self.held(batch, workers) + workers * WORKER)
        return [self._of_ours(turn, entrant, batch) for entrant in entrants] + [turn] * baselines

    def _of_ours(self, turn: Turn, entrant: Entrant, batch: int) -> Turn:
        """One that holds the whole set decodes it before the first turn, the others the images of a few batches."""
        if entrant.is_decoded:
            return replace(turn, first=DECODED * len(entrant.source) * self.seconds, kept=self.decoded)
        return replace(turn, kept=AHEAD * batch * self.decoded / max(1, len(entrant.source)))

    def peer(self, batch: int, pace: float, first: float, workers: int) -> Turn:
        """Of another library in a process of its own, which takes `pace` times as long as torchvision at most."""
        bunch = pace * batch * self.seconds
        return Turn(START + bunch, bunch, self.held(batch, workers) + workers * WORKER, first, PROCESS)

    def held(self, batch: int, workers: int) -> float:
        return batch * self.bytes * AHEAD * (workers + 1)


def loader_cost(source: Source, recipe: Views) -> LoaderCost:
    """From the views of a few images, made by torchvision where it has these operations."""
    filled = 4.0 * source.channels * sum(view.size**2 for view in recipe)
    decoded = decoded_gib(source) * 2**30
    return LoaderCost(_image_seconds(source, recipe), filled, decoded if decoded < available_memory() / 2 else 0.0)


def _image_seconds(source: Source, recipe: Views) -> float:
    slowest = 0.0
    for flavour in FLAVOURS if source.channels == 3 else ():
        dataset = ViewsDataset(source, ManyCrops(recipe, flavour))
        dataset[0]  # libraries set themselves up
        start = time.perf_counter()
        for i in range(PROBED):
            dataset[i % len(source)]
        slowest = max(slowest, (time.perf_counter() - start) / PROBED)
    return slowest


def sampled(source: Source) -> list[int]:
    """Some images, evenly spread."""
    return np.unique(np.linspace(0, len(source) - 1, SAMPLED).astype(int)).tolist()


def decoded_gib(source: Source) -> float:
    """The set as pixels, estimated from some headers."""
    sizes = []
    for i in sampled(source):
        try:
            sizes.append(np.prod(source.size(i)))
        except BadImage:
            continue
    return len(source) * source.channels * float(np.mean(sizes)) / 2**30 if sizes else 0.0


def step_turns(cost: Cost, batch: int, workers: Sequence[int], device: torch.device) -> list[Turn]:
    """Of contenders that take steps of `batch` images, as many at a time as their loader has `workers` that deliver in
    bunches, 1 for ours; on a GPU neither the time nor the host's memory is told."""
    if device.type != "cpu":
        return [Turn(START, 0.0)] * len(workers)
    step = batch * cost.seconds
    return [Turn(bunch * step, bunch * step, batch * cost.image, kept=cost.fixed) for bunch in workers]


class FittingBatch:
    """Chooses the batch of a run that is to be timed: the recipe's, or half of it, or a quarter, if a step or a
    loader's batches would take longer than a turn may, or do not fit into memory. `said` says what it did.

    loader: of the run's views. A batch that the user gave stays, but where `insists` is False, and is a UserError where
    it does not fit into memory.
    """

    def __init__(
        self,
        seconds: float,
        loader: Callable[[Source, Views], LoaderCost] | None = None,
        insists: bool = True,
    ) -> None:
        self._find_loader, self._longest, self._insists = loader, longest(seconds), insists
        self.said = ""

    def __call__(self, session: Session) -> int:
        config, recipe = session.config, session.config.recipe
        self.cost, self._session = step_cost(session), session
        self.loader = self._find_loader(session.source, recipe.views) if self._find_loader else None
        whole = batch = recipe.batch_size
        free = free_memory(session.accelerator.device)
        while (
            (self._bytes(batch) > free or self._seconds(batch) > self._longest)
            and batch % (2 * config.accumulate) == 0
            and batch >= 2 * SMALLEST
            and (batch // 2) % batch_norm_splits(recipe.batch_norm, batch // 2) == 0
        ):
            batch //= 2
        needs, given = f"{megabytes(self._bytes(whole))} of memory", self._insists and _is_given(config.flags)
        if self._bytes(whole if given else batch) > free:
            raise UserError(
                f"a step of {whole:,} images takes about {needs}, and {megabytes(free)} are free; give "
                f"{f'--batch-size {batch}, or ' if self._bytes(batch) <= free else ''}a smaller --image-size or "
                "--backbone."
            )
        if batch == whole:
            return whole
        if session.accelerator.device.type == "cpu":
            needs = f"{duration(self._seconds(whole))} and {needs}"
        if given:
            self.said = f"a batch of {whole:,} takes about {needs}; one of {batch:,} would do to tell how fast it is"
            return whole
        self.said = f"batches of {batch:,}: one of the recipe's {whole:,} takes about {needs}"
        return batch

    def _seconds(self, batch: int) -> float:
        """Of a step, or of a loader's batches; on a GPU a small pass tells nothing of a step."""
        step = self.cost.seconds if self._session.accelerator.device.type == "cpu" else 0.0
        return batch * max(step, self.loader.seconds if self.loader else 0.0)

    def _bytes(self, batch: int) -> float:
        """On the device: of a step, and on a CPU of a loader's batches."""
        here = self.cost.fixed + batch / self._session.config.accumulate * self.cost.image
        if self.loader and self._session.accelerator.device.type == "cpu":
            here += self.loader.held(batch, self._session.config.workers or available_cpus())
        return here


def _is_given(flags: Mapping[str, Any]) -> bool:
    """Whether the user said how large a batch is to be."""
    return flags["batch_size"] is not None or any(setting.startswith("batch_size=") for setting in flags["set"])
