"""The renderer in Triton, for CUDA: two to five launches a view, without any host synchronisation.

The meaning is `pipelines/resize.py` and the operations' `apply`. A program works on BLOCK pixels of one sample, all
three channels in registers. The one thing a sample's blocks must share is the mean luminance for contrast: the launch
before it leaves a sum for each block, so nothing is added atomically and a view has the same bits every time. Its
programs skip work a sample does not need. Sources may be any batch, set or photos that `Sources` describes.
"""

# Triton compiles these functions: its launches and static ranges are none to a checker of Python.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saccade.pipelines.draw import ViewParams
from saccade.pipelines.fusion import Look
from saccade.pipelines.render_cpu import Sources
from saccade.pipelines.views import View

BLOCK = 1024  # pixels of one program


def cut(sources: Sources, view: View, params: ViewParams) -> Tensor:
    """(N, 3, S, S) float32 in [0, 1]: crop, antialiased resize, flip."""
    count, size = len(params), view.size
    out = torch.empty(count, 3, size, size, device=params.box.device)
    if count:
        _cut[_grid(count, size)](
            sources.buffer,
            sources.offset,
            sources.row_stride,
            sources.column_stride,
            sources.channel_stride,
            params.box.contiguous(),
            params.flip.to(torch.int8),
            out,
            SIZE=size,
            SUPPORT=2 if view.crop.interpolation == "bicubic" else 1,
            BLOCK=BLOCK,
            num_warps=8,  # four pixels a thread: eight would not fit into its registers at 224 px
        )
    return out


