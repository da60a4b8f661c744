"""Equally sized images in memory: an .npz, or an array of the caller's."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from saccade.base.errors import UserError
from saccade.base.machine import available_memory
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.index import Index
from saccade.pipelines.sources.labels import check_labels
from saccade.pipelines.sources.options import NO_LABELS, PLAIN, Options
from saccade.pipelines.sources.source import Reader, Source

_EXPECTED = "an .npz needs `images` uint8 (N, H, W, 3) and may have `labels` of N whole numbers"


class ArrayReader(Reader):
    """Rows of images (N, H, W, 3) uint8."""

    def __init__(self, called: str, images: np.ndarray) -> None:
        self.called, self.images = called, images

    def pixels(self, index: Index, i: int) -> np.ndarray:
        return self.images[index.columns["row"][i]]

    def size(self, index: Index, i: int) -> tuple[int, int]:
        return self.images.shape[1], self.images.shape[2]

    def array(self, index: Index) -> np.ndarray:
        rows = index.columns["row"]
        whole = len(rows) == len(self.images) and bool((rows == np.arange(len(rows))).all())
        return self.images if whole else self.images[rows]

    def name(self, index: Index, i: int) -> str:
        return f"{self.called}[{index.columns['row'][i]}]"


class ArraySource(Source):
    """images (N, H, W, 3) uint8, labels (N,) with -1 for none, or None."""

    def __init__(
        self, name: str, images: np.ndarray, labels: np.ndarray | None = None, classes: Sequence[str] | None = None
    ) -> None:
        labels = check_labels(None if labels is None else np.asarray(labels).astype(np.int64), name)
        index = Index(
            len(images),
            labels,
            None if classes is None else tuple(classes),
            columns={"row": np.arange(len(images))},
            account=Account(taken=len(images)),
        )
        super().__init__(name, index, ArrayReader(name, images), "npz")

    reader: ArrayReader

    @property
    def images(self) -> np.ndarray:
        return self.reader.array(self.index)


def load_npz(path: Path, options: Options = PLAIN) -> ArraySource:
    """Read `images` uint8 (N, H, W, 3), and `labels` (N,) of whole numbers if present; nothing is unpickled."""
    image_key, label_key = options.image_key or "images", options.label_key or "labels"
    opened = _opened(path)
    with opened as file:
        keys = list(file.keys())
        if image_key not in keys:
            raise UserError(
                f"{path}: {_EXPECTED}; it has {', '.join(keys) or 'nothing'} (--image-key NAME takes another)."
            )
        if options.label_key and label_key not in keys:
            raise UserError(f"{path}: has no array {label_key} for --label-key; it has {', '.join(keys)}.")
        _check_announced(path, image_key)
        images = _array(path, file, image_key)
        labels = _array(path, file, label_key) if label_key in keys and options.labels != NO_LABELS else None
        classes = _array(path, file, "classes") if "classes" in keys else None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise UserError(f"{path}: {_EXPECTED}; its images are {images.dtype} {images.shape}.")
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
        raise UserError(f"{path}: {_EXPECTED}; its labels are {labels.dtype} {labels.shape} for {len(images)} images.")
    names = tuple(classes.tolist()) if classes is not None and classes.dtype.kind == "U" and classes.ndim == 1 else None
    labels = check_labels(labels, str(path), names)
    source = ArraySource(str(path), images, labels, names or None)
    if unused := [key for key in keys if key not in (image_key, label_key, "classes")]:
        source.account.leave("arrays of the .npz that are not read", unused[0], len(unused))
    return source


def _opened(path: Path):
    try:
        opened = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise UserError(f"{path}: cannot be read as .npz ({_reason(error)}).") from error
    if isinstance(opened, np.ndarray):
        raise UserError(
            f"{path}: is a single array, an .npy under another name; save it with np.savez(FILE, images=array)."
        )
    return opened


def _array(path: Path, file, key: str) -> np.ndarray:
    try:
        return file[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise UserError(f"{path}: its array `{key}` cannot be read as .npz ({_reason(error)}).") from error


def _reason(error: Exception) -> str:
    return "it holds no plain arrays" if "pickle" in str(error) else str(error)  # numpy's text advises to unpickle it


def _check_announced(path: Path, key: str) -> None:
    """UserError where the array says it is larger than the memory there is: it would end the machine before any
    check."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return  # np.load says what is wrong
    size = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
    if size > available_memory():
        raise UserError(
            f"{path}: its array `{key}` says it has {size / 2**30:,.1f} GiB, more than the "
            f"{available_memory() / 2**30:,.1f} "
            "GiB of memory that are free; convert the images to tar shards or a .beton instead."
        )
