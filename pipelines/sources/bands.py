"""Images of other than three channels: multi-spectral TIFF and arrays, grey images. Whole bands, no colour space."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps, TiffImagePlugin

from saccade.base.errors import UserError
from saccade.pipelines.sources.decode import BadImage, ValueRange, bad_image, budgeted, finite, opened, scaled

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little and big endian, and those of BigTIFF


def decode_bands(file: Any, channels: int, value_range: ValueRange | None = None) -> np.ndarray:
    """An image file (path or binary stream) as (H, W, channels) uint8. Raises BadImage for another number of bands.

    value_range: of images deeper than 8 bits; None: their own smallest to their largest value.
    """
    return to_bytes(values(file, channels), value_range)


def to_bytes(pixels: np.ndarray, value_range: ValueRange | None) -> np.ndarray:
    """The same as uint8, the range's two ends as 0 and 255; 8 bits stay as they are."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "b":
        return pixels.astype(np.uint8) * 255
    pixels = finite(pixels, value_range)
    wanted = value_range or ValueRange(float(pixels.min()), float(pixels.max()))
    return scaled(pixels.astype(np.float64), wanted.low, 255 / ((wanted.high - wanted.low) or 1), 0.5)


def values(file: Any, channels: int) -> np.ndarray:
    """(H, W, channels) as stored, in any type. Raises BadImage."""
    data = Path(file).read_bytes() if isinstance(file, (str, Path)) else file.getbuffer().tobytes()
    if data[:4] in _TIFF and channels != 1:
        return _laid(_tiff(data), channels)
    try:
        with opened(io.BytesIO(data)) as image, budgeted(image):
            deep = image.mode.startswith("I") or image.mode == "F"
            image = ImageOps.exif_transpose(image)
            return _laid(np.asarray(image if deep or channels != 1 else image.convert("L")), channels)
    except BadImage:
        raise
    except Exception as error:  # PIL's decoders raise anything on a broken file
        raise bad_image(error, file) from error


def _tiff(data: bytes) -> np.ndarray:
    try:
        from tifffile import TiffFile
    except ImportError as error:
        raise UserError("TIFF files of many channels need tifffile; pip install 'saccade[tiff]'.") from error
    try:
        with TiffFile(io.BytesIO(data)) as file:
            return file.series[0].asarray()
    except Exception as error:  # codecs and tags fail in ways of their own
        raise bad_image(error, "") from error


def _laid(pixels: np.ndarray, channels: int) -> np.ndarray:
    """(H, W, channels) of an array that has the channels last, first (pages, planes) or, for one, not at all."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[2] == channels:
        return pixels
    if pixels.ndim == 3 and pixels.shape[0] == channels:
        return np.moveaxis(pixels, 0, 2)
    raise BadImage(
        f"an image of shape {'x'.join(map(str, pixels.shape))} has not the {channels} channels of --channels"
    )


# --- what PIL does not say -------------------------------------------------------------------------------------------


def tiff_layout(data: bytes) -> tuple[int, int, int, int] | None:
    """(samples a pixel, bits a sample, height, width) of a TIFF, None of anything else."""
    if data[:4] not in _TIFF:
        return None
    try:
        file = io.BytesIO(data)
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        bits: Any = tags.get(258, 1)
        deepest = int(max(bits) if isinstance(bits, tuple) else bits)
        return int(tags.get(277, 1)), deepest, int(tags[257]), int(tags[256])
    except Exception:  # PIL raises anything on a broken file, which is met again when it is read
        return None


def too_many_channels(data: bytes) -> BadImage | None:
    """Why a TIFF of more than three channels cannot be read as one of three; None for anything else."""
    layout = tiff_layout(data)
    if layout is None or layout[0] in (1, 3):
        return None
    return BadImage(f"a TIFF of {layout[0]} channels; --channels {layout[0]} reads them")


def is_deep_colour(data: bytes) -> bool:
    """Whether it is a TIFF of three samples of more than 8 bits, of which PIL keeps 8 or none."""
    layout = tiff_layout(data)
    return layout is not None and layout[0] == 3 and layout[1] > 8 and find_spec("tifffile") is not None


def more_than_told(data: bytes, read: Callable[[], np.ndarray]) -> tuple[str, str] | None:
    """(what is in the file beside the three channels that were read, what settles it), None where nothing is."""
    layout = tiff_layout(data)
    if layout and not is_deep_colour(data):
        if layout[0] == 3 and layout[1] > 8:
            return f"{layout[1]} bits a colour, of which 8 are read", "pip install 'saccade[tiff]' reads all"
        try:
            with opened(io.BytesIO(data)) as image:
                pages, mode = getattr(image, "n_frames", 1), image.mode
        except Exception:  # PIL raises anything on a broken file, which is met again when it is read
            return None
        if mode in ("RGBX", "RGBA"):
            return "a fourth channel, which is not read", "--channels 4 takes it"
        if pages > 1:
            return f"{pages} pages, of which the first is read", f"--channels {pages} takes them for channels"
    if data[:4] == b"\x89PNG" and data[24:26] in (b"\x10\x02", b"\x10\x06") and read().max() < 64:
        return "16 bits a colour, of which 8 are read, and they use few", "save them as TIFF, or as an .npz"
    return None