def finish(image: Tensor, look: Look, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """Colour, grey, blur, solarise, normalise.

    image: (N, 3, S, S) uint8 or float32 in any memory layout -> (N, 3, S, S) of dtype, channels-last.
    """
    count, size = image.shape[0], image.shape[2]
    out = torch.empty(count, 3, size, size, dtype=dtype, device=image.device, memory_format=torch.channels_last)
    if count == 0:
        return out
    grid, shape = _grid(count, size), {"SIZE": size, "BLOCK": BLOCK}
    none = torch.zeros(count, dtype=torch.int8, device=image.device)  # and what a kernel without jitter does not read
    grey, solarise = (none if chosen is None else chosen.to(torch.int8) for chosen in (look.grey, look.solarise))
    finishing = solarise, *mean, *(1 / s for s in std)
    sums = torch.empty(grid, device=image.device)
    factors, order = sums, none
    if look.factors is not None and look.order is not None:
        factors, order = look.factors, look.order.contiguous()
        toned = torch.empty(count, 3, size, size, device=image.device)
        _before_contrast[grid](image, *image.stride(), _unit(image), factors, order, toned, sums, **shape)
        image = toned
    planar = out if look.sigma is None else torch.empty(count, 3, size, size, device=image.device)
    _after_contrast[grid](
        image,
        *image.stride(),
        _unit(image),
        factors,
        order,
        sums,
        grey,
        *finishing,
        planar,
        **shape,
        BLOCKS=triton.next_power_of_2(grid[1]),
        JITTER=look.factors is not None,
        LAST=look.sigma is None,
    )
    if look.sigma is not None:
        smooth, sigma, reach = torch.empty_like(planar), look.sigma.contiguous(), look.taps // 2
        _blur[grid](planar, sigma, reach, *finishing, smooth, **shape, VERTICAL=False)
        _blur[grid](smooth, sigma, reach, *finishing, out, **shape, VERTICAL=True)
    return out


def _grid(count: int, size: int) -> tuple[int, int]:
    return count, -(-size * size // BLOCK)


def _unit(image: Tensor) -> float:
    return 1 / 255 if image.dtype == torch.uint8 else 1.0


@triton.jit
def _cut(
    buffer,
    offset,
    row_stride,
    column_stride,
    channel_stride,
    box,
    flip,
    out,
    SIZE: tl.constexpr,
    SUPPORT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y, x = pixel // SIZE, pixel % SIZE
    x = tl.where(tl.load(flip + sample) != 0, SIZE - 1 - x, x)
    top, left = tl.load(box + 4 * sample), tl.load(box + 4 * sample + 1)
    height, width = tl.load(box + 4 * sample + 2).to(tl.int32), tl.load(box + 4 * sample + 3).to(tl.int32)
    stride = tl.load(row_stride + sample)
    corner = buffer + tl.load(offset + sample) + top * stride + left * column_stride
    red, green, blue = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    rows, columns = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    first_row, first_column = _first_tap(y, height, SIZE, SUPPORT), _first_tap(x, width, SIZE, SUPPORT)
    for i in range(_taps(height, SIZE, SUPPORT)):
        row = first_row + i
        row_weight = _weight(row, y, height, SIZE, SUPPORT)
        rows += row_weight
        columns = tl.zeros([BLOCK], tl.float32)
        for j in range(_taps(width, SIZE, SUPPORT)):
            column = first_column + j
            column_weight = _weight(column, x, width, SIZE, SUPPORT)
            columns += column_weight
            weight = row_weight * column_weight
            at = corner + row * stride + column.to(tl.int64) * column_stride
            needed = (pixel < SIZE * SIZE) & (weight != 0)
            red += weight * tl.load(at, mask=needed, other=0).to(tl.float32)
            green += weight * tl.load(at + channel_stride, mask=needed, other=0).to(tl.float32)
            blue += weight * tl.load(at + 2 * channel_stride, mask=needed, other=0).to(tl.float32)
    unit = 1 / (255 * rows * columns)
    _store_planar(_clamp(red * unit), _clamp(green * unit), _clamp(blue * unit), out, sample, pixel, SIZE)


# The filters' geometry in integers, which is exact: output pixel o has its centre at (2 o + 1) length / (2 size), and
# tap i stands |(2 i + 1) size - (2 o + 1) length| / (2 max(size, length)) filter units from it.


@triton.jit
def _first_tap(o, length, SIZE: tl.constexpr, SUPPORT: tl.constexpr):
    return tl.maximum(((2 * o + 1) * length - 2 * SUPPORT * tl.maximum(length, SIZE) + SIZE) // (2 * SIZE), 0)


@triton.jit
def _taps(length, SIZE: tl.constexpr, SUPPORT: tl.constexpr):
    return 2 * SUPPORT * tl.maximum(length, SIZE) // SIZE + 2


@triton.jit
def _weight(i, o, length, SIZE: tl.constexpr, SUPPORT: tl.constexpr):
    """The triangle (support 1) or Keys' cubic (support 2) at tap i of output pixel o, zero outside the crop."""
    distance = tl.abs((2 * i + 1) * SIZE - (2 * o + 1) * length).to(tl.float32)
    x = distance / (2 * tl.maximum(length, SIZE)).to(tl.float32)
    if SUPPORT == 1:
        weight = tl.maximum(1 - x, 0.0)
    else:
        far = tl.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0.0)
        weight = tl.where(x < 1, (1.5 * x - 2.5) * x * x + 1, far)
    return tl.where(i < length, weight, 0.0)


@triton.jit
def _before_contrast(
    image,
    sample_stride,
    channel_stride,
    row_stride,
    column_stride,
    unit,
    factors,
    order,
    out,
    sums,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The operations drawn before contrast; leaves each block's sum of luminance."""
    sample = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    red, green, blue = _load(image, sample, pixel, sample_stride, channel_stride, row_stride, column_stride, unit, SIZE)
    pending = 1
    for position in tl.static_range(4):
        operation = tl.load(order + 4 * sample + position)
        pending = tl.where(operation == 1, 0, pending)
        if pending == 1:
            red, green, blue = _adjust(red, green, blue, operation, tl.load(factors + 4 * sample + operation), 0.0)
    luma = tl.where(pixel < SIZE * SIZE, _luminance(red, green, blue), 0.0)
    tl.store(sums + sample * tl.num_programs(1) + tl.program_id(1), tl.sum(luma, axis=0))
    _store_planar(red, green, blue, out, sample, pixel, SIZE)


@triton.jit
def _after_contrast(
    image,
    sample_stride,
    channel_stride,
    row_stride,
    column_stride,
    unit,
    factors,
    order,
    sums,
    grey,
    solarise,
    mean_r,
    mean_g,
    mean_b,
    scale_r,
    scale_g,
    scale_b,
    out,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    JITTER: tl.constexpr,
    LAST: tl.constexpr,
):
    """Contrast, the operations drawn after it and grey; finished views where LAST, else planar ones for the blur."""
    sample = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    red, green, blue = _load(image, sample, pixel, sample_stride, channel_stride, row_stride, column_stride, unit, SIZE)
    if JITTER:
        block = tl.arange(0, BLOCKS)
        part = tl.load(sums + sample * tl.num_programs(1) + block, mask=block < tl.num_programs(1), other=0.0)
        mean, reached = tl.sum(part, axis=0) / (SIZE * SIZE), 0
        for position in tl.static_range(4):
            operation = tl.load(order + 4 * sample + position)
            reached = tl.where(operation == 1, 1, reached)
            if reached == 1:
                red, green, blue = _adjust(red, green, blue, operation, tl.load(factors + 4 * sample + operation), mean)
    if tl.load(grey + sample) != 0:
        red = _luminance(red, green, blue)
        green = red
        blue = red
    if LAST:
        _store_view(
            red,
            green,
            blue,
            tl.load(solarise + sample),
            mean_r,
            mean_g,
            mean_b,
            scale_r,
            scale_g,
            scale_b,
            out,
            sample,
            pixel,
            SIZE,
        )
    else:
        _store_planar(red, green, blue, out, sample, pixel, SIZE)


@triton.jit
def _blur(
    image,
    sigma,
    reach,
    solarise,
    mean_r,
    mean_g,
    mean_b,
    scale_r,
    scale_g,
    scale_b,
    out,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    VERTICAL: tl.constexpr,
):
    """One direction of the Gaussian blur with reflected borders; the vertical one finishes the view."""
    sample = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y, x = pixel // SIZE, pixel % SIZE
    width = tl.load(sigma + sample)
    radius = tl.where(width > 0, reach, 0)
    red, green, blue = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    total = 0.0
    for k in range(2 * radius + 1):
        tap = (k - radius).to(tl.float32) / tl.maximum(width, 1e-3)
        weight = tl.exp(-0.5 * tap * tap)
        total += weight
        along = tl.abs((y if VERTICAL else x) + k - radius)
        along = tl.where(along >= SIZE, 2 * (SIZE - 1) - along, along)
        at = image + sample * 3 * SIZE * SIZE + (along * SIZE + x if VERTICAL else y * SIZE + along)
        inside = pixel < SIZE * SIZE
        red += weight * tl.load(at, mask=inside, other=0.0)
        green += weight * tl.load(at + SIZE * SIZE, mask=inside, other=0.0)
        blue += weight * tl.load(at + 2 * SIZE * SIZE, mask=inside, other=0.0)
    red, green, blue = red / total, green / total, blue / total
    if VERTICAL:
        _store_view(
            red,
            green,
            blue,
            tl.load(solarise + sample),
            mean_r,
            mean_g,
            mean_b,
            scale_r,
            scale_g,
            scale_b,
            out,
            sample,
            pixel,
            SIZE,
        )
    else:
        _store_planar(red, green, blue, out, sample, pixel, SIZE)


@triton.jit
def _adjust(red, green, blue, operation, factor, mean):
    """One jitter operation: a blend with black (0), the mean (1) or the luminance (2), or a hue shift (3)."""
    if operation == 3:
        if factor != 0:
            red, green, blue = _shift_hue(red, green, blue, factor)
    else:
        target = tl.where(operation == 2, _luminance(red, green, blue), tl.where(operation == 1, mean, 0.0))
        red = _clamp(factor * red + (1 - factor) * target)
        green = _clamp(factor * green + (1 - factor) * target)
        blue = _clamp(factor * blue + (1 - factor) * target)
    return red, green, blue


@triton.jit
def _shift_hue(red, green, blue, shift):
    value = tl.maximum(red, tl.maximum(green, blue))
    chroma = value - tl.minimum(red, tl.minimum(green, blue))
    safe = tl.where(chroma == 0, 1.0, chroma)
    sextant = (
        tl.where(
            value == red,
            (green - blue) / safe,
            tl.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
        )
        + 6 * shift
    )
    return value - chroma * _fade(sextant + 5), value - chroma * _fade(sextant + 3), value - chroma * _fade(sextant + 1)


@triton.jit
def _fade(k):
    k = k - 6 * tl.floor(k / 6)
    return _clamp(tl.minimum(k, 4 - k))


@triton.jit
def _clamp(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _luminance(red, green, blue):
    return 0.2989 * red + 0.587 * green + 0.114 * blue


@triton.jit
def _load(image, sample, pixel, sample_stride, channel_stride, row_stride, column_stride, unit, SIZE: tl.constexpr):
    at = image + sample * sample_stride + (pixel // SIZE) * row_stride + (pixel % SIZE) * column_stride
    inside = pixel < SIZE * SIZE
    return (
        tl.load(at, mask=inside, other=0).to(tl.float32) * unit,
        tl.load(at + channel_stride, mask=inside, other=0).to(tl.float32) * unit,
        tl.load(at + 2 * channel_stride, mask=inside, other=0).to(tl.float32) * unit,
    )


@triton.jit
def _store_planar(red, green, blue, out, sample, pixel, SIZE: tl.constexpr):
    at, inside = out + sample * 3 * SIZE * SIZE + pixel, pixel < SIZE * SIZE
    tl.store(at, red, mask=inside)
    tl.store(at + SIZE * SIZE, green, mask=inside)
    tl.store(at + 2 * SIZE * SIZE, blue, mask=inside)


@triton.jit
def _store_view(
    red,
    green,
    blue,
    solarised,
    mean_r,
    mean_g,
    mean_b,
    scale_r,
    scale_g,
    scale_b,
    out,
    sample,
    pixel,
    SIZE: tl.constexpr,
):
    """Solarised where chosen, normalised, channels-last, in out's dtype."""
    if solarised != 0:
        red, green, blue = tl.minimum(red, 1 - red), tl.minimum(green, 1 - green), tl.minimum(blue, 1 - blue)
    at, inside = out + (sample * SIZE * SIZE + pixel) * 3, pixel < SIZE * SIZE
    tl.store(at, ((red - mean_r) * scale_r).to(out.dtype.element_ty), mask=inside)
    tl.store(at + 1, ((green - mean_g) * scale_g).to(out.dtype.element_ty), mask=inside)
    tl.store(at + 2, ((blue - mean_b) * scale_b).to(out.dtype.element_ty), mask=inside)
