"""Before the first step: how long the run will take and what memory, from one small forward and backward pass."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.base.errors import UserError, out_of_memory
from saccade.base.files import megabytes
from saccade.base.machine import available_cpus
from saccade.base.text import duration
from saccade.models.norm import batch_norm_splits
from saccade.pipelines.companion import CompanionPipeline
from saccade.pipelines.draw import draw
from saccade.pipelines.sources import BadImage
from saccade.pipelines.threads import ThreadsPipeline
from saccade.runs.memory import KEPT_AGAIN, SMALLER, allowed_parts, free_memory, in_parts
from saccade.runs.session import Session

PROBED, READ = 16, 8  # images of the pass at the least, and of those read
PIXELS = 1 << 18  # of one view of the pass, if they are more: small batches run slower an image
WORTH = 2e7  # pixels of one view over the whole run: below, it is over before it could be forecast
WEIGHTS = 3  # their gradients and momentum beside them
KNN, CACHE = "for images that kNN is measured on", "for --cache ram"
WITHOUT = {KNN: "--eval-every 0", CACHE: "--cache disk:FOLDER"}
TOLD = 0.05  # of all bytes: smaller parts are not named


@dataclass(frozen=True)
class Forecast:
    """seconds: of training, None on a GPU, where a small pass says nothing; bytes: at the peak, of the device; kept:
    those of them that come beside the step, by what they are."""

    seconds: float | None
    bytes: float
    kept: dict[str, float]
    parts: int | None  # in how many parts of the batch it would fit into `free`, if in any
    free: float

    @property
    def fits(self) -> bool:
        return self.bytes <= self.free


@dataclass(frozen=True)
class Cost:
    """Of a step, by a small pass of it. seconds: of one image; fixed, image: bytes whatever the batch, and of each of
    its images."""

    seconds: float
    fixed: float
    image: float


def step_cost(session: Session) -> Cost:
    """From a forward and a backward pass of a few images; before `session.prepare`. UserError where none fit."""
    config, recipe = session.config, session.config.recipe
    micro = recipe.batch_size // config.accumulate
    images = _fitting(micro, recipe.batch_norm, min(128, max(PROBED, PIXELS // recipe.image_size**2)))
    images, seconds, kept = _probed(session, _fitting(micro, recipe.batch_norm, 2), images)
    fixed = WEIGHTS * sum(p.numel() * p.element_size() for p in session.learner.parameters())
    return Cost(seconds / images, fixed, KEPT_AGAIN * kept / images)


def forecast(session: Session, measured: float = 0.0) -> Forecast | None:
    """What the run will need; None for one of a few seconds, and for several processes, which would have to agree.
    measured: bytes of the machine's memory that the images take which the run is measured on."""
    config, recipe, device = session.config, session.config.recipe, session.accelerator.device
    steps, pixels = session.total_steps - session.steps, recipe.batch_size * recipe.image_size**2
    if session.accelerator.num_processes > 1 or (steps * pixels < WORTH and pixels < WORTH / 40):
        return None
    free = free_memory(device)  # before: what is freed may stay with the process
    cost, batch, micro = step_cost(session), recipe.batch_size, recipe.batch_size // config.accumulate
    kept = {KNN: measured, CACHE: _cached(session)} if device.type == "cpu" else {}
    room = max(free - cost.fixed - sum(kept.values()), 1.0)
    fitting = (n for n in allowed_parts(config, batch) if cost.image * batch / n <= room)
    parts = config.accumulate if cost.image * micro <= room else next(fitting, None)
    whole = None
    if device.type == "cpu":
        whole = steps * batch * (cost.seconds + reading(session) / available_cpus())
    return Forecast(whole, cost.fixed + cost.image * micro + sum(kept.values()), kept, parts, free)


