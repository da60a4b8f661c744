"""Image files to pixels by PIL: what is read, by its content; upright; deep values scaled; never more memory than
is budgeted."""

from __future__ import annotations

import errno
import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from saccade.base.allocator import give_back_memory

MAX_PIXELS = 160_000_000  # of one image: the largest cameras have 151 million
_BUDGET, _SMALL = 2 << 30, 1 << 20  # bytes decoded at a time in a process; pixels that need no budget
_LARGE = 256 << 20  # bytes of a decode after which freed memory is given back
_NEVER = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}  # run another program, or hold no picture that PIL decodes
_UNSIGNED = {"TGA", "SPIDER", "PCD", "IM", "IMT", "IPTC", "FITS", "FLI", "MCIDAS"}  # no or weak signature, or data
_HEIF = {".heic", ".heif", ".hif"}


class BadImage(Exception):
    """One image cannot be used. The text is the reason."""


@dataclass(frozen=True)
class ValueRange:
    """The values of a deep image (16 bits, 32 bits, float) that become 0 and 255. asked: by a flag, not by a backbone
    that saw its images so."""

    low: float
    high: float
    asked: bool = True

    def __str__(self) -> str:
        return f"{self.low:g},{self.high:g}"


@cache
def formats() -> tuple[str, ...]:
    """The formats PIL may open: all that it decodes itself, and HEIF where pillow-heif is installed."""
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.preinit()
    first = list(Image.ID)
    Image.init()
    return tuple(f for f in dict.fromkeys([*first, *Image.ID]) if f not in _NEVER and f in Image.OPEN)


@cache
def extensions() -> frozenset[str]:
    """The endings, in lower case, that say a file is an image we read."""
    usable = {f for f in formats() if f not in _UNSIGNED} | {"TGA", "MPO"}
    return frozenset(e for e, f in Image.registered_extensions().items() if f in usable)


def is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in extensions()


def why_not(extension: str) -> str:
    """The reason for leaving out a file that ends like this and does not look like an image either."""
    if extension.lower() in _HEIF:
        return f"{extension} (pip install pillow-heif reads them)"
    return f"{extension or 'without extension'} (not an image type we read)"


_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"\0\0\0\x0cjP", b"8BPS")


def looks_like_image(file: Path | str) -> bool:
    """Whether a file of any name begins like an image and PIL can open it."""
    try:
        with open(file, "rb") as opened:
            head = opened.read(16)
        if not (head.startswith(_SIGNATURES) or head[4:8] == b"ftyp"):
            return False
        return bytes_are_image(file)
    except OSError:
        return False


def bytes_are_image(file: Any) -> bool:
    """Whether PIL opens it (a path or binary stream)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=[f for f in formats() if f not in _UNSIGNED]):
                return True
    except Exception:
        return False


@contextmanager
def opened(file: Any) -> Iterator[Image.Image]:
    """A file as PIL opens it, by its content."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of odd metadata; the pixels are what counts
        with Image.open(file, formats=formats()) as image:
            yield image


def decode(file: Any, value_range: ValueRange | None = None) -> np.ndarray:
    """An image file (path or binary stream) as (H, W, 3) uint8 RGB, turned upright by its EXIF tag. Raises BadImage.

    value_range: of images deeper than 8 bits; None: all 65,536 values of integers, and of floats 0 to 1 or 0 to 255
    where the image stays within, else its own smallest to its largest.
    """
    try:
        with opened(file) as image, budgeted(image):
            deep = image.mode.startswith("I") or image.mode == "F"
            image = ImageOps.exif_transpose(image)
            pixels = _to_bytes(np.asarray(image), value_range) if deep else np.asarray(image.convert("RGB"))
    except BadImage:
        raise
    except Exception as error:  # PIL's decoders raise anything from OSError to struct.error on a broken file
        raise bad_image(error, file) from error
    if 0 in pixels.shape:
        raise BadImage("no pixels")
    return pixels


def decode_bytes(data: bytes, value_range: ValueRange | None = None) -> np.ndarray:
    """`decode` of a file's bytes."""
    return decode(io.BytesIO(data), value_range)


def deep_values(file: Any) -> np.ndarray | None:
    """(H, W) values of an image of more than 8 bits, None of any other. Raises BadImage."""
    try:
        with opened(file) as image:
            if not (image.mode.startswith("I") or image.mode == "F"):
                return None
            with budgeted(image):
                return np.asarray(image)
    except Exception as error:
        raise bad_image(error, file) from error


