"""Equally sized images in memory: an .npz, or an array of the caller's."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from saccade.base.errors import UserError
from saccade.base.machine import available_memory
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.bands import to_bytes
from saccade.pipelines.sources.decode import BadImage
from saccade.pipelines.sources.index import Index
from saccade.pipelines.sources.labels import check_labels, numbered
from saccade.pipelines.sources.options import MOST_CHANNELS, NO_LABELS, PLAIN, Options
from saccade.pipelines.sources.ranges import choose_range
from saccade.pipelines.sources.source import Reader, Source
from saccade.pipelines.sources.split_names import SPLITS

_PROBED = 64  # images whose values tell the range
_EXPECTED = "an .npz needs `images` uint8 (N, H, W, 3) and may have `labels` of N whole numbers"


class ArrayReader(Reader):
    """Rows of images (N, H, W, 3) uint8."""

    def __init__(self, called: str, images: np.ndarray) -> None:
        self.called, self.images, self.channels = called, images, images.shape[3]

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
            account=Account(len(images), len(images)),
        )
        super().__init__(name, index, ArrayReader(name, images), "npz")

    reader: ArrayReader

    @property
    def images(self) -> np.ndarray:
        return self.reader.array(self.index)


IMAGE_ARRAYS = ("images", "image", "imgs", "img", "x", "data", "arr_0")  # in this order
LABEL_ARRAYS = ("labels", "label", "y", "targets", "target", "arr_1")


def npz_splits(path: Path) -> list[str]:
    """The splits that an .npz holds by its arrays' names: x_train and x_test, or val_images; [] for one set alone."""
    with _opened(path) as file:
        splits = dict.fromkeys(split for split, what in map(_part_of, file.keys()) if split and what in IMAGE_ARRAYS)
    return list(splits)


def _part_of(key: str) -> tuple[str, str]:
    """(split or "", the rest of the name) of an array's name."""
    words = [word for word in key.lower().split("_") if word]
    split = next((word for word in words if word in SPLITS), "")
    return split, "_".join(word for word in words if word != split)


def _chosen(keys: list[str], split: str, known: tuple[str, ...]) -> str | None:
    named = {what: key for key in keys for own, what in (_part_of(key),) if own == split}
    return next((named[what] for what in known if what in named), None)


def load_npz(path: Path, options: Options = PLAIN, split: str = "") -> ArraySource:
    """Read the images (N, H, W, C) and, if present, the labels (N,) and `classes`; nothing is unpickled. split: of the
    arrays whose names tell one."""
    with _opened(path) as file:
        keys = list(file.keys())
        image_key = options.image_key or _chosen(keys, split, IMAGE_ARRAYS)
        label_key = options.label_key or _chosen(keys, split, LABEL_ARRAYS)
        if split and not label_key and len({_part_of(key)[0] for key in keys} - {""}) == 1:
            label_key = _chosen(keys, "", LABEL_ARRAYS)  # x_train beside labels
        if image_key is None or image_key not in keys:
            raise UserError(
                f"{path}: {_EXPECTED}; it has {', '.join(keys) or 'nothing'} (--image-key NAME takes another)."
            )
        if options.label_key and label_key not in keys:
            raise UserError(f"{path}: has no array {label_key} for --label-key; it has {', '.join(keys)}.")
        _check_announced(path, image_key)
        images = _array(path, file, image_key)
        labels = _array(path, file, label_key) if label_key and options.labels != NO_LABELS else None
        names = _names(_array(path, file, "classes")) if "classes" in keys else None
    account = Account()
    images = _as_images(path, images, options, account)
    if labels is not None:
        labels, own = _as_labels(path, labels, len(images), account)
        names = names or own
    source = ArraySource(str(path), images, check_labels(labels, str(path), names), names)
    source.account.add(account)
    known = (image_key, label_key, "classes")
    unused = [key for key in keys if key not in known and _part_of(key)[0] in ("", split)]
    if unused:
        source.account.see(len(unused))
        source.account.leave("arrays of the .npz that are not read", unused[0], len(unused), aside=True)
    return source


def _names(classes: np.ndarray) -> tuple[str, ...] | None:
    if classes.ndim != 1 or classes.dtype.kind not in "US":
        return None
    texts = np.char.decode(classes, "utf-8", "surrogateescape") if classes.dtype.kind == "S" else classes
    return tuple(texts.tolist()) or None


def _as_labels(
    path: Path, labels: np.ndarray, count: int, account: Account
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """(N,) int64, -1 for none, and the classes' names where the labels are names. UserError for what is no label."""
    kind, shape = labels.dtype.kind, labels.shape
    if labels.ndim == 2 and shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and kind in "buif" and shape[1] > 1 and _one_hot(labels):
        account.guess(f"{path}: its labels {shape} have a single 1 a row: its place is taken for the class")
        labels, kind = labels.argmax(1), "i"
    if labels.shape == (count,) and kind in "US":
        texts, which = np.unique(labels, return_inverse=True)
        numbers, classes = numbered(_names(texts) or (), str(path))
        return None if numbers is None else numbers[which], classes
    whole = kind in "bui" or (kind == "f" and bool((np.isnan(labels) | (labels == np.round(labels))).all()))
    if labels.shape != (count,) or not whole:
        raise UserError(f"{path}: {_EXPECTED}; its labels are {labels.dtype} {shape} for {count} images.")
    return (np.where(np.isnan(labels), -1, labels).astype(np.int64) if kind == "f" else labels), None


def _one_hot(labels: np.ndarray) -> bool:
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all())


def _as_images(path: Path, images: np.ndarray, options: Options, account: Account) -> np.ndarray:
    """(N, H, W, C) uint8 with the wanted channels; what had to be guessed is accounted. UserError for anything else."""
    channels, shape = options.channels or 3, images.shape
    if images.ndim == 3 and channels == 1:
        images = images[..., None]
    if images.ndim == 4 and channels == images.shape[1] != images.shape[3]:
        account.guess(f"{path}: its images are {images.shape}, taken for {channels} channels before height and width")
        images = np.moveaxis(images, 1, 3)
    if images.ndim == 4 and 0 not in shape and images.shape[3] != channels and images.shape[3] <= MOST_CHANNELS:
        raise UserError(
            f"{path}: its images {shape} have {shape[3]} channels, not {channels}; --channels {shape[3]} trains on all "
            "of them."
        )
    if images.ndim != 4 or 0 in shape or images.dtype.kind not in "buif":
        one = "; --channels 1 takes them as grey" if images.ndim == 3 else ""
        raise UserError(f"{path}: {_EXPECTED}; its images are {images.dtype} {shape}{one}.")
    return np.ascontiguousarray(_as_bytes(path, images, options, account))


def _as_bytes(path: Path, images: np.ndarray, options: Options, account: Account) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    if (
        images.dtype.kind in "iu"
        and not (options.value_range and options.value_range.asked)
        and images.min() >= 0
        and images.max() <= 255
    ):
        account.guess(f"{path}: its images are {images.dtype} of 0 to 255, taken for bytes; --value-range settles it")
        return images.astype(np.uint8)
    chosen = None
    if images.dtype != np.bool_:
        looked_at = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, _PROBED).astype(int))]
        chosen = choose_range(looked_at, options.value_range, str(path), account)
    try:
        return np.stack([to_bytes(image, chosen) for image in images])
    except BadImage as error:
        empty = next(i for i, image in enumerate(images) if not np.isfinite(image).any())
        raise UserError(f"{path}: image {empty}: {error}; leave such images out of the array.") from error


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
