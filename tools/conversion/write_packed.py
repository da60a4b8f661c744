"""Writers of the formats that hold pixels or a table: .beton, .npz and parquet."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np

from saccade.base.errors import UserError
from saccade.base.files import whole_file
from saccade.pipelines.sources.beton import (
    ALLOCATION,
    FIELD,
    HEADER,
    IMAGE,
    IMAGE_FIELD,
    INT_FIELD,
    JPEG,
    ROWS,
    VERSION,
)
from saccade.pipelines.sources.beton import RAW as RAW_MODE
from saccade.pipelines.sources.parquet import pyarrow_parquet
from saccade.tools.conversion.prepare import RAW
from saccade.tools.conversion.writers import Item, Row, Writer

PAGE = 1 << 23  # bytes; FFCV's default. Data does not cross pages
_ROW_GROUP = 100  # images in a parquet row group, as Hugging Face writes them


class BetonWriter(Writer):
    """One file that grows part by part; its tables are written at the end, its header last of all."""

    forms = ("keep", "jpg", "raw", "proportion")
    _FIELDS = (("image", IMAGE_FIELD), ("label", INT_FIELD))
    _TABLE = np.dtype([("", ROWS[kind]) for _, kind in _FIELDS], align=True)

    @property
    def _start(self) -> int:
        head = HEADER.itemsize + len(self._FIELDS) * FIELD.itemsize + self.images * self._TABLE.itemsize
        return -(-head // PAGE) * PAGE

    def write(self, number: int, items: Iterable[Item], before: list[Row]) -> list[Row]:
        end, rows = max([self._start, *(row.place[1] + row.size for row in before[-1:])]), []
        path = self.folder / f"{self.split}.beton"
        with open(path, "r+b" if path.exists() else "w+b") as file:
            file.truncate(end)  # what a killed run wrote behind its last whole part
            for item in items:
                position = _place(end, len(item.image.data))
                file.seek(position)
                file.write(item.image.data)
                end = position + len(item.image.data)
                rows.append(item.row(RAW_MODE if item.image.kind == RAW else JPEG, position))
            file.flush()
            os.fsync(file.fileno())
        return rows

    def finish(self, rows: list[Row]) -> list[str]:
        images, table, pieces = (
            np.zeros(len(rows), IMAGE),
            np.zeros(len(rows), self._TABLE),
            np.zeros(len(rows), ALLOCATION),
        )
        images["mode"], images["data_ptr"] = [r.place[0] for r in rows], [r.place[1] for r in rows]
        images["height"], images["width"] = [r.height for r in rows], [r.width for r in rows]
        table["f0"], table["f1"] = images, [r.label for r in rows]
        pieces["sample_id"], pieces["ptr"], pieces["size"] = (
            np.arange(len(rows)),
            images["data_ptr"],
            [r.size for r in rows],
        )
        fields = np.zeros(len(self._FIELDS), FIELD)
        for field, (name, kind) in zip(fields, self._FIELDS, strict=True):
            field["type_id"], field["name"][: len(name)] = kind, list(name.encode())
        end = rows[-1].place[1] + rows[-1].size
        page = max(PAGE, *(_power_of_two(r.size) for r in rows))
        header = np.array([(VERSION, len(fields), page, len(rows), end)], HEADER)
        with open(self.folder / f"{self.split}.beton", "r+b") as file:
            file.truncate(end)
            file.seek(end)
            file.write(pieces.tobytes())
            file.seek(0)
            file.write(b"".join(part.tobytes() for part in (header, fields, table)))
            file.flush()
            os.fsync(file.fileno())
        return [f"{self.split}.beton"]


def _place(position: int, size: int) -> int:
    """The first position from `position` on where `size` bytes lie within one page; larger data has its own."""
    page = max(PAGE, _power_of_two(size))
    return position if position // page == (position + size - 1) // page else -(-position // page) * page


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


class NpzWriter(Writer):
    """`images`, `labels` and `classes`; parts are arrays of their own until the end."""

    forms = ("raw",)

    def write(self, number: int, items: Iterable[Item], before: list[Row]) -> list[Row]:
        rows = []
        with whole_file(self._part(number)) as file:
            for item in items:
                first = (before or rows)[0] if before or rows else None
                if first and (item.image.height, item.image.width) != (first.height, first.width):
                    raise UserError(
                        f"an .npz holds images of one size, but {item.name} is {item.image.width}x{item.image.height} "
                        f"and the first is {first.width}x{first.height}; use --to beton or --to wds."
                    )
                file.write(item.image.data)
                rows.append(item.row())
        return rows

    def finish(self, rows: list[Row]) -> list[str]:
        shape = len(rows), rows[0].height, rows[0].width, 3
        path = self.folder / f"{self.split}.npz"
        if not path.exists():
            self._join(path, shape, rows)
        for number in range(self.parts):
            self._part(number).unlink(missing_ok=True)
        return [path.name]

    def _join(self, path: Path, shape: tuple[int, ...], rows: list[Row]) -> None:
        with whole_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("images.npy", "w", force_zip64=True) as images:
                np.lib.format.write_array_header_1_0(images, {"descr": "|u1", "fortran_order": False, "shape": shape})
                for number in range(self.parts):
                    with open(self._part(number), "rb") as part:
                        shutil.copyfileobj(part, images, 1 << 20)
            if any(row.label >= 0 for row in rows):
                with archive.open("labels.npy", "w") as labels:
                    np.save(labels, np.array([row.label for row in rows], dtype=np.int64))
            if self.classes:
                with archive.open("classes.npy", "w") as classes:
                    np.save(classes, np.array(self.classes))

    def _part(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:06d}.pixels"


class ParquetWriter(Writer):
    """A file for each part, with Hugging Face's description of the columns."""

    def write(self, number: int, items: Iterable[Item], before: list[Row]) -> list[Row]:
        import pyarrow as pa

        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        label = (
            {"names": list(self.classes), "_type": "ClassLabel"}
            if self.classes
            else {"dtype": "int64", "_type": "Value"}
        )
        about = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
        schema = pa.schema([("image", image), ("label", pa.int64())], {"huggingface": json.dumps(about)})
        path, rows, items = self.folder / f"{self.split}-{number:05d}-of-{self.parts:05d}.parquet", [], iter(items)
        with whole_file(path) as file, pyarrow_parquet().ParquetWriter(file, schema, compression="none") as parquet:
            while group := list(islice(items, _ROW_GROUP)):
                images = [
                    {"bytes": item.image.data, "path": Path(item.name).with_suffix(item.image.kind).name}
                    for item in group
                ]
                labels = [item.label if item.label >= 0 else None for item in group]
                parquet.write_table(pa.table([pa.array(images, image), pa.array(labels, pa.int64())], schema=schema))
                rows += [item.row() for item in group]
        return rows
