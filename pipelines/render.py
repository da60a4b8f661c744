"""Executes drawn parameters on images: `geometry` and `appearance`, by whichever backend is fastest where they lie."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from saccade.base.errors import UserError
from saccade.pipelines import render_cpu
from saccade.pipelines.draw import ViewParams
from saccade.pipelines.fusion import Run, look_of, runs_of
from saccade.pipelines.operations.operation import on_chosen
from saccade.pipelines.resize import crop_resize
from saccade.pipelines.views import PLAIN, Normalisation, View, Views

BACKENDS = ("auto", "torch", "numba", "triton")
Rendered = TypeVar("Rendered")
_FAILED: set[str] = set()  # compiled backends that "auto" found not to work in this process
_OF_THE_INPUT = (UserError, ValueError, IndexError, torch.OutOfMemoryError)  # errors that are no backend's own


@dataclass(frozen=True)
class Photos:
    """Decoded images of any sizes in one flat buffer, as decoders leave them."""

    buffer: Tensor  # (bytes,) uint8
    offset: Tensor  # (N,) int64: where each photo begins; its (H, W, 3) pixels lie contiguously
    size: Tensor  # (N, 2) int64: height, width
    scale: Tensor | None = None  # (N,) int64: decoded at one in so many pixels, the last of a side for fewer; None: all

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def sources(self) -> render_cpu.Sources:
        """As the kernels take them; offsets may still change."""
        return render_cpu.Sources.of_photos(self.buffer, self.offset, self.size, self.scale)

    def __iter__(self) -> Iterator[Tensor]:
        """(1, 3, H, W) views into the buffer."""
        for begin, (height, width) in zip(self.offset.tolist(), self.size.tolist(), strict=True):
            yield self.buffer[begin : begin + 3 * height * width].view(1, height, width, 3).permute(0, 3, 1, 2)


def render(
    pixels: Tensor | Photos,
    recipe: Views,
    params: dict[str, ViewParams],
    dtype: torch.dtype = torch.float32,
    index: Tensor | None = None,
    backend: str = "auto",
    threads: int | None = None,
) -> dict[str, Tensor]:
    """All views of a batch.

    pixels: (N, 3, H, W) uint8, planar or channels-last, or with `index` (N,) int64 the (M, 3, H, W) set to take those
    samples from (not copied by numba and triton); or Photos.
    params: one ViewParams of N samples for each view, on the same device.
    threads: for the numba backend, by default as many as torch uses.
    Returns name -> (N, 3, S, S) of `dtype`, channels-last. A derived view reuses its parent's geometry.
    """
    device = (pixels.buffer if isinstance(pixels, Photos) else pixels).device
    if not isinstance(pixels, Photos) and pixels.shape[1] != 3 and backend == "auto":
        backend = "torch"
    return or_by_torch(lambda chosen: _render(pixels, recipe, params, dtype, index, chosen, threads), backend, device)


def _render(
    pixels: Tensor | Photos,
    recipe: Views,
    params: dict[str, ViewParams],
    dtype: torch.dtype,
    index: Tensor | None,
    chosen: str,
    threads: int | None,
) -> dict[str, Tensor]:
    if chosen == "numba":
        some, made = prepare(_sources(pixels, index), recipe, params, dtype)
        count = len(next(iter(params.values())))
        render_cpu.in_threads(some, count, threads or torch.get_num_threads())
        return made()
    views = {}
    if chosen == "triton" and isinstance(pixels, Photos) and pixels.scale is not None:
        raise ValueError("photos decoded at a part of their size are cut on a CPU")
    taken = pixels if isinstance(pixels, Photos) or index is None or chosen != "torch" else pixels[index]
    for family in _families(recipe):
        drawn = [params[view.name] for view in family]
        image = (
            _triton().cut(_sources(pixels, index), family[0], drawn[0])
            if chosen == "triton"
            else geometry(taken, family[0], drawn[0])
        )
        for view, p in zip(family, drawn, strict=True):
            views[view.name] = _appearance(image, view, p, recipe, dtype, chosen)
    return {view.name: views[view.name] for view in recipe}


def prepare(
    sources: render_cpu.Sources, recipe: Views, params: dict[str, ViewParams], dtype: torch.dtype
) -> tuple[Callable[[int, int], None], Callable[[], dict[str, Tensor]]]:
    """`render` by numba of pixels that come a few samples at a time: what renders samples start..stop, in any order and
    thread, from where `sources` says at that moment that they lie; and what gives the views when all are done."""
    families = [(family, [params[view.name] for view in family]) for family in _families(recipe)]
    cuts = [_prepared(sources, family, drawn, recipe) for family, drawn in families]

    def some(start: int, stop: int) -> None:
        for cut, _ in cuts:
            cut(start, stop)

    def views() -> dict[str, Tensor]:
        finished: dict[str, Tensor] = {}
        for (family, drawn), (_, out) in zip(families, cuts, strict=True):
            finished |= _finished(out, family, drawn, recipe, dtype)
        return {view.name: finished[view.name] for view in recipe}

    return some, views


def _prepared(
    sources: render_cpu.Sources, family: list[View], drawn: list[ViewParams], recipe: Views
) -> tuple[Callable[[int, int], None], Tensor]:
    """One pass of the kernel for the whole family, without what it does not know."""
    runs = [runs_of(view) for view in family]
    looks = [look_of(r[0], p) for r, p in zip(runs, drawn, strict=True)]
    whole = all(len(r) == 1 for r in runs)
    return render_cpu.prepare_family(sources, family[0], looks, drawn[0], recipe.normalisation if whole else PLAIN)


def _finished(
    out: Tensor, family: list[View], drawn: list[ViewParams], recipe: Views, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The family's views, with what the kernel does not know."""
    runs = [runs_of(view) for view in family]
    if all(len(r) == 1 for r in runs):
        return {view.name: _finish(image, dtype) for view, image in zip(family, out, strict=True)}
    images = (image.permute(0, 3, 1, 2) for image in out)
    rest = (r[1:] or (Run(True),) for r in runs)
    return {
        view.name: _paint(image, left, view, p, recipe.normalisation, dtype, "numba")
        for view, image, left, p in zip(family, images, rest, drawn, strict=True)
    }