def told_forecast(session: Session, measured: float = 0.0) -> str | None:
    """The line before step 1; UserError where the batch will not fit into memory, with the ways to make it."""
    found = forecast(session, measured)
    if found is None:
        return None
    recipe = session.config.recipe
    large = [name for name, size in found.kept.items() if size >= TOLD * found.bytes]
    kept = ", of it " + " and ".join(f"{megabytes(found.kept[name])} {name}" for name in large) if large else ""
    if not found.fits and not session.config.resume:
        way = "".join(f"{WITHOUT[name]}, " for name in large)
        way += "" if found.parts is None else f"--accumulate {found.parts} ({in_parts(session, found.parts)}), "
        raise UserError(
            f"a step of {recipe.batch_size} images of {recipe.image_size} pixels through {recipe.backbone.name} takes "
            f"about {megabytes(found.bytes)} of memory{kept}, and {megabytes(found.free)} are free; give "
            f"{way}{SMALLER}, or --recipe small."
        )
    epochs = session.total_steps / session.steps_per_epoch
    trains = f"trains {epochs:.3g} epochs of {len(session.source):,} images"
    took = "" if found.seconds is None else f"about {duration(found.seconds)}, "
    return f"{took}{megabytes(found.bytes)}{kept}; {trains}"


def _cached(session: Session) -> float:
    """Bytes that `--cache ram` will fill."""
    main = session.pipeline.main if isinstance(session.pipeline, CompanionPipeline) else session.pipeline
    cache = main.cache if isinstance(main, ThreadsPipeline) else None
    return 0.0 if cache is None else float(cache.fills)


def _probed(session: Session, least: int, images: int) -> tuple[int, float, float]:
    """As many of these images as there is memory for, and their `probe`; UserError where that is none."""
    found = None
    for count in dict.fromkeys((least, images)):  # the fewest first: where memory ran out once, less may fail too
        try:
            found = count, *probe(session, count, 5 if count == images else 1)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            break
    if found is not None:
        return found
    recipe = session.config.recipe
    raise UserError(
        f"out of memory on {session.accelerator.device}: not even {least} images of {recipe.image_size} pixels go "
        f"through {recipe.backbone.name} at a time; give a smaller --image-size or --backbone, or --recipe small."
    )


def probe(session: Session, images: int, times: int = 5) -> tuple[float, float]:
    """Seconds of a forward and a backward pass of so many images of noise, and the bytes that autograd keeps for it.

    On a copy of the networks: neither the run's weights nor its random numbers know of it.
    """
    learner = copy.deepcopy(session.learner).train()
    device, recipe = session.accelerator.device, session.config.recipe
    index = torch.arange(images)
    params = draw(recipe.views, session.config.seed, 0, index, torch.full((images, 2), recipe.image_size))
    channels = len(recipe.views.mean)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        views = {v.name: _noise(images, channels, v.size, device) for v in recipe.views}
        moved = {name: p.to(device) for name, p in params.items()}
        label = torch.zeros(images, dtype=torch.long, device=device) if session.source.labels is not None else None
        seconds = float("inf")
        ends = time.perf_counter() + 2
        for _ in range(times):  # the first one sets libraries up, others may have had the cores
            kept.clear()
            start = time.perf_counter()
            learner.begin_step(session.steps)
            with session.accelerator.autocast(), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
                loss = learner(views, moved, label, None)["loss"]
            loss.backward()
            seconds = min(seconds, time.perf_counter() - start)
            if time.perf_counter() > ends:
                break
    own = {p.untyped_storage().data_ptr() for p in learner.parameters()}
    return seconds, float(sum(size for place, size in kept.items() if place not in own))


def _noise(images: int, channels: int, size: int, device: torch.device) -> Tensor:
    return torch.rand(images, channels, size, size, device=device).to(memory_format=torch.channels_last)


def _fitting(micro: int, batch_norm: str, wanted: int) -> int:
    """The fewest images, `wanted` or more, that fall into the groups of batch norm, at least two in each."""
    splits = batch_norm_splits(batch_norm, micro)
    return min(micro, splits * max(2, -(-wanted // splits)))


def reading(session: Session) -> float:
    """Seconds that reading and decoding one image takes; 0 where the images lie in memory."""
    source = session.source
    if source.array() is not None or session.pipeline.choice.startswith("resident"):
        return 0.0
    numbers = torch.linspace(0, len(source) - 1, min(READ, len(source))).long().tolist()
    start = time.perf_counter()
    for number in numbers:
        try:
            source.read(number)
        except BadImage:
            continue
    return (time.perf_counter() - start) / len(numbers)
