"""Parquet with image bytes, as Hugging Face lays it out: a column `image` of {bytes, path} and a column `label`."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from saccade.base.errors import UserError
from saccade.pipelines.sources import BadImage, check_largest
from saccade.tools.conversion.readers import Reader

_CACHED = 4  # row groups kept, about 100 images each


def pyarrow_parquet():
    """pyarrow.parquet, which is an extra."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("parquet files need pyarrow; pip install 'saccade[parquet]'.") from error
    return parquet


class ParquetReader(Reader):
    in_order = True  # a row group is read whole

    def __init__(self, files: list[Path]) -> None:
        parquet = pyarrow_parquet()
        self._files, self._opened = files, []
        self._groups: list[tuple[int, int, int]] = []  # file, row group, first row
        rows, labels = 0, []
        for number, file in enumerate(files):
            try:
                opened = parquet.ParquetFile(file)
                self._image, self._label = _columns(file, opened.schema_arrow)
                if self._label:
                    labels += opened.read(columns=[self._label]).column(0).to_pylist()
            except (OSError, ValueError) as error:  # pyarrow's errors are both of these
                raise UserError(f"{file}: cannot be read as parquet ({str(error).splitlines()[0]}).") from error
            for group in range(opened.num_row_groups):
                self._groups.append((number, group, rows))
                rows += opened.metadata.row_group(group).num_rows
            self._opened.append(opened)
        if not rows:
            raise UserError(f"{files[0]}: holds no rows.")
        self._rows, self._starts = rows, np.array([first for _, _, first in self._groups])
        self.labels, self.classes = _labels(labels, _class_names(self._opened[0].schema_arrow, self._label))
        self._cache: OrderedDict[int, list] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._rows

    def name_of(self, i: int) -> str:
        return f"{i:0{len(str(len(self) - 1))}d}"

    def read(self, i: int) -> bytes:
        group = int(np.searchsorted(self._starts, i, side="right")) - 1
        with self._lock:
            if group not in self._cache:
                file, number, _ = self._groups[group]
                try:
                    column = self._opened[file].read_row_group(number, columns=[self._image]).column(0)
                except OSError as error:
                    raise BadImage(f"{self._files[file].name}: {error}") from error
                self._cache[group] = column.to_pylist()
                if len(self._cache) > _CACHED:
                    self._cache.popitem(last=False)
            value = self._cache[group][i - int(self._starts[group])]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise BadImage("the row has no image bytes")
        return data


def _columns(file: Path, schema) -> tuple[str, str | None]:
    from pyarrow import types

    def holds_bytes(kind) -> bool:
        if types.is_struct(kind):
            return any(kind.field(k).name == "bytes" for k in range(kind.num_fields))
        return types.is_binary(kind) or types.is_large_binary(kind)

    images = [field.name for field in schema if holds_bytes(field.type)]
    image = next((name for name in ("image", "img", "jpg", "png", *images) if name in images), None)
    if image is None:
        raise UserError(
            f"{file}: no column with image bytes among {', '.join(schema.names)}; `image` with {{bytes, path}} "
            "is expected."
        )
    return image, next(
        (name for name in ("label", "labels", "fine_label", "class", "target") if name in schema.names), None
    )


def _class_names(schema, label: str | None) -> list[str] | None:
    try:
        return json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None


def _labels(values: list, names: list[str] | None) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    known = {value for value in values if value is not None}
    if not known:
        return None, None
    if all(isinstance(value, int) for value in known):
        check_largest(max(known), "the label column")
        labels = np.array([-1 if value is None else value for value in values], dtype=np.int64)
        return labels, tuple(names) if names and labels.max() < len(names) else None
    texts = sorted(map(str, known))
    number = {text: k for k, text in enumerate(texts)}
    return np.array([-1 if value is None else number[str(value)] for value in values], dtype=np.int64), tuple(texts)
