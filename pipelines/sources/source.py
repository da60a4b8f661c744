"""Where images come from: an index and a reader. A source knows sizes, pixels, labels and names; it draws and
renders nothing."""

from __future__ import annotations

import copy
import io
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from saccade.base.errors import UserError
from saccade.base.text import printable
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.bands import decode_bands, is_deep_colour, too_many_channels
from saccade.pipelines.sources.decode import BadImage, ValueRange, decode_bytes, image_size, passes
from saccade.pipelines.sources.index import Index, Names


def well_formed(pixels: object, channels: int) -> np.ndarray:
    """What a reader of anybody's gave, if it is an image: (H, W, channels) uint8. BadImage for anything else."""
    if not isinstance(pixels, np.ndarray):
        raise BadImage(f"the reader gave a {type(pixels).__name__}, not an array of uint8 (H, W, {channels})")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != channels or 0 in pixels.shape:
        raise BadImage(f"{pixels.dtype} {pixels.shape}, not uint8 (H, W, {channels})")
    return pixels


BAD_SHARE = 0.10  # more unreadable images than this stop a run
PAUSES = 0.1, 0.5, 2.0  # seconds before an image that may be well again is tried again
IN_VAIN = 8  # images after which nobody waits any more
_Read = TypeVar("_Read")


class Reader:
    """How the bytes of an image come. A reader overrides `encoded` (files) or `pixels` (arrays); the rest follows.

    in_order: reading in another order than the stored one is slow; mapped: one file of JPEGs and raw pixels that
    lies in memory (`MappedFile`). Methods are called by many threads, and a reader travels to worker processes
    (pickle)."""

    in_order = False
    mapped = False
    value_range: ValueRange | None = None  # of images of more than 8 bits; None: decode's own rule
    channels = 3

    def encoded(self, index: Index, i: int) -> bytes:
        """Image i as a file's bytes, JPEG or any other format. Raises BadImage."""
        raise NotImplementedError

    def pixels(self, index: Index, i: int) -> np.ndarray:
        """Image i as (H, W, 3) uint8 RGB, upright; of other channels (H, W, C). Raises BadImage."""
        return self.decode(self.encoded(index, i))

    def decode(self, data: bytes) -> np.ndarray:
        if self.channels != 3 or is_deep_colour(data):
            return decode_bands(io.BytesIO(data), self.channels, self.value_range)
        try:
            return decode_bytes(data, self.value_range)
        except BadImage as error:
            raise too_many_channels(data) or error from error

    def size(self, index: Index, i: int) -> tuple[int, int]:
        """(height, width) of the upright image, from its header where it has one. Raises BadImage."""
        if self.gives_files and self.channels in (1, 3):
            with suppress(BadImage):  # PIL knows not all that is decoded
                return image_size(io.BytesIO(self.encoded(index, i)))
        height, width, _ = well_formed(self.pixels(index, i), self.channels).shape
        return height, width

    def stored(self, index: Index, i: int) -> bytes | np.ndarray:
        """Image i as it lies there: a file's bytes, or pixels."""
        return self.encoded(index, i) if self.gives_files else well_formed(self.pixels(index, i), self.channels)

    def file_size(self, index: Index, i: int) -> int:
        """Bytes of the file that image i is; -1 where it is none of its own."""
        return -1

    def lies_in(self, index: Index, i: int) -> str | Path | None:
        """The file that image i is, or lies in; None where there is none."""
        return None

    def array(self, index: Index) -> np.ndarray | None:
        """The whole set as (N, H, W, 3) uint8, if it lies in memory like that."""
        return None

    def name(self, index: Index, i: int) -> str:
        """What a message calls the image."""
        return self.key(index, i)

    def key(self, index: Index, i: int) -> str:
        """What another format may call the image: a path of "/"-separated parts, unique where the source's names
        are."""
        return index.names[i] if len(index.names) else f"{i:0{len(str(index.length - 1))}d}"

    def keys(self, index: Index) -> Names:
        """The key of each image."""
        if type(self).key is Reader.key and len(index.names):
            return index.names
        return Names.of(self.key(index, i) for i in range(index.length))

    def close(self) -> None:
        """Close what is open; reading opens it again."""

    @property
    def gives_files(self) -> bool:
        return type(self).encoded is not Reader.encoded


