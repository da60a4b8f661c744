"""The renderer of the usual operations as one compiled pass per sample, for CPUs; `pipelines/resize.py` and the
operations' `apply` are its meaning, to float32 rounding.

A sample stays in the cache from its source bytes to its normalised channels-last output, and work it does not need is
skipped. Written for LLVM's vectoriser: flat float32 planes, inner loops without branches over neighbouring elements,
and unsigned indices (a signed one may be negative in Python; testing for that keeps a loop scalar, 8 times slower).
Nothing here checks bounds; `pipelines/render_cpu.py`, the only caller, does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Serial: the caller brings its threads. No "nnan" and "ninf": a NaN in somebody's image must come out as a NaN.
_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy"}


def compiled(function):
    """A piece of the kernel: compiled with, and kept in the cache file of, the kernel that calls it."""
    options: Any = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **_OPTIONS}
    return njit(**options)(function)


def cached(function):
    """Compiled on the first call and kept on disk: beside this module, or under the user's cache directory where that
    is read-only, or in NUMBA_CACHE_DIR. Where none can be written, every process compiles anew."""
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # numba's "cannot cache function: no locator available"
        return njit(**_OPTIONS)(function)


SHARED_FILTERS = 128  # crops up to this long, in source pixels, share their filters
_LUMA_RED, _LUMA_GREEN, _LUMA_BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
_ZERO, _ONE, _TWO, _FOUR, _SIX, _BYTE = (np.float32(x) for x in (0, 1, 2, 4, 6, 1 / 255))
_u = np.uint64
_LANES = 16  # float32 of the widest vector there is; where they are narrower LLVM takes several


@cached
def render_samples(
    start,
    stop,
    pixels,
    floats,
    offset,
    row_stride,
    column_stride,
    channel_stride,
    scale,
    box,
    flip,
    size,
    cubic,
    resized,
    factors,
    order,
    grey,
    solarise,
    taps,
    mean,
    inverse_std,
    out,
):
    """Samples start..stop of one family of views (a geometry and the F views that show it).

    pixels: uint8 (bytes,) and floats: float32 (elements,), one of them holding the sources: sample n begins at
    offset[n], its rows row_stride[n] apart. resized: cut `box` and resize, else sources are size x size already.
    scale: (N,) int64 pixels of a box that a source's pixel stands for.
    factors: (F, N, 5) float32 brightness, contrast, saturation, hue, sigma; order: (F, N, 4) uint8; grey, solarise:
    (F, N) bool; taps: (F,) int64 blur taps; mean, inverse_std: (3,) float32;
    out: (F, N, size, size, 3) float32, flattened; it is written.
    """
    views, plane = len(taps), size * size
    cut, image = np.empty(3 * plane, np.float32), np.empty(3 * plane, np.float32)
    widest, longest, coarsest = 1, 1, 1
    if resized:
        for n in range(start, stop):
            widest = max(widest, _covered(box[n, 1], box[n, 3], scale[n]))
            longest = max(longest, -(-box[n, 2] // scale[n]), -(-box[n, 3] // scale[n]))
            coarsest = max(coarsest, scale[n])
    # Filters depend on the crop's length alone: small ones are computed once for all samples, large ones each time.
    shared = longest <= SHARED_FILTERS and coarsest == 1
    slots = longest + 1 if shared else 2
    bound = size * _taps_bound(longest, size, cubic)
    begin, weight = np.empty((slots, size), np.int64), np.empty((slots, bound), np.float32)
    count, length_of = np.empty((slots, size), np.int64), np.zeros(slots, np.int64)
    # Beyond a row's end its neighbours' weights are zero, but what they multiply must be finite.
    row, planar = np.zeros(3 * (widest + bound // size) + 1, np.float32), np.empty(3 * widest, np.float32)
    reach = 0
    for f in range(views):
        reach = max(reach, taps[f] // 2)
    line, smooth = np.empty(size + 2 * reach, np.float32), np.empty((size + 2 * reach) * size, np.float32)
    gauss = np.empty(reach + 1, np.float32)
    for n in range(start, stop):
        if resized:
            height, width = box[n, 2], box[n, 3]
            row_slot, column_slot = (height, width) if shared else (0, 1)
            for axis in range(2):
                slot, length = (column_slot, width) if axis else (row_slot, height)
                if length_of[slot] != length or scale[n] > 1:
                    _filter(box[n, axis], length, scale[n], size, cubic, begin[slot], weight[slot], count[slot])
                    length_of[slot] = length if scale[n] == 1 else 0  # of a part of a pixel it depends on the start too
            first = offset[n] + box[n, 0] // scale[n] * row_stride[n] + box[n, 1] // scale[n] * column_stride
            _resize(
                pixels,
                first,
                row_stride[n],
                column_stride,
                channel_stride,
                _covered(box[n, 1], width, scale[n]),
                size,
                flip[n],
                begin[row_slot],
                weight[row_slot],
                count[row_slot],
                begin[column_slot],
                weight[column_slot],
                count[column_slot],
                row,
                planar,
                cut,
            )
            if cubic:
                _clamp(cut)
        else:
            if len(floats) > 0:
                _load(floats, offset[n], row_stride[n], column_stride, channel_stride, size, _ONE, cut)
            else:
                _load(pixels, offset[n], row_stride[n], column_stride, channel_stride, size, _BYTE, cut)
        for f in range(views):
            if f + 1 < views:
                for i in range(_u(3 * plane)):
                    image[i] = cut[i]
            else:
                image, cut = cut, image  # the last view may spoil the shared pixels
            for position in range(4):
                operation = order[f, n, position]
                factor = factors[f, n, operation]
                if operation == 3 and factor != _ZERO:
                    _shift_hue(image, plane, factor)
                elif operation != 3 and factor != _ONE:
                    _blend(image, plane, operation, factor)
            if grey[f, n]:
                _grey(image, plane)
            if taps[f] > 0 and factors[f, n, 4] > _ZERO:
                _blur(image, size, factors[f, n, 4], taps[f] // 2, gauss, line, smooth)
            if solarise[f, n]:
                _solarise(image)
            _write(image, plane, mean, inverse_std, out[(f * len(offset) + n) * 3 * plane :])
            if f + 1 == views:
                image, cut = cut, image


@compiled
def _taps_bound(length, size, cubic):
    support = max(length / size, 1.0) * (2 if cubic else 1)
    return int(2 * support) + 3


@compiled
def _covered(start, length, per):
    """Source pixels, each of `per` pixels of the crop, that a crop touches."""
    return -(-(start + length) // per) - start // per


@compiled
def _filter(start, length, per, size, cubic, begin, weight, count):
    """First source position, number of taps and weights for each output position: `resize._filter_matrix` without the
    zeros around them. Weights beyond the number are zero. In float64, so that crops of large photos are placed exactly.
    start, length: of the crop, in pixels of which a source pixel is `per`; positions count from the first it touches.
    """
    bound, pixels = len(weight) // size, _covered(start, length, per)
    before, span = start % per / per, length / per
    scale = span / size
    inverse = 1.0 / max(scale, 1.0)
    support = max(scale, 1.0) * (2.0 if cubic else 1.0)
    for o in range(size):
        centre = (o + 0.5) * scale
        middle = centre + before
        first, last = max(0, int(middle - support + 0.5)), min(pixels, int(middle + support + 0.5))
        at, total, number, kept = o * bound, 0.0, 0, 0
        for i in range(first, last):
            x = abs((i + 0.5 - middle) * inverse)
            if not cubic:
                value = max(1.0 - x, 0.0)
            elif x < 1.0:
                value = (1.5 * x - 2.5) * x * x + 1.0
            else:
                value = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 if x < 2.0 else 0.0
            if per > 1:
                value *= min(i + 1.0, before + span) - max(i * 1.0, before)  # the part of the pixel that is in the crop
            if number == 0:
                begin[o] = i
            if number > 0 or value != 0.0:
                weight[at + number] = value
                total += value
                number += 1
            if value != 0.0:
                kept = number
        normalise = 1.0 / total
        for k in range(kept):
            weight[at + k] *= normalise
        for k in range(kept, bound):
            weight[at + k] = _ZERO
        count[o] = kept


@compiled
def _resize(
    pixels,
    first,
    row_stride,
    column_stride,
    channel_stride,
    width,
    size,
    mirrored,
    rows,
    row_weight,
    row_count,
    columns,
    column_weight,
    column_count,
    row,
    planar,
    image,
):
    """Planar image (3, size, size) of one crop, row by row: the row filter adds up neighbouring elements of the source,
    the column filter reads the row it made while that is in the L1 cache, a pixel's channels at once."""
    interleaved, row_bound, taps = column_stride == 3, len(row_weight) // size, 0
    for x in range(size):
        taps = max(taps, column_count[x])  # the same for every column: the processor learns where the loop ends
    for y in range(size):
        weights, start = row_weight[y * row_bound :], first + rows[y] * row_stride
        if interleaved:
            _filter_row(pixels, start, row_stride, 3 * width, weights, row_count[y], row)
        else:
            for c in range(3):
                _filter_row(
                    pixels, start + c * channel_stride, row_stride, width, weights, row_count[y], planar[c * width :]
                )
            for c in range(3):
                for x in range(_u(width)):
                    row[_u(3) * x + _u(c)] = planar[_u(c * width) + x]
        _filter_columns(row, columns, column_weight, taps, size, mirrored, image[y * size :])


