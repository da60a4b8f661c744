"""Random numbers as a pure function of a key: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), without state."""

from __future__ import annotations

from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def stream_key(*parts: int) -> int:
    """A 64-bit key that depends on every part and on their order; negative and large integers are welcome."""
    key = 0
    for part in parts:
        key = _mix_int((key + part * _GOLDEN + 1) & _MASK)
    return key


def streams(index: Tensor, key: int) -> Tensor:
    """(N,) int64: the stream of each sample `index` under `key`."""
    return mix64(index * _signed(_GOLDEN) + _signed(key))


def uniform(stream: Tensor, position: Tensor | int) -> Tensor:
    """Position-th number of a stream, float64 in [0, 1) with 53 bits. Broadcasts stream against position."""
    offset = _signed((position + 1) * _GOLDEN) if isinstance(position, int) else (position + 1) * _signed(_GOLDEN)
    bits = mix64(stream + offset)
    return ((bits >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def mix64(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 tensors (two's complement stands for the unsigned 64 bits)."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _mix_int(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    """The int64 with the low 64 bits of x."""
    x &= _MASK
    return x - (1 << 64) if x >> 63 else x
