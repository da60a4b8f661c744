"""FFCV's file format, `.beton` version 2: JPEG bytes and raw pixels with a table in front. Read without FFCV.

Layout: header, field descriptors, a row of metadata per sample, pages of data, and at the end a table of every piece of
data (sample, position, size). The types below are FFCV 1.0.2's.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from saccade.base.errors import UserError
from saccade.base.mapped import mapped
from saccade.pipelines.manifest import manifest_of
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.decode import BadImage, bad_image
from saccade.pipelines.sources.index import Index
from saccade.pipelines.sources.kept import kept_index, state_of
from saccade.pipelines.sources.labels import check_labels
from saccade.pipelines.sources.options import NO_LABELS, PLAIN, Options
from saccade.pipelines.sources.source import Reader, Source

VERSION = 2
LABEL_FIELDS = ("label", "labels", "fine_label", "target", "targets", "class", "cls", "category", "y")
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype([("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
JPEG, RAW = 0, 1  # IMAGE's mode
INT_FIELD, IMAGE_FIELD = 1, 2  # FIELD's type_id
# What each kind of field keeps in a sample's row: float, int, image, bytes, array, JSON, tensor.
ROWS = {
    0: "<f8",
    INT_FIELD: "<i8",
    IMAGE_FIELD: IMAGE,
    3: [("ptr", "<u8"), ("size", "<u8")],
    4: "<u8",
    5: [("ptr", "<u8"), ("size", "<u8")],
    6: "<u8",
}


class BetonReader(Reader):
    """Pieces of one mapped file."""

    mapped = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {**vars(self), "_file": None}  # a worker process maps the file itself

    @property
    def file(self) -> np.ndarray:
        """(bytes,) uint8: the whole file, mapped for reading."""
        if self._file is None:
            self._file = mapped(self.path)
        return self._file

    def lies_in(self, index: Index, i: int) -> Path:
        return self.path

    def piece(self, index: Index, i: int) -> np.ndarray:
        """(bytes,) uint8: image i as it lies in the file, a JPEG or raw pixels."""
        start = index.columns["offset"][i]
        return self.file[start : start + index.columns["bytes"][i]]

    def stored(self, index: Index, i: int) -> bytes | np.ndarray:
        return self.piece(index, i).tobytes() if index.columns["is_jpeg"][i] else self.pixels(index, i)

    def pixels(self, index: Index, i: int) -> np.ndarray:
        size = index.columns["size"][i]
        if not index.columns["is_jpeg"][i]:
            return self.piece(index, i).reshape(*size, 3)
        file = io.BytesIO(self.piece(index, i).tobytes())
        try:
            with Image.open(file, formats=("JPEG",)) as image:  # as it lies: FFCV knows no EXIF rotation
                pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # PIL's decoders raise anything on broken data
            raise bad_image(error, file) from error
        if pixels.shape[:2] != tuple(size):
            raise BadImage(
                f"its JPEG is {pixels.shape[1]}x{pixels.shape[0]}, the file's table says {size[1]}x{size[0]}"
            )
        return pixels

    def size(self, index: Index, i: int) -> tuple[int, int]:
        height, width = index.columns["size"][i].tolist()
        return height, width

    def name(self, index: Index, i: int) -> str:
        return f"{self.path.name}[{index.columns['row'][i]}]"


class BetonSource(Source):
    """Images and labels of a .beton file, in the file's order.

    sizes: (N, 2) int64 heights and widths; is_jpeg: (N,) bool; ptr, length: (N,) int64, where each image's data lies.
    """

    reader: BetonReader

    def __init__(self, path: Path, options: Options = PLAIN) -> None:
        manifest = manifest_of(path)
        classes = manifest.classes if manifest else None
        called = {"beton": os.path.realpath(path), "options": options.meaning, "classes": classes}

        def make() -> tuple[Index, object]:
            before = state_of([path])
            return _read(path, options, classes), before

        index = kept_index(called, lambda kept: kept == state_of([path]), make, options.recheck)
        super().__init__(str(path), index, BetonReader(path), "beton")

    @property
    def sizes(self) -> np.ndarray:
        return self.index.columns["size"]

    @property
    def is_jpeg(self) -> np.ndarray:
        return self.index.columns["is_jpeg"].view(np.bool_)

    @property
    def ptr(self) -> np.ndarray:
        return self.index.columns["offset"]

    @property
    def length(self) -> np.ndarray:
        return self.index.columns["bytes"]

    @property
    def file(self) -> np.ndarray:
        return self.reader.file

    def piece(self, i: int) -> np.ndarray:
        """(bytes,) uint8: image i as it lies in the file, a JPEG or raw pixels."""
        return self.reader.piece(self.index, i)


def _read(path: Path, options: Options, classes: Sequence[str] | None) -> Index:
    account = Account()
    images, labels = _read_tables(path, options, account)
    labels = check_labels(None if options.labels == NO_LABELS or options.table else labels, str(path))
    named = classes and labels is not None and labels.max() < len(classes)
    account.taken = len(images["mode"])
    account.see(account.taken)
    columns = {
        "row": np.arange(account.taken),
        "offset": images["data_ptr"].astype(np.int64),
        "bytes": images["length"].astype(np.int64),
        "size": np.stack([images["height"], images["width"]], axis=1).astype(np.int64),
        "is_jpeg": images["mode"] == JPEG,
    }
    return Index(account.taken, labels, tuple(classes or ()) if named else None, columns=columns, account=account)


def _read_tables(path: Path, options: Options, account: Account) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """IMAGE's columns with `length` added, and the labels (N,) int64 or None. UserError if the file is not whole."""
    try:
        size = path.stat().st_size
        header = np.fromfile(path, HEADER, count=1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    if len(header) == 0:
        raise UserError(f"{path}: {size} bytes are no .beton file; write it again.")
    header = header[0]
    if header["version"] != VERSION:
        raise UserError(
            f"{path}: a .beton of version {header['version']}, or no .beton at all; version {VERSION} is read: "
            "write it again with FFCV 1.0 or with saccade convert."
        )
    samples, table = int(header["num_samples"]), int(header["alloc_table_ptr"])
    fields = np.fromfile(path, FIELD, count=header["num_fields"], offset=HEADER.itemsize)
    start = HEADER.itemsize + fields.nbytes
    if table == 0:
        raise UserError(f"{path}: was never finished (it has no allocation table); write it again.")
    if table > size or len(fields) != header["num_fields"]:
        raise UserError(f"{path}: is cut short, {size:,} bytes of more than {table:,}; copy or write it again.")
    row = _row_type(path, fields)
    if start + samples * row.itemsize > table:
        raise UserError(f"{path}: says it has {samples:,} images, for which it has no room; copy or write it again.")
    rows = np.fromfile(path, row, count=samples, offset=start)
    allocations = np.fromfile(path, ALLOCATION, offset=table)
    image, label = _columns(path, fields, options, account)
    if samples == 0:
        raise UserError(f"{path}: holds no images.")
    images = {name: rows[f"f{image}"][name] for name in IMAGE.names or ()}
    images["length"] = _lengths(path, images, allocations, table, complete=(size - table) % ALLOCATION.itemsize == 0)
    return images, None if label is None else rows[f"f{label}"].astype(np.int64)


def _row_type(path: Path, fields: np.ndarray) -> np.dtype:
    unknown = sorted({int(t) for t in fields["type_id"]} - set(ROWS))
    if unknown:
        raise UserError(
            f"{path}: has a field of a type of its own ({unknown[0]}); only FFCV's own field types can be read."
        )
    return np.dtype([("", ROWS[int(t)]) for t in fields["type_id"]], align=True)


def _columns(path: Path, fields: np.ndarray, options: Options, account: Account) -> tuple[int, int | None]:
    """Which fields hold the image and the label."""
    types = fields["type_id"].tolist()
    names = [bytes(name).rstrip(b"\0").decode("ascii", "replace") for name in fields["name"]]
    images = [k for k, kind in enumerate(types) if kind == IMAGE_FIELD]
    if options.image_key is not None:
        images = [k for k in images if names[k] == options.image_key]
    if len(images) != 1:
        raise UserError(
            f"{path}: has {len(images)} image fields among {', '.join(names)}; exactly one is needed, --image-key NAME "
            "says which."
        )
    whole = [k for k, kind in enumerate(types) if kind == INT_FIELD]
    if options.label_key is not None:
        labels = [k for k in whole if names[k] == options.label_key]
        if not labels:
            raise UserError(f"{path}: has no field of whole numbers {options.label_key} among {', '.join(names)}.")
        return _account_fields(names, images[0], labels[0], account)
    labels = [k for word in LABEL_FIELDS for k in whole if names[k].lower() == word]
    if whole and not labels:
        account.guess(
            f"{path}: no field is called label, so there are no labels; --label-key {names[whole[0]]} takes that field "
            "of whole numbers"
        )
    return _account_fields(names, images[0], labels[0] if labels else None, account)


def _account_fields(names: list[str], image: int, label: int | None, account: Account) -> tuple[int, int | None]:
    unread = [name for k, name in enumerate(names) if k not in (image, label)]
    account.see(len(unread))
    account.leave("fields that are not read", next(iter(unread), ""), len(unread), aside=True)
    return image, label


def _lengths(
    path: Path, images: dict[str, np.ndarray], allocations: np.ndarray, end: int, complete: bool
) -> np.ndarray:
    """(N,) bytes of each image's data, from the allocation table, which must cover all of them within the file."""
    allocations = allocations[np.argsort(allocations["ptr"])]
    at = np.searchsorted(allocations["ptr"], images["data_ptr"])
    found = at < len(allocations)
    at[~found] = 0
    if not complete or not found.all() or (allocations["ptr"][at] != images["data_ptr"]).any():
        raise UserError(f"{path}: its table of data is damaged or cut short; copy or write the file again.")
    length = allocations["size"][at]
    raw = 3 * images["height"].astype(np.uint64) * images["width"]
    if (
        (length > end).any()
        or (images["data_ptr"] > end - length).any()
        or (images["mode"] > RAW).any()
        or (raw == 0).any()
        or ((images["mode"] == RAW) & (length != raw)).any()
    ):
        raise UserError(f"{path}: its table describes images that are not in the file; it is damaged, write it again.")
    return length