def appearance(
    image: Tensor,
    view: View,
    params: ViewParams,
    recipe: Views,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Apply the operations and normalise views already cut, for executors that cut their own.

    image: float (N, 3, S, S) in [0, 1], or uint8 (N, 3, S, S) or (N, S, S, 3), in any memory layout; it is not changed.
    Returns (N, 3, S, S) of `dtype`, channels-last. float64 stays float64 inside, and is torch's.
    """
    if image.dtype == torch.uint8 and image.shape[1] != 3:
        image = image.permute(0, 3, 1, 2)
    if image.dtype == torch.float64:
        backend = "torch"
    return or_by_torch(lambda chosen: _appearance(image, view, params, recipe, dtype, chosen), backend, image.device)


def _appearance(
    image: Tensor, view: View, params: ViewParams, recipe: Views, dtype: torch.dtype, chosen: str
) -> Tensor:
    if chosen == "torch":
        image = image / 255 if image.dtype == torch.uint8 else image
        runs = [Run(False, (item,)) for item in view.keyed.items()]
    else:
        runs = runs_of(view)
        runs = runs if runs[0].operations or len(runs) == 1 or image.dtype == torch.uint8 else runs[1:]
    return _paint(image, runs, view, params, recipe.normalisation, dtype, chosen)


def _paint(
    image: Tensor,
    runs: Sequence[Run],
    view: View,
    params: ViewParams,
    normalisation: Normalisation,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """The runs in order: fused ones by the kernels of the backend, which normalise as they end; others by torch."""
    for k, run in enumerate(runs):
        if not run.fused:
            [(key, operation)] = run.operations
            image = on_chosen(operation.apply, image if backend == "torch" else image.contiguous(), params.drawn[key])
            continue
        last = k + 1 == len(runs)
        look, (mean, std) = look_of(run, params), normalisation if last else PLAIN
        if backend == "triton":
            image = _triton().finish(image, look, mean, std, dtype if last else torch.float32)
        else:
            sources = render_cpu.Sources.of_batch(image)
            some, out = render_cpu.prepare_family(sources, view, [look], params, (mean, std), resized=False)
            render_cpu.in_threads(some, len(params), torch.get_num_threads())
            image = _finish(out[0], dtype if last else torch.float32)
        if last:
            return image
    image = normalise(image, *normalisation)
    return image.to(dtype=dtype, memory_format=torch.channels_last)


def normalise(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(image - mean) / std per channel."""
    if (mean, std) == PLAIN:
        return image
    # Plain numbers, channel by channel: a tensor of them would be a copy to the device, for which the host waits.
    return torch.stack([(image[:, c] - mean[c]) / std[c] for c in range(image.shape[1])], dim=1)


def geometry(pixels: Tensor | Photos, view: View, params: ViewParams) -> Tensor:
    """(N, 3, S, S) float in [0, 1]: the crops of one view, resized and mirrored, in plain torch."""
    interpolation = view.crop.interpolation
    if not isinstance(pixels, Photos):
        return crop_resize(pixels, params.box, params.flip, view.size, interpolation)
    scale = torch.ones_like(pixels.offset) if pixels.scale is None else pixels.scale
    cuts = [
        crop_resize(photo, params.box[n : n + 1], params.flip[n : n + 1], view.size, interpolation, scale[n : n + 1])
        for n, photo in enumerate(pixels)
    ]
    return torch.cat(cuts) if cuts else torch.empty(0, 3, view.size, view.size)


def choose_backend(backend: str, device: torch.device, channels: int = 3) -> str:
    """The backend that runs on `device`: "auto" takes the fastest one installed.

    On a CPU numba: one compiled pass a sample, where torch's passes over the batch make about a thirtieth of the views.
    On CUDA triton: the same two to five launches for any recipe, where eager torch needs over a hundred. Plain torch
    runs anywhere and is what the others are tested against.
    """
    if backend not in BACKENDS:
        raise UserError(f"renderer backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}.")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: kernels run in Python, for tests
    needed = {"numba": "cpu", "triton": "cpu" if interpreted else "cuda"}.get(backend)
    if needed and device.type != needed:
        raise UserError(f"renderer backend {backend!r} runs on {needed}, the images are on {device}; use 'auto'.")
    if channels != 3 and backend in ("numba", "triton"):
        raise UserError(f"renderer backend {backend!r} makes images of 3 channels, not of {channels}; use 'auto'.")
    if backend == "auto" and channels == 3:
        fastest = {"cpu": "numba", "cuda": "triton"}.get(device.type)
        return fastest if fastest and fastest not in _FAILED and _installed(fastest) else "torch"
    return "torch" if backend == "auto" else backend


def or_by_torch(work: Callable[[str], Rendered], backend: str, device: torch.device) -> Rendered:
    """work(backend chosen); where "auto" chose kernels that do not compile or start here, work("torch"), said once.

    A backend asked for by name is not replaced: that it does not work is an error.
    """
    chosen = choose_backend(backend, device)
    if chosen == "torch":
        return work(chosen)
    try:
        return work(chosen)
    except _OF_THE_INPUT:
        raise
    except Exception as error:  # compilers, drivers and caches fail in ways of their own
        why = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[-1][:200]}"
        if backend != "auto":
            raise UserError(
                f"--renderer {backend} does not work on this {device.type} ({why}); use auto or torch."
            ) from error
        out = work("torch")  # fails too where the input, or the device, was to blame
        if chosen not in _FAILED:
            _FAILED.add(chosen)
            tqdm.write(
                f"WARNING: the {chosen} renderer does not work on this {device.type} ({why}); torch makes the same "
                "views instead, many times more slowly. --renderer torch silences this.",
                file=sys.stderr,
            )
        return out


def _sources(pixels: Tensor | Photos, index: Tensor | None) -> render_cpu.Sources:
    if isinstance(pixels, Photos):
        return pixels.sources
    return render_cpu.Sources.of_batch(pixels, index)


def _triton():
    from saccade.pipelines import kernels_cuda  # here: only a machine with CUDA needs triton

    return kernels_cuda


@cache
def _installed(module: str) -> bool:
    return find_spec(module) is not None


def _families(recipe: Views) -> list[list[View]]:
    """Each view with a crop of its own, followed by the views derived from it."""
    return [[view] + [child for child in recipe if child.parent == view.name] for view in recipe if view.parent is None]


def _finish(image: Tensor, dtype: torch.dtype) -> Tensor:
    return image.permute(0, 3, 1, 2).to(dtype)  # (N, S, S, 3) in memory is channels-last
