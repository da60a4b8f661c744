"""Executes drawn parameters on images: `geometry` and `appearance`, by whichever backend is fastest where they lie."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from saccade.base.errors import UserError
from saccade.pipelines import ops, render_cpu
from saccade.pipelines.draw import ViewParams
from saccade.pipelines.views import View, Views

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

    def __len__(self) -> int:
        return len(self.offset)

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
    return _or_by_torch(lambda chosen: _render(pixels, recipe, params, dtype, index, chosen, threads), backend, device)


def _render(
    pixels: Tensor | Photos,
    recipe: Views,
    params: dict[str, ViewParams],
    dtype: torch.dtype,
    index: Tensor | None,
    chosen: str,
    threads: int | None,
) -> dict[str, Tensor]:
    views = {}
    for family in _families(recipe):
        drawn = [params[view.name] for view in family]
        if chosen == "numba":
            out = render_cpu.render_family(_sources(pixels, index), family, drawn, recipe, threads=threads)
            views.update({view.name: _finish(image, dtype) for view, image in zip(family, out, strict=True)})
        else:
            image = (
                _triton().cut(_sources(pixels, index), family[0], drawn[0])
                if chosen == "triton"
                else geometry(pixels if index is None else pixels[index], family[0], drawn[0])
            )
            for view, p in zip(family, drawn, strict=True):
                views[view.name] = _appearance(image, view, p, recipe, dtype, chosen)
    return {view.name: views[view.name] for view in recipe}


def appearance(
    image: Tensor,
    view: View,
    params: ViewParams,
    recipe: Views,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Colour, grey, blur, solarise and normalise views already cut, for executors that cut their own.

    image: float (N, 3, S, S) in [0, 1], or uint8 (N, 3, S, S) or (N, S, S, 3), in any memory layout; it is not changed.
    Returns (N, 3, S, S) of `dtype`, channels-last. float64 stays float64 inside, and is torch's.
    """
    if image.dtype == torch.uint8 and image.shape[1] != 3:
        image = image.permute(0, 3, 1, 2)
    if image.dtype == torch.float64:
        backend = "torch"
    return _or_by_torch(lambda chosen: _appearance(image, view, params, recipe, dtype, chosen), backend, image.device)


def _appearance(
    image: Tensor, view: View, params: ViewParams, recipe: Views, dtype: torch.dtype, chosen: str
) -> Tensor:
    if chosen == "triton":
        return _triton().finish(image, view, params, recipe, dtype)
    if chosen == "numba":
        sources = render_cpu.Sources.of_batch(image)
        return _finish(render_cpu.render_family(sources, [view], [params], recipe, resized=False)[0], dtype)
    image = image / 255 if image.dtype == torch.uint8 else image
    if view.jitter:
        image = _on_chosen(
            image,
            params.jittered,
            lambda x, p: ops.jitter(x, p.brightness, p.contrast, p.saturation, p.hue, p.jitter_order),
            params,
        )
    if view.grey:
        image = ops.grey(image, params.grey)
    if view.blur:
        taps = view.blur.kernel_size
        image = _on_chosen(image, params.sigma > 0, lambda x, p: ops.blur(x, p.sigma, taps), params)
    if view.solarise:
        image = ops.solarise(image, params.solarise)
    image = ops.normalise(image, recipe.mean, recipe.std)
    return image.to(dtype=dtype, memory_format=torch.channels_last)


def geometry(pixels: Tensor | Photos, view: View, params: ViewParams) -> Tensor:
    """(N, 3, S, S) float in [0, 1]: the crops of one view, resized and mirrored, in plain torch."""
    interpolation = view.crop.interpolation
    if not isinstance(pixels, Photos):
        return ops.crop_resize(pixels, params.box, params.flip, view.size, interpolation)
    cuts = [
        ops.crop_resize(photo, params.box[n : n + 1], params.flip[n : n + 1], view.size, interpolation)
        for n, photo in enumerate(pixels)
    ]
    return torch.cat(cuts) if cuts else torch.empty(0, 3, view.size, view.size)


def choose_backend(backend: str, device: torch.device) -> str:
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
    if backend == "auto":
        fastest = {"cpu": "numba", "cuda": "triton"}.get(device.type)
        return fastest if fastest and fastest not in _FAILED and _installed(fastest) else "torch"
    return backend


def _or_by_torch(work: Callable[[str], Rendered], backend: str, device: torch.device) -> Rendered:
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
        return render_cpu.Sources.of_photos(pixels.buffer, pixels.offset, pixels.size)
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


def _on_chosen(image: Tensor, chosen: Tensor, operation, params: ViewParams) -> Tensor:
    """operation(image, params) where chosen; a CPU computes only those rows, a GPU all of them (parameters of the
    others are identities) because counting them would make it wait."""
    if image.device.type != "cpu":
        return operation(image, params)
    rows = chosen.nonzero().squeeze(1)
    if len(rows) == len(image):
        return operation(image, params)
    if len(rows) == 0:
        return image
    image = image.clone()  # the parent's pixels are shared with derived views
    image[rows] = operation(image[rows], params[rows])
    return image
