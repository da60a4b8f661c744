"""The embedded data set: ten families of texture, drawn here, so that a first run needs no download.

An image is `(ground + contrast * pattern) * light + noise`. Only the pattern's family is the class; its phase,
orientation, scale, bend, line width and polarity, and the colours, light and noise are drawn for each image from the
same distribution whatever the family. Raw pixels and first-order statistics therefore say little about the class,
while it survives a crop, a flip and a change of colour. Colours drift within an image: were they constant, telling
images apart by colour would be the shortcut a contrastive method takes instead of learning shapes (measured: kNN 34 %
instead of 85 %).

The pixels are the same everywhere: the arithmetic is limited to + - * / abs floor sqrt and comparisons, element by
element in float32, which IEEE 754 rounds identically on every machine (no sin, exp, sum or matrix product), on
PCG64's `random` stream, which numpy keeps stable.
"""

from collections.abc import Callable

import numpy as np

from saccade.base.errors import UserError

SIZE = 32
SEED = 20221
SPLITS = {"train": 6_000, "test": 1_000}
BLOCK = 100  # images drawn at a time: few enough to stay in the cache
TABLE = 16  # side of the per-image table of random numbers behind the irregular families

Array = np.ndarray


def textures(split: str) -> tuple[Array, Array]:
    """Images uint8 (N, 32, 32, 3) and labels int64 (N,) of "train" (6,000) or "test" (1,000), each class equally often.

    A pure function of the split. Label i is i % 10, so every prefix is balanced too. UserError for another split.
    """
    if split not in SPLITS:
        raise UserError(f"the embedded data set has no split {split!r}; choose one of {', '.join(SPLITS)}")
    rng = np.random.Generator(np.random.PCG64([SEED, list(SPLITS).index(split)]))
    labels = np.arange(BLOCK, dtype=np.int64) % len(CLASSES)
    blocks = SPLITS[split] // BLOCK
    images = [_paint(rng, _patterns(rng, labels)) for _ in range(blocks)]
    return np.concatenate(images), np.tile(labels, blocks)


def _uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Array:
    return np.float32(low) + np.float32(high - low) * rng.random(shape, dtype=np.float32)