@compiled
def _filter_row(pixels, start, row_stride, length, weight, count, row):
    for k in range(0, count, 2):
        a = _u(start + k * row_stride)
        b = _u(start + min(k + 1, count - 1) * row_stride)  # an odd number's last pair: the same row, weight zero
        wa, wb = weight[k] * _BYTE, weight[k + 1] * _BYTE
        if k == 0:
            for i in range(_u(length)):
                row[i] = wa * np.float32(pixels[a + i]) + wb * np.float32(pixels[b + i])
        else:
            for i in range(_u(length)):
                row[i] += wa * np.float32(pixels[a + i]) + wb * np.float32(pixels[b + i])


@compiled
def _filter_columns(row, columns, weight, taps, size, mirrored, image):
    bound, plane = _u(len(weight) // size), _u(size * size)
    for x in range(_u(size)):
        red, green, blue = _weighted_pixels(row, _u(3 * columns[x]), weight, x * bound, taps)  # type: ignore[call-arg]
        to = _u(size - 1) - x if mirrored else x
        image[to] = red
        image[plane + to] = green
        image[_u(2) * plane + to] = blue


@intrinsic
def _weighted_pixels(typing, row, at, weight, first, taps):
    """Sum over k < taps of weight[first + k] times the three elements from row[at + 3 k], as (red, green, blue).

    Four elements are loaded and added at once, of which the last is nobody's: LLVM's vectoriser, which looks for
    neighbouring elements in one channel, finds nothing in this loop.
    """

    def generate(context, builder, signature, arguments):
        row, at, weight, first, taps = arguments
        four = ir.VectorType(ir.FloatType(), 4)
        pixels = context.make_array(signature.args[0])(context, builder, row).data
        weights = context.make_array(signature.args[2])(context, builder, weight).data
        total = cgutils.alloca_once_value(builder, ir.Constant(four, [0.0] * 4))
        with cgutils.for_range(builder, taps) as loop:
            k = builder.sext(loop.index, at.type) if loop.index.type.width < at.type.width else loop.index
            place = builder.gep(pixels, [builder.add(at, builder.mul(k, ir.Constant(at.type, 3)))])
            pixel = builder.load(builder.bitcast(place, four.as_pointer()), align=4)
            w = builder.load(builder.gep(weights, [builder.add(first, k)]))
            empty = ir.Constant(four, ir.Undefined)
            lane = ir.Constant(ir.IntType(32), 0)
            spread = builder.shuffle_vector(
                builder.insert_element(empty, w, lane), empty, ir.Constant(ir.VectorType(ir.IntType(32), 4), [0] * 4)
            )
            builder.store(
                builder.fadd(builder.load(total), builder.fmul(pixel, spread, flags=["contract"]), flags=["contract"]),
                total,
            )
        summed = builder.load(total)
        lanes = [builder.extract_element(summed, ir.Constant(ir.IntType(32), i)) for i in range(3)]
        return context.make_tuple(builder, signature.return_type, lanes)

    return types.UniTuple(types.float32, 3)(row, at, weight, first, taps), generate


@compiled
def _load(source, first, row_stride, column_stride, channel_stride, size, scale, image):
    """Planar image of one sample that is size x size already."""
    plane = size * size
    for y in range(size):
        start, n = first + y * row_stride, _u(size)
        red, green, blue = _u(y * size), _u(plane + y * size), _u(2 * plane + y * size)
        if column_stride == 3:
            at = _u(start)
            for x in range(n):
                image[red + x] = np.float32(source[at + _u(3) * x]) * scale
                image[green + x] = np.float32(source[at + _u(3) * x + _u(1)]) * scale
                image[blue + x] = np.float32(source[at + _u(3) * x + _u(2)]) * scale
        else:
            a, b, c = _u(start), _u(start + channel_stride), _u(start + 2 * channel_stride)
            for x in range(n):
                image[red + x] = np.float32(source[a + x]) * scale
                image[green + x] = np.float32(source[b + x]) * scale
                image[blue + x] = np.float32(source[c + x]) * scale


@compiled
def _clamp(image):
    for i in range(_u(len(image))):
        image[i] = min(max(image[i], _ZERO), _ONE)


@compiled
def _blend(image, plane, operation, factor):
    """factor x + (1 - factor) g with g black (0), the mean luminance (1) or the luminance (2), cut to [0, 1]."""
    red, green, blue = image[:plane], image[plane : 2 * plane], image[2 * plane :]
    rest = _ONE - factor
    if operation == 2:
        for i in range(_u(plane)):
            r, g, b = red[i], green[i], blue[i]
            luma = rest * (_LUMA_RED * r + _LUMA_GREEN * g + _LUMA_BLUE * b)
            red[i] = min(max(factor * r + luma, _ZERO), _ONE)
            green[i] = min(max(factor * g + luma, _ZERO), _ONE)
            blue[i] = min(max(factor * b + luma, _ZERO), _ONE)
        return
    grey = _ZERO
    if operation == 1:
        total = 0.0  # blocks in float32, their sum in float64: as exact as torch's pairwise sum
        for begin in range(0, plane, 512):
            part = _ZERO
            for i in range(_u(begin), _u(min(begin + 512, plane))):
                part += _LUMA_RED * red[i] + _LUMA_GREEN * green[i] + _LUMA_BLUE * blue[i]
            total += part
        grey = rest * np.float32(total / plane)
    for i in range(_u(3 * plane)):
        image[i] = min(max(factor * image[i] + grey, _ZERO), _ONE)


@compiled
def _shift_hue(image, plane, shift):
    """`jitter.shift_hue`; the sextant's remainder by 6 is taken with floor."""
    red, green, blue = image[:plane], image[plane : 2 * plane], image[2 * plane :]
    turn = _SIX * shift
    for i in range(_u(plane)):
        r, g, b = red[i], green[i], blue[i]
        value = max(r, max(g, b))
        chroma = value - min(r, min(g, b))
        per = _ONE / (chroma if chroma > _ZERO else _ONE)
        from_red, from_green, from_blue = (g - b) * per, _TWO + (b - r) * per, _FOUR + (r - g) * per
        sextant = turn + (from_red if value == r else (from_green if value == g else from_blue))
        red[i] = value - chroma * _fade(sextant + np.float32(5))
        green[i] = value - chroma * _fade(sextant + np.float32(3))
        blue[i] = value - chroma * _fade(sextant + _ONE)


@compiled
def _fade(k):
    k -= _SIX * np.floor(k * np.float32(1 / 6))
    return min(max(min(k, _FOUR - k), _ZERO), _ONE)


@compiled
def _grey(image, plane):
    red, green, blue = image[:plane], image[plane : 2 * plane], image[2 * plane :]
    for i in range(_u(plane)):
        luma = _LUMA_RED * red[i] + _LUMA_GREEN * green[i] + _LUMA_BLUE * blue[i]
        red[i] = luma
        green[i] = luma
        blue[i] = luma


@compiled
def _blur(image, size, sigma, radius, gauss, line, smooth):
    """Separable, with reflected borders. Taps below float32's resolution (beyond 6 sigma) are left out.

    line: (size + 2 radius,) at least; smooth: (size + 2 radius) rows of `size` at least.
    """
    total = 0.0
    for k in range(radius + 1):
        gauss[k] = np.exp(-0.5 * (k / sigma) ** 2)
        total += gauss[k] if k == 0 else 2.0 * gauss[k]
    for k in range(radius + 1):
        gauss[k] /= total
    radius = min(radius, int(6.0 * sigma))
    if radius == 0:
        return
    for c in range(3):
        plane = image[c * size * size :]
        for y in range(size):
            at = _u(y * size)
            for x in range(_u(size)):
                line[_u(radius) + x] = plane[at + x]
            for k in range(1, radius + 1):
                inward = min(k, size - 1)
                line[radius - k] = line[radius + inward]
                line[radius + size - 1 + k] = line[radius + size - 1 - inward]
            _convolve(line, radius, 1, gauss, radius, smooth[(radius + y) * size :], size)
        for k in range(1, radius + 1):
            inward = min(k, size - 1)
            low, high = _u((radius - k) * size), _u((radius + inward) * size)
            bottom, top = _u((radius + size - 1 + k) * size), _u((radius + size - 1 - inward) * size)
            for x in range(_u(size)):
                smooth[low + x] = smooth[high + x]
                smooth[bottom + x] = smooth[top + x]
        for y in range(size):
            _convolve(smooth, (radius + y) * size, size, gauss, radius, plane[y * size :], size)


@compiled
def _convolve(source, at, step, gauss, radius, target, length):
    """target[i] = sum over |k| <= radius of gauss[|k|] source[at + i + k step], for i < length."""
    done = 0
    while done + 4 * _LANES <= length:
        _convolve_four(source, at + done, step, gauss, radius, target, done)  # type: ignore[call-arg]
        done += 4 * _LANES
    while done < length and length >= _LANES:
        done = min(done, length - _LANES)  # the last may overlap the one before
        _convolve_one(source, at + done, step, gauss, radius, target, done)  # type: ignore[call-arg]
        done += _LANES
    for i in range(done, length):
        total = gauss[0] * source[at + i]
        for k in range(1, radius + 1):
            total += gauss[k] * (source[at + i - k * step] + source[at + i + k * step])
        target[i] = total


def _convolver(vectors):
    """`_convolve` of so many neighbouring vectors, whose sums stay in registers from the first tap to the last: LLVM's
    vectoriser stores them after a few taps, and takes half of the width that AVX-512 has."""

    def generate(context, builder, signature, arguments):
        _, at, step, _, radius, _, to = arguments
        pixels, weights, out = (
            context.make_array(signature.args[n])(context, builder, arguments[n]).data for n in (0, 3, 5)
        )
        vector, whole = ir.VectorType(ir.FloatType(), _LANES), ir.IntType(64)
        spread, one = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES), ir.Constant(whole, 1)

        def place(data, index, n):
            index = builder.add(index, ir.Constant(whole, n * _LANES))
            return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())

        def load(index, n):
            return builder.load(place(pixels, index, n), align=4)

        def weight(k):
            empty = ir.Constant(vector, ir.Undefined)
            first = builder.insert_element(
                empty, builder.load(builder.gep(weights, [k])), ir.Constant(ir.IntType(32), 0)
            )
            return builder.shuffle_vector(first, empty, spread)

        centre = weight(ir.Constant(whole, 0))
        sums = [cgutils.alloca_once_value(builder, builder.fmul(centre, load(at, n))) for n in range(vectors)]
        with cgutils.for_range_slice(builder, one, builder.add(radius, one), one) as (k, _):
            w, away = weight(k), builder.mul(k, step)
            for n, total in enumerate(sums):
                pair = builder.fadd(load(builder.sub(at, away), n), load(builder.add(at, away), n))
                product = builder.fmul(w, pair, flags=["contract"])
                builder.store(builder.fadd(builder.load(total), product, flags=["contract"]), total)
        for n, total in enumerate(sums):
            builder.store(builder.load(total), place(out, to, n), align=4)
        return context.get_dummy_value()

    def convolve(typing, source, at, step, gauss, radius, target, to):
        return types.void(source, types.int64, types.int64, gauss, types.int64, target, types.int64), generate

    return intrinsic(convolve)


_convolve_four, _convolve_one = _convolver(4), _convolver(1)


@compiled
def _solarise(image):
    for i in range(_u(len(image))):
        image[i] = min(image[i], _ONE - image[i])  # for x in [0, 1]: x -> 1 - x where x >= 0.5


@compiled
def _write(image, plane, mean, inverse_std, out):
    """Normalised and interleaved."""
    red, green, blue = image[:plane], image[plane : 2 * plane], image[2 * plane :]
    for i in range(_u(plane)):
        out[_u(3) * i] = (red[i] - mean[0]) * inverse_std[0]
        out[_u(3) * i + _u(1)] = (green[i] - mean[1]) * inverse_std[1]
        out[_u(3) * i + _u(2)] = (blue[i] - mean[2]) * inverse_std[2]
