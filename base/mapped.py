"""Files read through memory. One that becomes shorter while it is read, or a disk that fails, ends the process by
SIGBUS, without a word: here are the words."""

from __future__ import annotations

import ctypes
import signal
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

TEXT = (
    b"\nsaccade: a file that is read through memory (a .beton, an index, kept features) became shorter while it was in "
    b"use, or its disk failed (SIGBUS); nothing more can be saved. Let no one write to it, and continue with: saccade "
    b"train --resume RUN\n"
)


def mapped(path: Path) -> np.ndarray:
    """(bytes,) uint8: the file, mapped for reading: Linux counts a map that may be written against its memory, and
    refuses one of a file larger than that. Raises OSError, and ValueError for an empty file."""
    say_so()
    return np.memmap(path, np.uint8, mode="r").view(np.ndarray)


def unwritable(array: np.ndarray) -> torch.Tensor:
    """The same numbers as a tensor, which nobody writes to; torch warns of one that nobody can."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


@cache
def say_so() -> None:
    """From now on a bus error is one sentence and exit code 135 (128 + SIGBUS).

    The handler is compiled: Python's own would run when the instruction that failed has been passed, which is never.
    It calls write and _exit alone, which any moment allows.
    """
    from numba import cfunc

    libc = ctypes.CDLL(None)
    write, leave = libc.write, libc._exit
    write.argtypes, write.restype = [ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t], ctypes.c_ssize_t
    leave.argtypes, leave.restype = [ctypes.c_int], None
    kept = ctypes.create_string_buffer(TEXT)
    place, length, code = ctypes.addressof(kept), len(TEXT), 128 + signal.SIGBUS

    @cfunc("void(int32)")
    def handler(number):
        write(2, place, length)
        leave(code)

    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(int(signal.SIGBUS), handler.address)
    _alive.extend((kept, handler, write, leave))


_alive: list[object] = []  # what the handler points to