class Source:
    """A data set: `len`, class names, labels, and images by number.

    `known_bad` maps an image's name to the reason why it cannot be used; it grows while images are read.
    """

    def __init__(self, name: str, index: Index, reader: Reader, kind: str = "images") -> None:
        self.name, self.index, self.reader, self.kind = name, index, reader, kind
        self.known_bad: dict[str, str] = {}
        self._in_vain = 0  # images that were tried again and again
        if not index.length:
            raise UserError(f"{name}: holds no images.")
        index.account.check(name)

    def __len__(self) -> int:
        return self.index.length

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.describe()}>"

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) int64, -1 where an image has no label; None where none has one."""
        return self.index.labels

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.index.classes

    @property
    def channels(self) -> int:
        return self.reader.channels

    @property
    def account(self) -> Account:
        return self.index.account

    # --- images ----------------------------------------------------------------------------------------------------

    def read(self, i: int) -> np.ndarray:
        """Image i as (H, W, 3) uint8 RGB, upright; of other channels (H, W, C). Raises BadImage."""
        return well_formed(self.reader.pixels(self.index, i), self.channels)

    def encoded(self, i: int) -> bytes | None:
        """Image i as a file's bytes; None from a source that holds pixels. Raises BadImage."""
        return self.reader.encoded(self.index, i) if self.reader.gives_files else None

    def decode(self, data: bytes) -> np.ndarray:
        """What `encoded` gave, as `read` gives it. Raises BadImage."""
        return self.reader.decode(data)

    def stored(self, i: int) -> bytes | np.ndarray:
        """Image i as it lies there: a file's bytes, or (H, W, 3) uint8. Raises BadImage."""
        return self.reader.stored(self.index, i)

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) of the upright image, from its header. Raises BadImage."""
        return self.reader.size(self.index, i)

    def array(self) -> np.ndarray | None:
        """The whole set as (N, H, W, 3) uint8, if it lies in memory like that."""
        return self.reader.array(self.index)

    def name_of(self, i: int) -> str:
        return self.reader.name(self.index, i)

    def key_of(self, i: int) -> str:
        """The image's name for another format: a path without the container it lies in."""
        return self.reader.key(self.index, i)

    def keys(self) -> Names:
        """`key_of` each image."""
        return self.reader.keys(self.index)

    def label_of(self, i: int) -> int:
        """-1 where there is none."""
        return -1 if self.labels is None else int(self.labels[i])

    def class_name(self, label: int) -> str:
        """What a label is called: "" for none, its number where the classes have no names."""
        if label < 0:
            return ""
        return self.classes[label] if self.classes and label < len(self.classes) else str(label)

    @property
    def container(self) -> np.ndarray | None:
        """(N,) int64, the file each image lies in, where that matters to the order of reading."""
        return self.index.columns.get("container")

    def close(self) -> None:
        self.reader.close()

    # --- other sources of the same images --------------------------------------------------------------------------

    def subset(self, indices: Sequence[int] | np.ndarray, name: str | None = None) -> Source:
        """These images in this order, as a source."""
        rows = np.asarray(indices, dtype=np.int64)
        return self._with(self.index.take(rows), name or f"{self.name} ({len(rows):,} of {len(self):,})")

    def relabelled(self, labels: np.ndarray | None, classes: Sequence[str] | None) -> Source:
        """The same images under other labels (-1: none)."""
        labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        index = replace(self.index, labels=labels, classes=None if classes is None else tuple(classes))
        return self._with(index, self.name)

    def labelled(self) -> Source:
        """The images that have a label; self if all have."""
        if self.labels is None or (self.labels >= 0).all():
            return self
        return self.subset(np.flatnonzero(self.labels >= 0))

    def _with(self, index: Index, name: str) -> Source:
        other = copy.copy(self)
        other.index, other.name, other.known_bad = index, name, dict(self.known_bad)
        return other

    def describe(self) -> str:
        """One line: images, classes, how many are labelled, what was left out."""
        known = 0 if self.labels is None else int((self.labels >= 0).sum())
        if self.classes:
            text = f"{len(self):,} images, {len(self.classes)} classes"
        else:
            numbers = "no labels" if self.labels is None else f"labels up to {int(self.labels.max())}"
            text = f"{len(self):,} images, {numbers}"
        if known and known < len(self):
            text += f", {known:,} of {len(self):,} labelled"
        return "; ".join(filter(None, (text, self.account.line())))

    # --- what cannot be read ---------------------------------------------------------------------------------------

    def identity(self) -> int:
        """A checksum of all labels and of eight images' pixels: the same for the same images in another place or
        format."""
        checksum = 0 if self.labels is None else zlib.crc32(np.ascontiguousarray(self.labels).data)
        for i in np.linspace(0, len(self) - 1, min(8, len(self))).astype(int).tolist():
            try:
                checksum = zlib.crc32(np.ascontiguousarray(self.read(i)).data, checksum)
            except BadImage:
                continue
        return checksum

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
                return self._patiently(read, j), j
            except BadImage as reason:
                self.report_bad({self.name_of(j): str(reason)})
        raise UserError(f"{self.name}: not one of the {len(self)} images can be read.")

    def _patiently(self, read: Callable[[int], _Read], i: int) -> _Read:
        """read(i), again after a while where what went wrong may pass; a disk that never comes back is not waited for
        at every image."""
        for tried, pause in enumerate(PAUSES, 1):
            try:
                return read(i)
            except (BadImage, MemoryError) as error:
                if not passes(error) or self._in_vain >= IN_VAIN:
                    raise
                told = printable(f"{self.name_of(i)} could not be read ({error or type(error).__name__})")
                print(f"warning: {told}; trying again, {tried} of {len(PAUSES)}", file=sys.stderr, flush=True)
                time.sleep(pause)
        try:
            return read(i)
        except (BadImage, MemoryError) as error:
            self._in_vain += 1
            raise BadImage(str(error) or type(error).__name__) from error

    def report_bad(self, bad: dict[str, str]) -> None:
        """Remember unreadable images; more than 10 % of the data set is an error that lists them."""
        self.known_bad.update(bad)
        if len(self.known_bad) > BAD_SHARE * len(self):
            listed = "; ".join(printable(f"{name} ({reason})") for name, reason in sorted(self.known_bad.items())[:20])
            raise UserError(
                f"{self.name}: {len(self.known_bad)} images cannot be read so far, more than {BAD_SHARE:.0%} of "
                f"all {len(self)}; repair or remove them: {listed}{' ...' if len(self.known_bad) > 20 else ''}"
            )
