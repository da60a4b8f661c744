"""A keyed permutation of 0 .. n-1 that is evaluated place by place: nothing is kept, whatever n.

A Feistel network between the two coordinates of a grid a x b of at least n cells, its rounds hashed by SplitMix64; a
cell beyond n goes round again (cycle walking: Black and Rogaway, CT-RSA 2002, who also give the uneven grid).
"""

from __future__ import annotations

import numpy as np

from saccade.pipelines.kernels_cpu import cached, compiled

# Four rounds look random to whoever sees sqrt(n) places; a set is read whole, so each coordinate has one round more.
_PAIRS = 3
_SIDE = 16  # cells a side at least: small sets get their permutations nearly equally often
_u = np.uint64


@compiled
def _below(value, key, bound):
    """A hash of the value, in 0 .. bound - 1 (bound < 2**32)."""
    x = value * _u(0x9E3779B97F4A7C15) + key
    x = (x ^ (x >> _u(30))) * _u(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _u(27))) * _u(0x94D049BB133111EB)
    x = x ^ (x >> _u(31))
    return ((x >> _u(32)) * bound) >> _u(32)


@cached
def permute(place, count, key):
    """(N,) uint64: where the permutation of 0 .. count[k] - 1 under key[k] puts place[k]. All are (N,) uint64."""
    out = np.empty_like(place)
    for k in range(len(place)):
        n = count[k]
        a = max(_u(np.sqrt(np.float64(n))) + _u(1), _u(_SIDE))
        b = max((n + a - _u(1)) // a, _u(_SIDE))
        x = place[k]
        while True:
            column, row = x % a, x // a
            for pair in range(_PAIRS):
                column += _below(_u(8) * row + _u(2 * pair), key[k], a)
                column -= a if column >= a else _u(0)
                row += _below(_u(8) * column + _u(2 * pair + 1), key[k], b)
                row -= b if row >= b else _u(0)
            x = row * a + column
            if x < n:
                break
        out[k] = x
    return out
