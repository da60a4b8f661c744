"""Files read through memory. One that becomes shorter while it is read, or a disk that fails, ends the process by
SIGBUS, without a word: here are the words."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from saccade.base.errors import UserError

if TYPE_CHECKING:
    import torch

TEXT = (
    b"\nsaccade: a file that is read through memory (a .beton, an index, kept features) became shorter while it was in "
    b"use, or its disk failed (SIGBUS); nothing more can be saved. Let no one write to it, and continue with: saccade "
    b"train --resume RUN\n"
)


class _Mapped(np.memmap):
    state: tuple[int, ...]  # what tells that another file has its name


@dataclass(frozen=True)
class Lying:
    """Where in a mapped file an array lies: what travels to another process instead of its bytes."""

    path: str
    state: tuple[int, ...]
    offset: int
    kind: str
    shape: tuple[int, ...]

    def array(self) -> np.ndarray:
        """The array, mapped here too. UserError where the file is gone or another one."""
        try:
            whole = _mapped(self.path)
        except (OSError, ValueError):
            whole = None
        if whole is None or whole.state != self.state:
            raise UserError(
                f"{self.path}: this index was removed or written anew while processes that read it started; start "
                "the command again."
            )
        kind = np.dtype(self.kind)
        size = kind.itemsize * math.prod(self.shape)
        return whole.view(np.ndarray)[self.offset : self.offset + size].view(kind).reshape(self.shape)


def mapped(path: Path) -> np.ndarray:
    """(bytes,) uint8: the file, mapped for reading: Linux counts a map that may be written against its memory, and
    refuses one of a file larger than that. Raises OSError, and ValueError for an empty file."""
    say_so()
    return _mapped(os.path.abspath(path)).view(np.ndarray)


def lying(array: np.ndarray) -> Lying | None:
    """Where the array lies, if in a file that is mapped and still has its name."""
    whole = array
    while isinstance(whole, np.ndarray) and not isinstance(whole, _Mapped):
        whole = whole.base
    if whole is None or whole.filename is None or not array.size or not array.flags.c_contiguous:
        return None
    with suppress(OSError):
        if _state(os.stat(whole.filename)) == whole.state:
            offset = array.ctypes.data - whole.ctypes.data
            return Lying(str(whole.filename), whole.state, offset, array.dtype.str, array.shape)
    return None


def sent(array: np.ndarray) -> np.ndarray | Lying:
    """What travels to another process: where the array lies, or else itself."""
    return lying(array) or array


def received(what: np.ndarray | Lying) -> np.ndarray:
    """What was `sent`. Raises UserError."""
    return what.array() if isinstance(what, Lying) else what


def _mapped(path: str) -> _Mapped:
    with open(path, "rb") as file:
        whole = cast(_Mapped, _Mapped(file, np.uint8, mode="r"))  # numpy's hints name np.memmap
        whole.state = _state(os.fstat(file.fileno()))
    return whole


def _state(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


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