def _pixel_centres() -> tuple[Array, Array]:
    """x (1, 32) to the right and y (32, 1) downwards, in [-1, 1]."""
    line = (np.arange(SIZE, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / SIZE) - np.float32(1)
    return line[None, :], line[:, None]


def _patterns(rng: np.random.Generator, labels: Array) -> Array:
    """The pattern of every image, (N, 32, 32) in [-1, 1]: the class's height field, cut softly at a random level."""
    count = len(labels)
    u, v = _coordinates(rng, count)
    table = _uniform(rng, 0, 1, count, 2, TABLE, TABLE)
    level, softness = _uniform(rng, 0.4, 0.6, count, 1, 1), _uniform(rng, 0.15, 0.4, count, 1, 1)
    polarity = np.where(rng.random((count, 1, 1), dtype=np.float32) < 0.5, np.float32(-2), np.float32(2))
    height = np.empty((count, SIZE, SIZE), np.float32)
    for label, family in enumerate(FAMILIES.values()):
        mine = labels == label
        height[mine] = family(u[mine], v[mine], table[mine])
    return polarity * (np.clip((height - level) / softness + np.float32(0.5), 0, 1) - np.float32(0.5))


def _coordinates(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Texture coordinates u, v (N, 32, 32) in periods: rotated, scaled, shifted and gently bent image coordinates."""
    x, y = _pixel_centres()
    half = _uniform(rng, -1, 1, count, 1, 1)  # tan(angle / 2), the angle up to 90 degrees either way
    cos, sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    s, t = cos * x - sin * y, sin * x + cos * y
    bend = _uniform(rng, -0.25, 0.25, count, 2, 1, 1)
    s, t = s + bend[:, 0] * t * t, t + bend[:, 1] * s * s
    periods = _uniform(rng, 1.5, 3.0, count, 1, 1)  # across half the image: 5 to 11 pixels each
    stretch = _uniform(rng, 0.85, 1.15, count, 1, 1)
    phase = _uniform(rng, 0, TABLE, count, 2, 1, 1)
    return s * periods * stretch + phase[:, 0], t * periods / stretch + phase[:, 1]


def _paint(rng: np.random.Generator, pattern: Array) -> Array:
    """Colour, light and noise: patterns (N, 32, 32) in [-1, 1] to images uint8 (N, 32, 32, 3)."""
    count = len(pattern)
    ground, contrast = _field(rng, 0.15, 0.85, count, 3), _field(rng, 0.08, 0.35, count, 3)
    light, strength = _field(rng, 0.7, 1.3, count, 1), _field(rng, 0, 0.2, count, 1)
    noise = strength * _uniform(rng, -1, 1, count, SIZE, SIZE, 3)
    image = (ground + contrast * pattern[..., None]) * light + noise
    return (np.clip(image, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _field(rng: np.random.Generator, low: float, high: float, count: int, channels: int) -> Array:
    """A field (N, 32, 32, channels), bilinear between four random corners: two crops share little of it."""
    x, y = (axis[..., None] * np.float32(0.5) + np.float32(0.5) for axis in _pixel_centres())
    corners = _uniform(rng, low, high, count, 2, 2, 1, 1, channels)
    left, right = ((1 - y) * corners[:, 0, side] + y * corners[:, 1, side] for side in (0, 1))
    return (1 - x) * left + x * right


# The families: height fields in about [0, 1] over texture coordinates u, v (n, 32, 32) in periods; the irregular two
# take their randomness from `table` (n, 2, 16, 16). A family mirrored is the same family, turned: flips keep it.


def _wave(x: Array) -> Array:
    """Triangle wave of period 1 in [0, 1]: 1 at the integers, 0 halfway between."""
    return np.abs(2 * (x - np.floor(x)) - 1)


def _cell(x: Array) -> Array:
    """Offset in [-1, 1] from the centre of the unit cell."""
    return 2 * (x - np.floor(x)) - 1


def _alternate(*waves: Array) -> Array:
    """Tiles between the lines where a wave is 0.5, alternately high and low, in [-0.5, 0.5]."""
    height = waves[0] - 0.5
    for wave in waves[1:]:
        other = wave - 0.5
        height = np.where(height * other > 0, 1, -1).astype(np.float32) * np.minimum(np.abs(height), np.abs(other))
    return height


def _stripes(u: Array, v: Array, table: Array) -> Array:
    return _wave(u)


def _checks(u: Array, v: Array, table: Array) -> Array:
    return 2 * _alternate(_wave(0.6 * u), _wave(0.6 * v)) + 0.5


def _grid(u: Array, v: Array, table: Array) -> Array:
    return np.maximum(_wave(u), _wave(v)) * 1.6 - 0.8


def _dots(u: Array, v: Array, table: Array) -> Array:
    du, dv = _cell(u + 0.5 * np.floor(v)), _cell(v)
    return 1.15 - np.sqrt(du * du + dv * dv)


def _rings(u: Array, v: Array, table: Array) -> Array:
    du, dv = _cell(u * 0.7), _cell(v * 0.7)
    return 1.1 - 2.5 * np.abs(np.sqrt(du * du + dv * dv) - 0.65)


def _zigzag(u: Array, v: Array, table: Array) -> Array:
    return _wave(u + _wave(v * 0.6))


def _bricks(u: Array, v: Array, table: Array) -> Array:
    return 2.2 * np.maximum(_wave(0.5 * u + 0.5 * np.floor(v)), _wave(v)) - 1.3


def _triangles(u: Array, v: Array, table: Array) -> Array:
    p, q = 0.39 * u, 0.225 * v  # ratio sqrt(3): the triangles are equilateral
    return 3 * _alternate(_wave(p + q), _wave(p - q), _wave(2 * q + 0.25)) + 0.5


def _lookup(table: Array, column: Array, row: Array) -> Array:
    """table (n, 16, 16) at whole-numbered columns and rows (n, 32, 32), wrapping around."""
    index = (row.astype(np.int64) % TABLE) * TABLE + column.astype(np.int64) % TABLE
    flat = table.reshape(len(table), -1)
    return np.take_along_axis(flat, index.reshape(len(table), -1), axis=1).reshape(index.shape)


def _clouds(u: Array, v: Array, table: Array) -> Array:
    i, j = np.floor(u), np.floor(v)
    a, b, values = u - i, v - j, table[:, 0]
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    top = _lookup(values, i, j) * (1 - a) + _lookup(values, i + 1, j) * a
    bottom = _lookup(values, i, j + 1) * (1 - a) + _lookup(values, i + 1, j + 1) * a
    return (top * (1 - b) + bottom * b - 0.5) * 1.6 + 0.5


def _cells(u: Array, v: Array, table: Array) -> Array:
    i, j = np.floor(u), np.floor(v)
    nearest = np.full(u.shape, np.inf, np.float32)
    second = nearest
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            du = i + di + _lookup(table[:, 0], i + di, j + dj) - u
            dv = j + dj + _lookup(table[:, 1], i + di, j + dj) - v
            distance = np.sqrt(du * du + dv * dv)
            second = np.minimum(second, np.maximum(nearest, distance))
            nearest = np.minimum(nearest, distance)
    return 1.2 - 3 * (second - nearest)


FAMILIES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "stripes": _stripes,
    "checks": _checks,
    "grid": _grid,
    "dots": _dots,
    "rings": _rings,
    "zigzag": _zigzag,
    "bricks": _bricks,
    "triangles": _triangles,
    "clouds": _clouds,
    "cells": _cells,
}
CLASSES = tuple(FAMILIES)
