"""JPEG bytes to RGB pixels in a buffer of the caller's, by libjpeg-turbo through ctypes: many threads at once.

The accurate inverse DCT is asked for, so the pixels are those of PIL (the fast one, FFCV's choice, saves a seventh of
the time and is 1.1 of 255 off on average: docs/data.md). Without the library PIL decodes, at two thirds of the speed.
"""

from __future__ import annotations

import ctypes
import io
import threading
from ctypes.util import find_library
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

_TJPF_RGB, _ACCURATE_DCT = 0, 4096  # turbojpeg.h


def decode_into(data: np.ndarray, out: np.ndarray) -> bool:
    """Decode the JPEG `data` (bytes,) uint8 into `out` (H, W, 3) uint8, contiguous.

    False where it is damaged, of another size, or of a kind that only PIL reads (CMYK); `out` then holds anything.
    """
    if (library := _library()) is None:
        return _decode_with_pil(data, out)
    if not hasattr(_per_thread, "decoder"):
        _per_thread.decoder = _Decoder(library)
    return _per_thread.decoder.decode(data, out)


def decoder_name() -> str:
    return "PIL" if _library() is None else "libjpeg-turbo"


_per_thread = threading.local()  # a decoder serves one thread, and goes with it


class _Decoder:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._library, self._handle = library, library.tjInitDecompress()
        self._width, self._height, self._sampling, self._colours = (ctypes.c_int() for _ in range(4))

    def decode(self, data: np.ndarray, out: np.ndarray) -> bool:
        jpeg, length = data.ctypes.data, data.size
        wrong = self._library.tjDecompressHeader3(
            self._handle,
            jpeg,
            length,
            *(ctypes.byref(x) for x in (self._width, self._height, self._sampling, self._colours)),
        )
        if wrong or (self._height.value, self._width.value) != out.shape[:2]:
            return False
        return (
            self._library.tjDecompress2(
                self._handle,
                jpeg,
                length,
                out.ctypes.data,
                out.shape[1],
                3 * out.shape[1],
                out.shape[0],
                _TJPF_RGB,
                _ACCURATE_DCT,
            )
            == 0
        )

    def __del__(self) -> None:
        self._library.tjDestroy(self._handle)


@cache
def _library() -> ctypes.CDLL | None:
    """The system's libturbojpeg, or the one that FFCV's extension was linked with."""
    for name in ("libturbojpeg.so.0", find_library("turbojpeg"), *_of_ffcv()):
        try:
            library = ctypes.CDLL(name) if name else None
            if library is not None:
                return _typed(library)
        except (OSError, AttributeError):  # not there, or without these functions
            continue
    return None


def _of_ffcv() -> list[str]:
    found = find_spec("ffcv")  # not imported: that would take torch's threads away
    return [
        str(file)
        for folder in (found.submodule_search_locations or () if found else ())
        for file in Path(folder).glob("_libffcv*.so")
    ]


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, integer, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_ulong
    library.tjInitDecompress.restype, library.tjInitDecompress.argtypes = pointer, []
    library.tjDestroy.argtypes = [pointer]
    library.tjDecompressHeader3.argtypes = [pointer, pointer, size, pointer, pointer, pointer, pointer]
    library.tjDecompress2.argtypes = [pointer, pointer, size, pointer, integer, integer, integer, integer, integer]
    return library


def _decode_with_pil(data: np.ndarray, out: np.ndarray) -> bool:
    try:
        with Image.open(io.BytesIO(data.tobytes())) as image:
            if (image.height, image.width) != out.shape[:2] or image.mode not in ("RGB", "L"):
                return False
            out[:] = np.asarray(image.convert("RGB"))
    except Exception:  # a broken file may raise anything
        return False
    return True
