"""Hands drawn parameters to the compiled CPU kernel: packs them, checks them, splits the batch over threads."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from saccade.pipelines.draw import ViewParams
from saccade.pipelines.fusion import Look
from saccade.pipelines.views import Normalisation, View

_SHARES = 4  # pieces of work for each thread: samples differ in cost, and a thread may lose its core for a while
_IDENTITY = (1.0, 1.0, 1.0, 0.0, 0.0)  # brightness, contrast, saturation, hue, sigma


@dataclass(frozen=True)
class Sources:
    """Where the samples lie: a flat buffer, and for each sample its first element and its strides, in elements.

    Bounds are checked on a CPU only: on CUDA the host would have to wait for the answer.
    """

    buffer: Tensor  # (elements,) uint8 or float32
    offset: Tensor  # (N,) int64
    row_stride: Tensor  # (N,) int64
    column_stride: int
    channel_stride: int
    size: Tensor  # (N, 2) int64 height and width
    scale: Tensor  # (N,) int64: pixels of a box that a pixel of the source stands for, in both directions

    @staticmethod
    def of_batch(pixels: Tensor, index: Tensor | None = None) -> Sources:
        """Samples `index` (all by default) of (M, 3, H, W) pixels, planar or channels-last, which are not copied."""
        pixels = _strided(pixels)
        index = torch.arange(len(pixels), device=pixels.device) if index is None else index
        if pixels.device.type == "cpu" and len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(pixels):
            raise IndexError(f"sample {int(index.min())}..{int(index.max())} of a set of {len(pixels)} images")
        sample, channel, row, column = pixels.stride()
        length = (
            1 + sum((n - 1) * s for n, s in zip(pixels.shape, pixels.stride(), strict=True)) if pixels.numel() else 0
        )
        size = torch.tensor(pixels.shape[2:]).expand(len(index), 2)
        flat = pixels.as_strided((length,), (1,))
        one = torch.ones_like(index)
        return Sources(flat, index * sample, torch.full_like(index, row), column, channel, size, one)

    @staticmethod
    def of_photos(buffer: Tensor, offset: Tensor, size: Tensor, scale: Tensor | None = None) -> Sources:
        """Decoded photos of any sizes, (H, W, 3) uint8 each, photo n at offset[n] of the flat buffer."""
        scale = torch.ones_like(offset) if scale is None else scale.contiguous()
        if buffer.device.type == "cpu" and len(offset):
            begin, end = int(offset.min()), int((offset + 3 * size.prod(dim=1)).max())
            if begin < 0 or end > len(buffer):
                raise IndexError(f"photos from byte {begin} to {end} in a buffer of {len(buffer)}")
        return Sources(buffer.contiguous(), offset.contiguous(), 3 * size[:, 1], 3, 1, size, scale)


def prepare_family(
    sources: Sources,
    view: View,
    looks: Sequence[Look],
    params: ViewParams,
    normalisation: Normalisation,
    resized: bool = True,
) -> tuple[Callable[[int, int], None], Tensor]:
    """What renders samples start..stop, from where `sources` says at that moment that they lie; and what it writes to,
    (F, N, S, S, 3) float32, normalised: F looks of the one crop and flip that `view` and `params` give.

    resized: False where the sources are S x S views already, which get colour and blur only.
    """
    arguments, out = _arguments(sources, view, looks, params, normalisation, resized)
    return lambda start, stop: _kernel(arguments)(start, stop, *arguments), out


def _arguments(
    sources: Sources,
    view: View,
    looks: Sequence[Look],
    params: ViewParams,
    normalisation: Normalisation,
    resized: bool,
) -> tuple[tuple, Tensor]:
    size, count = view.size, len(params)
    if resized:
        _check_boxes(params.box, sources.size * sources.scale[:, None])
    elif count and not bool((sources.size == size).all()):
        raise ValueError(f"view {view.name!r} is {size} px, the image given is {tuple(sources.size[0].tolist())}")
    factors, order, grey, solarise = _stacked(looks, count)
    mean, std = normalisation
    out = torch.empty(len(looks), count, size, size, 3)
    empty = torch.empty(0, dtype=torch.uint8 if sources.buffer.is_floating_point() else torch.float32)
    pixels, floats = (empty, sources.buffer) if sources.buffer.is_floating_point() else (sources.buffer, empty)
    tensors = (
        factors,
        order,
        grey,
        solarise,
        torch.tensor([look.taps for look in looks]),
        torch.tensor(mean, dtype=torch.float32),
        1 / torch.tensor(std, dtype=torch.float32),
        out.view(-1),
    )
    crop = (params.box.contiguous(), params.flip.contiguous())
    return (
        pixels.numpy(),
        floats.numpy(),
        sources.offset.numpy(),
        sources.row_stride.numpy(),
        sources.column_stride,
        sources.channel_stride,
        sources.scale.numpy(),
        *(t.numpy() for t in crop),
        size,
        view.crop.interpolation == "bicubic",
        resized,
        *(t.numpy() for t in tensors),
    ), out


def _stacked(looks: Sequence[Look], count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(F, N, 5) factors and sigma, (F, N, 4) order, (F, N) grey and solarise, identities where a look has none."""
    factors = torch.tensor(_IDENTITY).repeat(len(looks), count, 1)
    order = torch.zeros(len(looks), count, 4, dtype=torch.uint8)
    grey, solarise = torch.zeros(2, len(looks), count, dtype=torch.bool)
    for f, look in enumerate(looks):
        for given, place in (
            (look.factors, factors[f, :, :4]),
            (look.sigma, factors[f, :, 4]),
            (look.order, order[f]),
            (look.grey, grey[f]),
            (look.solarise, solarise[f]),
        ):
            if given is not None:
                place.copy_(given)
    return factors, order, grey, solarise


