"""FFCV's file format, `.beton` version 2: JPEG bytes and raw pixels with a table in front. Read without FFCV.

Layout: header, field descriptors, a row of metadata per sample, pages of data, and at the end a table of every piece of
data (sample, position, size). The types below are FFCV 1.0.2's.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from saccade.base.errors import UserError
from saccade.pipelines.manifest import manifest_of
from saccade.pipelines.sources import BadImage, Source, bad_image, check_largest

VERSION = 2
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


class BetonSource(Source):
    """Images and labels of a .beton file, in the file's order.

    sizes: (N, 2) int64 heights and widths; is_jpeg: (N,) bool; ptr, length: (N,) int64, where each image's data lies.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.name, self.path = str(path), path
        images, labels = _read_tables(path)
        self.is_jpeg = images["mode"] == JPEG
        self.sizes = np.stack([images["height"], images["width"]], axis=1).astype(np.int64)
        self.ptr, self.length = images["data_ptr"].astype(np.int64), images["length"].astype(np.int64)
        if labels is not None and labels.min() >= 0:
            check_largest(int(labels.max()), self.name)
            self.labels = labels
        manifest = manifest_of(path)
        if manifest and manifest.classes and self.labels is not None and self.labels.max() < len(manifest.classes):
            self.classes = tuple(manifest.classes)
        self._file: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ptr)

    def __getstate__(self) -> dict:
        return {**vars(self), "_file": None}  # a worker process maps the file itself

    @property
    def file(self) -> np.ndarray:
        """(bytes,) uint8: the whole file, mapped; what is written to it stays in memory."""
        if self._file is None:
            self._file = np.memmap(self.path, np.uint8, mode="c").view(np.ndarray)  # "c": torch wants it writable
        return self._file

    def stored(self, i: int) -> np.ndarray:
        """(bytes,) uint8: image i as it lies in the file, a JPEG or raw pixels."""
        return self.file[self.ptr[i] : self.ptr[i] + self.length[i]]

    def read(self, i: int) -> np.ndarray:
        if not self.is_jpeg[i]:
            return self.stored(i).reshape(*self.sizes[i], 3)
        file = io.BytesIO(self.stored(i).tobytes())
        try:
            with Image.open(file) as image:  # as it lies: FFCV knows no EXIF rotation
                pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # PIL's decoders raise anything on broken data
            raise bad_image(error, file) from error
        if pixels.shape[:2] != tuple(self.sizes[i]):
            raise BadImage(
                f"its JPEG is {pixels.shape[1]}x{pixels.shape[0]}, the file's table says "
                f"{self.sizes[i, 1]}x{self.sizes[i, 0]}"
            )
        return pixels

    def size(self, i: int) -> tuple[int, int]:
        return int(self.sizes[i, 0]), int(self.sizes[i, 1])

    def name_of(self, i: int) -> str:
        return f"{self.path.name}[{i}]"


def _read_tables(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
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
    rows = np.fromfile(path, _row_type(path, fields), count=samples, offset=start)
    allocations = np.fromfile(path, ALLOCATION, offset=table)
    image, label = _columns(path, fields)
    if samples == 0:
        raise UserError(f"{path}: holds no images.")
    images = {name: rows[f"f{image}"][name] for name in IMAGE.names}
    images["length"] = _lengths(path, images, allocations, table, complete=(size - table) % ALLOCATION.itemsize == 0)
    return images, None if label is None else rows[f"f{label}"].astype(np.int64)


def _row_type(path: Path, fields: np.ndarray) -> np.dtype:
    unknown = sorted({int(t) for t in fields["type_id"]} - set(ROWS))
    if unknown:
        raise UserError(
            f"{path}: has a field of a type of its own ({unknown[0]}); only FFCV's own field types can be read."
        )
    return np.dtype([("", ROWS[int(t)]) for t in fields["type_id"]], align=True)


def _columns(path: Path, fields: np.ndarray) -> tuple[int, int | None]:
    """Which fields hold the image and the label."""
    types = fields["type_id"].tolist()
    names = [bytes(name).rstrip(b"\0").decode("ascii", "replace") for name in fields["name"]]
    if types.count(IMAGE_FIELD) != 1:
        raise UserError(
            f"{path}: has {types.count(IMAGE_FIELD)} image fields among {', '.join(names)}; exactly one is needed."
        )
    whole = [k for k, kind in enumerate(types) if kind == INT_FIELD]
    labels = [k for k in whole if names[k].lower() in ("label", "labels", "target", "class")]
    return types.index(IMAGE_FIELD), labels[0] if labels else whole[0] if len(whole) == 1 else None


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
