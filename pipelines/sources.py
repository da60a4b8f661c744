"""Where images come from. A source knows sizes, pixels, labels and names; it draws nothing and renders nothing."""

from __future__ import annotations

import io
import os
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from saccade.base.errors import UserError

EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
MAX_CLASSES = 1_000_000  # more is a label that is no class number
BAD_SHARE = 0.10  # more unreadable images than this stop a run


_Read = TypeVar("_Read")


class BadImage(Exception):
    """One image cannot be used. The text is the reason."""


class Source(ABC):
    """A data set: `len`, class names, labels, and images by number.

    labels: (N,) int64 or None; classes: names by label or None. `known_bad` maps an image's name to the reason why it
    cannot be used; it grows while images are read.
    """

    name: str
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None

    def __init__(self) -> None:
        self.known_bad: dict[str, str] = {}

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, i: int) -> np.ndarray:
        """Image i as (H, W, 3) uint8 RGB, upright. Raises BadImage."""

    @abstractmethod
    def size(self, i: int) -> tuple[int, int]:
        """(height, width) of the upright image, from its header. Raises BadImage."""

    @abstractmethod
    def name_of(self, i: int) -> str: ...

    def identity(self) -> int:
        """A checksum of all labels and of eight images' pixels: the same for them in another place or format."""
        checksum = 0 if self.labels is None else zlib.crc32(np.ascontiguousarray(self.labels))
        for i in np.linspace(0, len(self) - 1, min(8, len(self))).astype(int).tolist():
            try:
                checksum = zlib.crc32(np.ascontiguousarray(self.read(i)), checksum)
            except BadImage:
                continue
        return checksum

    def encoded(self, i: int) -> bytes | None:
        """Image i as it is stored, JPEG or any other format; None from a source that holds pixels. Raises BadImage."""
        return None

    def read_or_replace(self, i: int) -> tuple[np.ndarray, int]:
        """Image i, or the next readable one after it, and the number of the image that was read."""
        return self.first_readable(i, self.read)

    def first_readable(self, i: int, read: Callable[[int], _Read]) -> tuple[_Read, int]:
        """What `read` gives for image i, or for the next one of which it raises no BadImage, and that one's number."""
        for step in range(len(self)):
            j = (i + step) % len(self)
            if self.name_of(j) in self.known_bad:
                continue
            try:
                return read(j), j
            except BadImage as reason:
                self.report_bad({self.name_of(j): str(reason)})
        raise UserError(f"{self.name}: not one of the {len(self)} images can be read.")

    def report_bad(self, bad: dict[str, str]) -> None:
        """Remember unreadable images; more than 10 % of the data set is an error that lists them."""
        self.known_bad.update(bad)
        if len(self.known_bad) > BAD_SHARE * len(self):
            listed = "; ".join(f"{name} ({reason})" for name, reason in sorted(self.known_bad.items())[:20])
            raise UserError(
                f"{self.name}: {len(self.known_bad)} images cannot be read so far, more than {BAD_SHARE:.0%} of "
                f"all {len(self)}; repair or remove them: {listed}{' ...' if len(self.known_bad) > 20 else ''}"
            )


class ArraySource(Source):
    """Equally sized images in memory: images (N, H, W, 3) uint8, labels (N,) or None."""

    def __init__(
        self, name: str, images: np.ndarray, labels: np.ndarray | None = None, classes: tuple[str, ...] | None = None
    ) -> None:
        super().__init__()
        self.name, self.images, self.classes = name, images, classes
        self.labels = None if labels is None else np.asarray(labels).astype(np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int) -> np.ndarray:
        return self.images[i]

    def size(self, i: int) -> tuple[int, int]:
        return self.images.shape[1], self.images.shape[2]

    def name_of(self, i: int) -> str:
        return f"{self.name}[{i}]"


class FolderSource(Source):
    """Image files below a folder; its direct sub-folders, if they hold images, are the classes."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.name, self.folder = str(folder), folder
        files = list_images(folder)
        if not files:
            held = "is empty" if not any(folder.iterdir()) else "holds no image file"
            raise UserError(f"the folder {folder} {held}; images end in {', '.join(sorted(EXTENSIONS))}.")
        parts = [file.relative_to(folder).parts for file in files]
        self.files = files
        if all(len(p) > 1 for p in parts):
            self.classes = tuple(sorted({p[0] for p in parts}))
            number = {name: k for k, name in enumerate(self.classes)}
            self.labels = np.array([number[p[0]] for p in parts], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int) -> np.ndarray:
        return decode(io.BytesIO(self.encoded(i)))

    def encoded(self, i: int) -> bytes:
        try:
            return self.files[i].read_bytes()
        except OSError as error:
            raise bad_image(error, self.files[i]) from error

    def size(self, i: int) -> tuple[int, int]:
        return image_size(self.files[i])

    def name_of(self, i: int) -> str:
        return str(self.files[i].relative_to(self.folder))


def list_images(folder: Path) -> list[Path]:
    """Every image file below `folder`, sorted, hidden ones left out. Links to folders are followed, not in circles."""
    found: list[Path] = []
    above = {str(folder): {os.path.realpath(folder)}}  # for each folder: itself and those it was reached through

    def unreadable(error: OSError) -> None:
        warnings.warn(f"left out {error.filename}: {error.strerror}", stacklevel=2)

    for root, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        inside = {f: os.path.realpath(os.path.join(root, f)) for f in folders if not f.startswith(".")}
        folders[:] = sorted(f for f, real in inside.items() if real not in above[root])
        above.update({os.path.join(root, f): above[root] | {inside[f]} for f in folders})
        found += [
            Path(root, f)
            for f in sorted(files)
            if not f.startswith(".") and os.path.splitext(f)[1].lower() in EXTENSIONS
        ]
    return found


def check_largest(label: int, name: str) -> None:
    """Raise UserError for a label so large that it is an identifier: a classifier gets a row for each number below."""
    if label >= MAX_CLASSES:
        raise UserError(f"{name}: its largest label is {label}, and labels count classes from 0.")


def decode(file: Path | object) -> np.ndarray:
    """An image file (path or binary stream) as (H, W, 3) uint8 RGB, turned upright by its EXIF tag. Raises BadImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns of odd metadata; the pixels are what counts
            with Image.open(file) as image:
                image = ImageOps.exif_transpose(image)
                if image.mode.startswith("I"):  # 16 or 32 bit: PIL would clip at 255 instead of scaling
                    deep = np.asarray(image, dtype=np.float64)
                    image = Image.fromarray((deep * (255 / max(65535, deep.max()))).clip(0, 255).astype(np.uint8))
                pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # PIL's decoders raise anything from OSError to struct.error on a broken file
        raise bad_image(error, file) from error
    if 0 in pixels.shape:
        raise BadImage("no pixels")
    return pixels


def image_size(file: Path | object) -> tuple[int, int]:
    """(height, width) after EXIF rotation, reading only the header. Raises BadImage."""
    try:
        with Image.open(file) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception as error:
        raise bad_image(error, file) from error
    return (width, height) if turned else (height, width)


def bad_image(error: Exception, file: Path | object) -> BadImage:
    """The reason without the file's path or address, so that it is the same from everywhere."""
    told = str(error)
    for name in (repr(str(file)), repr(file), str(file)):
        told = told.replace(f": {name}", "").replace(f" {name}", "")
    return BadImage(f"{type(error).__name__}: {told}")