def _to_bytes(deep: np.ndarray, value_range: ValueRange | None) -> np.ndarray:
    """(H, W) deep values -> (H, W, 3) uint8."""
    deep = finite(deep, value_range)
    wanted = value_range or own_range(deep)
    scale = 255 / ((wanted.high - wanted.low) or 1)
    if deep.dtype.kind in "iu" and deep.min() >= 0 and deep.max() <= 65535:  # a table: an eighth of the memory
        grey = scaled(np.arange(int(deep.max()) + 1, dtype=np.float64), wanted.low, scale)[deep]
    else:
        half = 0.5 if deep.dtype.kind == "f" and scale != 1 else 0.0  # a float of 0 to 1 is rounded, as it was made
        grey = scaled(deep.astype(np.float64), wanted.low, scale, half)
    return np.repeat(grey[..., None], 3, axis=2)


def finite(values: np.ndarray, value_range: ValueRange | None = None) -> np.ndarray:
    """Values without NaN and infinities: the lowest, or the highest, that becomes a byte, or else that there is.
    BadImage where there is nothing else."""
    if values.dtype.kind != "f" or (known := np.isfinite(values)).all():
        return values
    if not known.any():
        raise BadImage("not one of its values is a number (NaN, or infinite)")
    low, high = (value_range.low, value_range.high) if value_range else (values[known].min(), values[known].max())
    return np.nan_to_num(values, nan=low, posinf=high, neginf=low)


def scaled(values: np.ndarray, low: float, scale: float, half: float = 0.0) -> np.ndarray:
    if low:
        values = values - low
    return (values * scale + half if half else values * scale).clip(0, 255).astype(np.uint8)


def own_range(deep: np.ndarray) -> ValueRange:
    if deep.dtype.kind in "iu":
        return ValueRange(0, max(65535, int(deep.max())))
    finite = deep[np.isfinite(deep)]
    if not finite.size:
        return ValueRange(0, 1)
    low, high = float(finite.min()), float(finite.max())
    return (
        ValueRange(0, 1)
        if low >= 0 and high <= 1
        else ValueRange(0, 255)
        if low >= 0 and high <= 255
        else ValueRange(low, high)
    )


def image_size(file: Any) -> tuple[int, int]:
    """(height, width) after EXIF rotation, reading only the header. Raises BadImage."""
    try:
        with Image.open(file, formats=formats()) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            if turned and image.format == "TIFF":  # PIL may have turned it: is the size still the stored one?
                tags: Any = getattr(image, "tag_v2", {})
                turned = (width, height) == (tags.get(256), tags.get(257)) and width != height
    except Exception as error:
        raise bad_image(error, file) from error
    return (width, height) if turned else (height, width)


def bad_image(error: Exception, file: Any) -> BadImage:
    """The reason without the file's path or address, so that it is the same from everywhere."""
    told = str(error)
    for name in (repr(str(file)), repr(file), str(file)):
        told = told.replace(f": {name}", "").replace(f" {name}", "")
    return BadImage(_no_image(file) or f"{type(error).__name__}: {told}")


_PASSING = {
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ENOMEM, errno.EMFILE, errno.ENFILE),
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENOTCONN, errno.EBUSY),
}


def passes(error: BaseException | None) -> bool:
    """Whether it is the machine that failed and may be well in a while, not the image: what is behind the error."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _PASSING):
            return True
        error = error.__cause__ if error.__cause__ is not error else None
    return False


_KINDS = {
    b"version https://git-lfs": "a pointer of Git LFS; `git lfs pull` gets the image",
    b"<": "markup (HTML, SVG), no pixels",
}


def _no_image(file: Any) -> str:
    """What a file that PIL cannot open is instead, where its beginning says so."""
    try:
        if isinstance(file, (str, Path)):
            if not os.path.isfile(file):
                return ""
            with open(file, "rb") as opened_file:
                head = opened_file.read(64)
        else:
            file.seek(0)
            head = file.read(64)
    except (OSError, ValueError, AttributeError):
        return ""
    if not head:
        return "an empty file"
    return next((what for start, what in _KINDS.items() if head.lstrip().startswith(start)), "")


# --- memory ----------------------------------------------------------------------------------------------------------

_room, _in_flight = threading.Condition(), [0]


@contextmanager
def budgeted(image: Image.Image) -> Iterator[None]:
    """Wait until the decoded image fits beside those that other threads decode; an image of any size goes alone."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(
            f"{width}x{height}: {width * height / 1e6:.0f} million pixels, more than {MAX_PIXELS / 1e6:.0f} million; "
            "make it smaller"
        )
    cost = 0 if width * height <= _SMALL else 12 * width * height  # measured: the peak of a one-bit PNG
    with _room:
        _room.wait_for(lambda: not cost or not _in_flight[0] or _in_flight[0] + cost <= _BUDGET)
        _in_flight[0] += cost
        if cost > _LARGE:
            give_back_memory()  # what other threads decoded before lies in heaps of their own
    try:
        yield
    finally:
        with _room:
            if cost > _LARGE:
                give_back_memory()
            _in_flight[0] -= cost
            _room.notify_all()


def _after_fork() -> None:
    global _room
    _room, _in_flight[0] = threading.Condition(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
