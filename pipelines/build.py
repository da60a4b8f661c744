"""Chooses the executor: by source, size, device and what is installed. Says what it picked and why."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from inspect import isabstract, isclass

import numpy as np
import torch
from torch import distributed

from saccade.base import own
from saccade.base.errors import UserError
from saccade.base.machine import available_cpus, available_memory
from saccade.base.processes import local_processes
from saccade.pipelines.cache import open_cache
from saccade.pipelines.ffcv import FfcvPipeline
from saccade.pipelines.order import Order, ShardedOrder
from saccade.pipelines.pipeline import Pipeline
from saccade.pipelines.reference import ReferencePipeline
from saccade.pipelines.render import choose_backend
from saccade.pipelines.resident import ResidentPipeline
from saccade.pipelines.sampling import Sampling, WeightedOrder
from saccade.pipelines.scale import DECODES
from saccade.pipelines.sources import BadImage, Source
from saccade.pipelines.threads import ThreadsPipeline
from saccade.pipelines.views import Views, check_channels
from saccade.pipelines.whole import UnequalSizes

EXECUTORS = ("auto", "resident", "threads", "dali", "ffcv", "reference")
ENTRY_POINTS = "saccade.executors"  # NAME = "package.module:Class"
_SMALL = 128  # pixels: sets of smaller images are kept in memory
_PROBED = 64  # headers looked at to tell whether a set's images are small and of one size
_INSTALL_DALI = "pip install nvidia-dali-cuda130"


@dataclass(frozen=True)
class Choice:
    """The executor picked, the reason, and what would be faster; as text one line of print."""

    executor: str
    why: str
    gain: str = ""

    def __str__(self) -> str:
        return f"{self.executor} ({self.why}{'; ' + self.gain if self.gain else ''})"


def choose_executor(
    executor: str, source: Source, device: torch.device | str = "cpu", images: float = float("inf")
) -> Choice:
    """Resolve "auto"; check that the wanted executor can read the source. images: how many this process will show."""
    if executor != "auto":
        if reason := _refusal(executor, source, torch.device(device)):
            raise UserError(f"--pipeline {executor}: {reason}")
        return Choice(executor, "as asked")
    for name in ("resident", "ffcv"):
        why = _suits(name, source, torch.device(device))
        if why and _refusal(name, source, torch.device(device)) is None:
            if name == "resident" and images < len(source) and source.array() is None:
                few = f"small images, of which {images:,} are shown: fewer than decoding all {len(source):,} first"
                return replace(_for_photos(source, torch.device(device)), why=few)
            return Choice(name, why)
    return _for_photos(source, torch.device(device))


_DEMANDS = ("resident", "ffcv", "dali", "threads", "reference")  # from what asks most of a machine to what asks least


def of_all_processes(names: Sequence[str]) -> str:
    """The executor of a run whose processes would choose these: two would show different pixels of one view, so the
    one that asks least of a machine is for all."""
    return max(names, key=_DEMANDS.index)


@cache
def _offered() -> dict[str, type[Pipeline]]:
    """Executors of installed packages."""
    return {name: kind for name, kind in own.offered(ENTRY_POINTS, _checked) if name not in EXECUTORS}


def executors() -> tuple[str, ...]:
    """The names of all: ours, and those that installed packages offer."""
    return (*EXECUTORS, *_offered())


def find_executor(name: str) -> type[Pipeline] | None:
    """The class at path/to/file.py:Class or package.module:Class, or that a package offers; None for one of ours.

    A file or module given so is executed: take it from the user alone, never from something received. UserError where
    there is none.
    """
    place, colon, wanted = own.split(name)
    if colon:
        module = own.load_code(place, f"--pipeline {name}")
        return _checked(getattr(module, wanted, None), f"--pipeline {name}")
    if name not in executors():
        raise UserError(
            f"--pipeline {name} is unknown; use one of {', '.join(executors())}, or one of your own as "
            "path/to/file.py:Class or package.module:Class."
        )
    return _offered().get(name)


def _checked(value: object, place: str) -> type[Pipeline]:
    if not (isclass(value) and issubclass(value, Pipeline)) or isabstract(value):
        raise UserError(f"{place} is no executor; derive a class from saccade.pipelines.pipeline.Pipeline.")
    return value


def _agreed(choice: Choice, agree: Callable[[str], str]) -> Choice:
    name = agree(choice.executor)
    return choice if name == choice.executor else Choice(name, "which every process of the run can use")


def _suits(executor: str, source: Source, device: torch.device) -> str | None:
    """Why `auto` prefers this executor for such a source; None where it does not."""
    if executor == "resident":
        array = source.array()
        size = array.shape[1:3] if array is not None else common_size(source)
        if not size or (array is None and (max(size) > _SMALL or not _fits(source, size, device))):
            return None
        return f"{len(source)} images of {size[1]}x{size[0]} fit in memory"
    return "a .beton file" if source.reader.mapped else None


def _for_photos(source: Source, device: torch.device) -> Choice:
    """DALI decodes on a GPU; on a CPU our own threads do, which is as fast and needs nothing installed."""
    if device.type == "cuda" and _refusal("dali", source, device) is None:
        return Choice("dali", "image files of any size, each decoded once on the GPU")
    if _refusal("threads", source, device) is None:
        files = device.type == "cuda" and source.reader.gives_files and not dali_installed()
        return Choice("threads", "images of any size, each decoded once", f"{_INSTALL_DALI} decodes on the GPU" * files)
    return Choice("reference", f"images of {source.channels} channels")


def build_pipeline(
    source: Source,
    recipe: Views,
    order: Order | None = None,
    executor: str = "auto",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    workers: int | None = None,
    renderer: str = "auto",
    *,
    batch_size: int | None = None,
    seed: int = 0,
    agree: Callable[[str], str] = str,
    cache: str | None = None,
    cache_limit: float | None = None,
    decode: str = "exact",
    steps: int | None = None,
) -> Pipeline:
    """The pipeline of `recipe` over `source` in `order`; workers: processes or threads that decode, None for one a CPU.

    Without `order`: all images, shuffled anew every epoch by `seed`, in whole batches of `batch_size` over all
    processes, of which this one takes its share, on its GPU if it has one. Its `choice` says which executor it is and
    why. agree: from the executor that `auto` chose here to that of all processes.
    cache: "ram" or "disk:FOLDER", where decoded images are kept (pipelines.cache), in cache_limit GB at most.
    decode: "scaled" decodes large JPEGs at 1/2, 1/4 or 1/8 where every crop allows it (pipelines.scale).
    steps: batches that will be taken, if that is known: for a few nothing is decoded that they do not show.

    Examples:
        >>> from saccade import View, Views, open_data
        >>> train, _ = open_data("textures")
        >>> with build_pipeline(train, Views(View("weak", 32).times(2)), batch_size=64, device="cpu") as pipeline:
        ...     batch = next(iter(pipeline))
        >>> print(batch)
        Batch(64 of weak_0 (3, 32, 32), weak_1 (3, 32, 32); labelled; on cpu)
        >>> len(pipeline), batch.views["weak_1"].shape, batch.params["weak_1"].box.shape
        (93, torch.Size([64, 3, 32, 32]), torch.Size([64, 4]))
    """
    if order is None:
        order, here = own_share(source, batch_size, seed)
        device = device or here
    try:
        device = torch.device(device or "cpu")
    except RuntimeError as error:
        raise UserError(f"the device {device!r} is unknown; use cpu or cuda.") from error
    share = float("inf") if steps is None else -(-steps * order.batch_size // order.world_size)
    if flag := _of_decoding(cache, decode):
        choice = _by_threads(flag, executor, source, device)
    else:
        choice = choose_executor(executor, source, device, share)
        choice = _agreed(choice, agree) if executor == "auto" else choice
    choose_backend(renderer, torch.device(device), source.channels)  # refuses one that does not run there
    check_channels(recipe, source.channels)
    if choice.executor == "reference" and renderer != "auto":
        raise UserError(f"--renderer {renderer}: --pipeline reference renders by torchvision; leave one of them out.")
    try:
        pipeline = _build(choice.executor, source, recipe, order, device, dtype, workers, renderer)
    except UnequalSizes:
        if executor != "auto":
            raise
        choice = _agreed(_for_photos(source, device), agree)
        pipeline = _build(choice.executor, source, recipe, order, device, dtype, workers, renderer)
    pipeline.choice = str(choice)
    if decode == "scaled":
        assert isinstance(pipeline, ThreadsPipeline)  # that was chosen
        pipeline.scaled = True
    if cache is not None:
        assert isinstance(pipeline, ThreadsPipeline)
        pipeline.cache, told = open_cache(cache, cache_limit, source, pipeline.fingerprint)
        pipeline.choice += f"; {told}"
    elif cache_limit is not None:
        raise UserError(f"--cache-limit {cache_limit:g} goes with --cache; give both or none.")
    return pipeline


def _of_decoding(cache: str | None, decode: str) -> str | None:
    """The flag, of those about decoding, that only some executors follow."""
    if decode not in DECODES:
        raise UserError(f"--decode {decode} is unknown; use one of {', '.join(DECODES)}.")
    if cache is not None and decode == "scaled":
        raise UserError(f"--cache {cache} keeps whole images, --decode scaled makes none; leave one of them out.")
    return "--cache" if cache is not None else "--decode scaled" if decode == "scaled" else None


def _by_threads(flag: str, executor: str, source: Source, device: torch.device) -> Choice:
    """The executor that decodes by threads of ours."""
    wanted = "ffcv" if source.reader.mapped else "threads"
    if executor not in ("auto", wanted, "threads"):
        raise UserError(f"{flag} goes with --pipeline {wanted}, not {executor}; leave one of them out.")
    if source.array() is not None or (source.reader.mapped and not source.index.columns["is_jpeg"].any()):
        raise UserError(f"{flag}: {source.name} holds pixels, which nobody decodes; leave it out.")
    choose_executor(wanted, source, device)  # refuses
    why = "decodes into the cache" if flag == "--cache" else "decodes large JPEGs at the scale that the crops need"
    return Choice(wanted, why)


def own_share(source: Source, batch_size: int | None, seed: int) -> tuple[Order, torch.device]:
    """This process's share of an epoch's batches, by torch.distributed or else its launcher's RANK, and its device."""
    if batch_size is None:
        raise UserError("build_pipeline needs batch_size=N, images of a step over all processes, or an order.")
    if not (isinstance(batch_size, int) and isinstance(seed, int)) or seed < 0:
        raise UserError(f"build_pipeline takes whole numbers; batch_size is {batch_size!r}, seed is {seed!r}.")
    rank, processes = (
        (distributed.get_rank(), distributed.get_world_size())
        if distributed.is_available() and distributed.is_initialized()
        else (int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    )
    gpu = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    device = gpu if torch.cuda.is_available() else torch.device("cpu")
    return Order(len(source), batch_size, seed, rank, processes), device


def _build(
    executor: str,
    source: Source,
    recipe: Views,
    order: Order,
    device: torch.device | str,
    dtype: torch.dtype,
    workers: int | None,
    renderer: str,
) -> Pipeline:
    workers = available_cpus() if workers is None else workers
    if kind := find_executor(executor):
        return kind(source, recipe, order, device, dtype, renderer, workers)
    if executor == "resident":
        return ResidentPipeline(source, recipe, order, device, dtype, renderer, workers=workers)
    if executor == "dali":
        from saccade.pipelines.dali import (
            DaliPipeline,  # here: importing DALI takes a second, and it may not be installed
        )

        return DaliPipeline(source, recipe, order, device, dtype, renderer, threads=workers)
    if executor in ("threads", "ffcv"):
        kind = FfcvPipeline if source.reader.mapped else ThreadsPipeline
        return kind(source, recipe, order, device, dtype, renderer, workers=workers)
    return ReferencePipeline(source, recipe, order, device, dtype, workers=workers)


def create_order(source: Source, shard_group: int, *args, sampling: Sampling | None = None, **kwargs) -> Order:
    """The order of the training samples; shard_group: 0, or how many tar shards are shuffled together."""
    if sampling is not None:
        if shard_group:
            raise UserError("--sampling picks images from anywhere, --shard-group reads shard by shard; give one.")
        return WeightedOrder(sampling.weights, sampling.group, *args, **kwargs)
    if not shard_group:
        return Order(len(source), *args, **kwargs)
    if source.container is None:
        raise UserError(f"--shard-group {shard_group} is for tar shards, {source.name} has none; leave it out.")
    return ShardedOrder(source.container, shard_group, *args, **kwargs)


def _refusal(executor: str, source: Source, device: torch.device) -> str | None:
    """Why this executor cannot work on this source, and the way out; None if it can. `auto` and --pipeline X both
    ask."""
    if kind := find_executor(executor):
        return kind.refusal(source, device)
    if source.channels != 3 and executor in ("threads", "dali", "ffcv"):
        return f"it makes images of 3 channels, {source.name} has {source.channels}; use --pipeline reference or auto."
    if executor == "dali":
        if not dali_installed():
            return f"NVIDIA DALI is not installed; {_INSTALL_DALI} (Linux on x86-64), or use --pipeline threads."
        if not source.reader.gives_files:
            return (
                f"it decodes image files and tar shards, {source.name} holds decoded images or is a .beton; use "
                f"--pipeline {'ffcv' if source.reader.mapped else 'resident'} or auto."
            )
    if executor == "ffcv" and not source.reader.mapped:
        return (
            f"it reads .beton files, {source.name} is none; convert it with saccade convert SRC DST.beton, or use "
            "--pipeline auto."
        )
    if executor == "resident" and source.array() is None:
        size = common_size(source)
        if size and not _fits(source, size, device):
            return (
                f"{len(source)} images of {size[1]}x{size[0]} do not fit into the memory of {device}; use "
                f"--pipeline auto."
            )
    return None


def common_size(source: Source) -> tuple[int, int] | None:
    """(height, width) if a sample of the images, evenly spread, is of one size; else None."""
    sizes = set()
    for i in np.unique(np.linspace(0, len(source) - 1, _PROBED).astype(int)):
        try:
            sizes.add(source.size(int(i)))
        except BadImage:
            continue  # met again, and counted, when it is read
        if len(sizes) > 1:
            return None
    return sizes.pop() if sizes else None


def _fits(source: Source, size: tuple[int, int], device: torch.device) -> bool:
    """Whether the whole set as uint8 takes at most half of this process's share of the memory that is free, on the
    host, which decodes it, and on the device."""
    pixels = len(source) * size[0] * size[1] * source.channels
    on_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
    return pixels <= min(available_memory() / local_processes(), on_device) / 2


def dali_installed() -> bool:
    try:
        return find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # not even `nvidia`
        return False