def _check_boxes(box: Tensor, size: Tensor) -> None:
    """The kernel trusts its boxes; a wrong one would read another image, or memory that is not ours."""
    inside = (box[:, :2] >= 0) & (box[:, 2:] >= 1) & (box[:, :2] + box[:, 2:] <= size)
    if not bool(inside.all()):
        n = int((~inside.all(dim=1)).nonzero()[0])
        raise ValueError(
            f"sample {n}: the crop (top, left, height, width) {tuple(box[n].tolist())} leaves its image, "
            f"which is {tuple(size[n].tolist())} pixels high and wide"
        )


def _strided(pixels: Tensor) -> Tensor:
    """The pixels themselves where the kernel can walk them (planar rows, or interleaved channels), else a copy."""
    if pixels.is_floating_point():
        pixels = pixels.float()
    _, channel, _, column = pixels.stride()
    walkable = column == 1 or (channel == 1 and column == 3)
    return pixels if walkable else pixels.contiguous()


# --- threads ---------------------------------------------------------------------------------------------------------
# Our own, and a serial kernel that leaves the GIL, not numba's `prange`: of numba's layers the one that is always there
# (workqueue) aborts the process when two Python threads call at once, and the OpenMP one when a DataLoader worker is
# forked after the first call. Plain threads do neither, cost 0.1 ms a batch, and compile in half the time.


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="render")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked worker has the pool, but not its threads


def in_threads(some: Callable[[int, int], None], count: int, threads: int) -> None:
    """Samples 0..count in pieces, on `threads` threads, this one among them."""
    if not count:
        return
    threads = max(1, min(threads, count))
    edges = np.linspace(0, count, 1 + (threads * min(_SHARES, -(-count // threads)) if threads > 1 else 1)).astype(int)
    pieces = iter(list(pairwise(edges.tolist())))

    def work() -> None:
        for start, stop in pieces:  # a list's iterator hands each piece to one thread: `next` holds the GIL
            some(start, stop)

    others = []
    with suppress(RuntimeError):  # the interpreter ends, or there is no thread to be had: this one does it all
        others.extend(_pool(threads - 1).submit(work) for _ in range(threads - 1))
    work()
    for other in others:
        other.result()


# --- compilation -----------------------------------------------------------------------------------------------------

_loading, _loaded = threading.Lock(), []


def _kernel(arguments: tuple):
    """The compiled kernel. A process's first call loads it; a machine's first call compiles it, and says so."""
    with _loading:
        if not _loaded:
            from saccade.pipelines.kernels_cpu import render_samples  # here: importing numba takes half a second

            notice = threading.Timer(
                2.0, tqdm.write, ["compiling the CPU renderer, once for this machine ..."], {"file": sys.stderr}
            )  # loading what is compiled takes 0.3 s
            notice.daemon = True
            notice.start()
            try:
                render_samples(0, 0, *arguments)  # no sample: only compiled
            finally:
                notice.cancel()
            _loaded.append(render_samples)
        return _loaded[0]
