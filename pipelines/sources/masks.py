"""Masks beside a folder of images: index PNGs, a class number in every pixel, 255 for those that do not count."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from saccade.base.errors import UserError
from saccade.base.text import printable
from saccade.pipelines.sources.decode import BadImage, bad_image, budgeted, opened
from saccade.pipelines.sources.folder import FolderSource
from saccade.pipelines.sources.source import Source

IGNORED = 255
_NUMBERS = ("P", "L", "1", "I", "I;16")  # PIL's modes of one number a pixel


class Masks:
    """The mask of each image of a folder: of photos/a.jpg it is masks/a.png. UserError where one is missing.

    An image folder of several splits (train/, val/) has its masks in folders of the same names.
    """

    def __init__(self, folder: Path, source: Source, images: Path) -> None:
        if not isinstance(source, FolderSource):
            raise UserError(f"{source.name}: masks go with a folder of image files; give --data such a folder.")
        if not folder.is_dir():
            raise UserError(f"--masks {printable(str(folder))}: no such folder.")
        if folder.resolve() == images.resolve():
            raise UserError(f"--masks {folder} is the folder of the images; give the masks a folder of their own.")
        inside = os.path.relpath(source.folder.resolve(), images.resolve())
        within = folder / inside if not inside.startswith("..") and (folder / inside).is_dir() else folder
        self.source, self.folder, self._missing = source, within, []
        missing = [i for i in range(len(source)) if not self.file(i).is_file()]
        if missing:
            file = printable(str(self.file(missing[0])))
            raise UserError(
                f"{len(missing):,} of the {len(source):,} images of {source.name} have no mask, such as "
                f"{printable(source.key_of(missing[0]))}: {file} is not there; add them, or take those images away."
            )

    def __len__(self) -> int:
        return len(self.source)

    def file(self, i: int) -> Path:
        return (self.folder / self.source.key_of(i)).with_suffix(".png")

    def read(self, i: int) -> np.ndarray:
        """(H, W) uint8, as large as the image. UserError for anything else, BadImage where the image cannot be read."""
        file, size = self.file(i), self.source.size(i)
        told = f"the mask {printable(str(file))}"
        try:
            with opened(file) as image, budgeted(image):
                mode, values = image.mode, np.asarray(image)
        except BadImage as error:
            raise UserError(f"{told} cannot be read ({error}).") from error
        except Exception as error:  # PIL's decoders raise anything on a broken file
            raise UserError(f"{told} cannot be read ({bad_image(error, file)}).") from error
        if mode not in _NUMBERS:
            raise UserError(
                f"{told} is a picture in colours (PIL's mode {mode}), where every pixel must be a class number, "
                f"{IGNORED} for none; save it in mode P or L."
            )
        if values.shape != size:
            (h, w), (height, width) = values.shape, size
            raise UserError(f"{told} is {w} x {h} pixels, and its image {width} x {height}; they must be the same.")
        if values.dtype != np.uint8:
            values = values.astype(np.int64)
            if values.max(initial=0) > IGNORED or values.min(initial=0) < 0:
                raise UserError(f"{told} holds the number {values.max()}; classes are 0 to 254, {IGNORED} is no class.")
        return values.astype(np.uint8)

    def checked(self, classes: int | None, flag: str) -> Iterator[tuple[int, np.ndarray]]:
        """(number, mask) of each image that has a readable header. UserError for a class of `classes` or more."""
        for i in range(len(self)):
            try:
                mask = self.read(i)
            except BadImage as error:
                self.source.report_bad({self.source.name_of(i): str(error)})
                continue
            counted = mask[mask != IGNORED]
            if classes is not None and counted.size and counted.max() >= classes:
                raise UserError(
                    f"the mask {printable(str(self.file(i)))} holds class {counted.max()}, and there are {classes} "
                    f"({flag}), 0 to {classes - 1}; give --classes {int(counted.max()) + 1}, or such pixels {IGNORED}."
                )
            yield i, mask

    def tell_others(self) -> None:
        """A warning that counts the masks of no image."""
        known = {str(self.file(i)) for i in range(len(self))}
        others = [file for file in sorted(self.folder.rglob("*.png")) if str(file) not in known]
        if others:
            example = printable(str(others[0]))
            print(f"{len(others):,} masks belong to no image of {self.source.name}, such as {example}", file=sys.stderr)


def shown_square(mask: np.ndarray) -> np.ndarray:
    """The centre square (side, side) of (H, W): what an evaluation's centre crop shows of the image."""
    side = min(mask.shape)
    top, left = (mask.shape[0] - side) // 2, (mask.shape[1] - side) // 2
    return mask[top : top + side, left : left + side]


def resized(mask: np.ndarray, size: int) -> np.ndarray:
    """(size, size) of a square mask, each pixel the nearest one's class."""
    return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))
