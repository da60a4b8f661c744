"""What becomes of one image on its way into another format: kept, resized, encoded, or laid out as pixels."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from saccade.pipelines.header import jpeg_header
from saccade.pipelines.jpeg import decode_into
from saccade.pipelines.sources import BadImage, image_size
from saccade.pipelines.sources.bands import is_deep_colour, tiff_layout, too_many_channels
from saccade.pipelines.sources.decode import bad_image, decode_bytes
from saccade.pipelines.sources.decode import opened as pil_opened

RAW = ".raw"  # Prepared.kind of pixels; other kinds are file extensions
_KINDS = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "PPM": ".ppm",
    "MPO": ".jpg",
    "JPEG2000": ".jp2",
    "HEIF": ".heic",
}
_RESIZED_QUALITY = 95


@dataclass(frozen=True)
class Settings:
    """form: what the target stores. "file": image files; "raw": pixels; "keep": JPEG files as they are and all else as
    pixels; "jpg": JPEG files; "proportion": a share of JPEG files, the rest pixels."""

    form: str = "file"
    max_side: int | None = None  # longer images are made smaller, shape kept
    quality: int | None = None  # everything is encoded as JPEG of this quality
    proportion: float = 0.5


@dataclass(frozen=True)
class Prepared:
    """An image as it will lie in the target: a file's bytes, or with kind RAW height x width x 3 pixels."""

    data: bytes
    kind: str
    height: int
    width: int

    def pixels(self) -> np.ndarray:
        return np.frombuffer(self.data, np.uint8).reshape(self.height, self.width, 3)


def prepare(
    image: bytes | np.ndarray, number: int, settings: Settings, decoder: Callable[[bytes], np.ndarray] = decode_bytes
) -> Prepared:
    """image: a file's bytes, or (H, W, 3) uint8. Raises BadImage. Deterministic: resuming and verifying rely on it."""
    form = settings.form
    if form == "proportion":
        form = "jpg" if zlib.crc32(str(number).encode()) < settings.proportion * 2**32 else "raw"
    if isinstance(image, np.ndarray):
        pixels = _shrink(image, settings.max_side)
        return (
            _encode(pixels, settings.quality)
            if form == "jpg" or settings.quality
            else (_raw(pixels) if form in ("raw", "keep") else _png(pixels))
        )
    head = _Head(image)
    too_large = settings.max_side is not None and max(head.height, head.width) > settings.max_side
    if form == "raw":
        return _raw(_shrink(decoder(image), settings.max_side))
    keep = not too_large and settings.quality is None and (form == "file" or head.plain_jpeg)
    if keep:
        _check(image, head, decoder)
        return Prepared(image, head.kind, head.height, head.width)
    pixels = _shrink(decoder(image), settings.max_side)
    if form == "jpg" or settings.quality or (too_large and head.kind == ".jpg"):
        return _encode(pixels, settings.quality)
    return _raw(pixels) if form == "keep" else _png(pixels)


class _Head:
    """What a file says of itself: its kind and upright size. plain_jpeg: any decoder shows it as it is meant (one that
    knows neither EXIF's rotation nor CMYK)."""

    def __init__(self, image: bytes) -> None:
        known = jpeg_header(image)
        if known is not None:
            self.kind, self.height, self.width, self.plain_jpeg = (
                ".jpg",
                known.height,
                known.width,
                known.orientation == 1,
            )
            return
        self.plain_jpeg = False
        if is_deep_colour(image) and (layout := tiff_layout(image)):  # PIL knows not all of them
            self.kind, (self.height, self.width) = ".tif", layout[2:]
            return
        file = io.BytesIO(image)
        try:
            with pil_opened(file) as opened:
                self.kind = _kind(opened.format or "")
            self.height, self.width = image_size(file)
        except BadImage:
            raise
        except Exception as error:  # PIL raises anything on a broken file
            raise too_many_channels(image) or bad_image(error, file) from error


def _kind(name: str) -> str:
    """The usual ending of files of PIL's format `name`."""
    endings = (ending for ending, known in Image.registered_extensions().items() if known == name)
    return _KINDS.get(name) or next(endings, ".img")


def _check(image: bytes, head: _Head, decoder: Callable[[bytes], np.ndarray]) -> None:
    """Decode a file that is kept, to find out whether that works; PIL has the last word."""
    out = np.empty((head.height, head.width, 3), np.uint8) if head.plain_jpeg else None
    if out is None or not decode_into(np.frombuffer(image, np.uint8), out):
        decoder(image)


def _shrink(pixels: np.ndarray, max_side: int | None) -> np.ndarray:
    height, width = pixels.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return pixels
    scale = max_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _raw(pixels: np.ndarray) -> Prepared:
    return Prepared(np.ascontiguousarray(pixels).tobytes(), RAW, *pixels.shape[:2])


def _encode(pixels: np.ndarray, quality: int | None) -> Prepared:
    if max(pixels.shape[:2]) > 65500:
        raise BadImage(f"{pixels.shape[1]}x{pixels.shape[0]} is too large for a JPEG")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality or _RESIZED_QUALITY)
    return Prepared(file.getvalue(), ".jpg", *pixels.shape[:2])


def _png(pixels: np.ndarray) -> Prepared:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=3)
    return Prepared(file.getvalue(), ".png", *pixels.shape[:2])
