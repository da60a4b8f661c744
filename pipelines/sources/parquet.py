"""Parquet and Arrow files as Hugging Face lays them out: a column of {bytes, path} or of bytes, and a column of
labels."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saccade.base.errors import UserError
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.decode import BadImage, bad_image, is_image_name
from saccade.pipelines.sources.index import Index
from saccade.pipelines.sources.kept import kept_index, state_of
from saccade.pipelines.sources.labels import check_labels, numbered
from saccade.pipelines.sources.options import NO_LABELS, PLAIN, Options
from saccade.pipelines.sources.source import Reader, Source

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "pixel_values", "photo", "picture")  # in this order
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "category")
_KEPT = 256 << 20  # bytes of row groups that stay decoded


def pyarrow_parquet():
    """pyarrow.parquet, which is an extra."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("parquet files need pyarrow; pip install 'saccade[parquet]'.") from error
    return parquet


# What pyarrow's errors are, each of one of these too.
_BROKEN = (OSError, ValueError, NotImplementedError, MemoryError, TypeError, LookupError, RuntimeError)


class TableReader(Reader):
    """Rows of Parquet or Arrow files; a row group is read whole and a few are kept."""

    in_order = True

    def __init__(self, files: Sequence[Path], image: str, groups: np.ndarray) -> None:
        """groups: (G, 2) int64, the file and the number in it of each row group."""
        self.files, self._image, self._groups = list(files), image, groups
        self._restart()

    def _restart(self) -> None:
        self._opened: dict[int, Any] = {}
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {**vars(self), "_opened": None, "_kept": None, "_lock": None}  # a worker process opens the files itself

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._restart()

    def lies_in(self, index: Index, i: int) -> Path:
        return self.files[int(self._groups[int(index.columns["container"][i])][0])]

    def encoded(self, index: Index, i: int) -> bytes:
        group, row = int(index.columns["container"][i]), int(index.columns["place"][i])
        value = self._column(group)[row].as_py()
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if isinstance(data, str):
            data, path = None, data
        if data:
            return data
        if not path:
            raise BadImage("the row has no image bytes")
        file = self.files[int(self._groups[group][0])].parent / path
        try:
            return file.read_bytes()
        except OSError as error:
            raise bad_image(error, file) from error

    def key(self, index: Index, i: int) -> str:
        row = int(index.columns["row"][i])
        return f"{row:0{len(str(index.length - 1))}d}"

    def close(self) -> None:
        with self._lock:
            self._opened.clear()
            self._kept.clear()

    def _column(self, group: int) -> Any:
        with self._lock:
            if group not in self._kept:
                file, number = self._groups[group].tolist()
                try:
                    self._kept[group] = self._read(file, number)
                except _BROKEN as error:
                    raise BadImage(f"{self.files[file].name}: {_first_line(error)}") from error
                while len(self._kept) > 1 and sum(c.nbytes for c in self._kept.values()) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(group)
            return self._kept[group]

    def _read(self, file: int, number: int) -> Any:
        if file not in self._opened:
            self._opened[file] = open_table(self.files[file])
        return self._opened[file].column(number, self._image)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class ParquetSource(Source):
    """The rows of `files` in their order."""

    def __init__(self, files: Sequence[Path], name: str | None = None, options: Options = PLAIN) -> None:
        name = name or (str(files[0]) if len(files) == 1 else f"{files[0]} ... {files[-1].name}")
        called = {"tables": [os.path.realpath(file) for file in files], "options": options.meaning}

        def make() -> tuple[Index, object]:
            before = state_of(files)
            return _indexed(files, name, options), before

        index = kept_index(called, lambda kept: kept == state_of(files), make, options.recheck)
        groups = np.array(index.facts["groups"], dtype=np.int64)
        super().__init__(name, index, TableReader(files, index.facts["image"], groups), "parquet")


def _indexed(files: Sequence[Path], name: str, options: Options) -> Index:
    """The index of all rows. facts: the image column's name, and the file and the number in it of each row group."""
    account = Account()
    groups, counts, labels, image, label = [], [], [], "", None
    for number, file in enumerate(files):
        try:
            opened = open_table(file)
            if not number:
                schema = opened.schema
                image, label = _columns(file, opened, options, account)
            groups += [(number, group) for group in range(len(opened.rows))]
            counts += opened.rows
            if label:
                labels.append(opened.labels(label))
        except KeyError as error:
            raise UserError(f"{file}: has no column {error.args[0]}, which {files[0].name} has.") from error
        except _BROKEN as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{file}: cannot be read as a table ({_first_line(error)}).") from error
    account.taken = sum(counts)
    unread = [name for name in schema.names if name not in (image, label)] if files else []
    account.see(account.taken + len(unread))
    account.leave("columns that are not read", next(iter(unread), ""), len(unread), aside=True)
    if not account.taken:
        raise UserError(f"{files[0]}: holds no rows.")
    numbers, classes = _numbered(labels, _class_names(schema, label), f"{name}, column {label}")
    columns = {
        "container": np.repeat(np.arange(len(groups)), counts),
        "place": np.concatenate([np.arange(count) for count in counts]),
        "row": np.arange(account.taken),
    }
    facts = {"image": image, "groups": groups}
    return Index(account.taken, numbers, classes, columns=columns, account=account, facts=facts)


# --- files ----------------------------------------------------------------------------------------------------------


class _Parquet:
    """One Parquet file; rows: of each row group."""

    def __init__(self, file: Path) -> None:
        self._file = pyarrow_parquet().ParquetFile(file)
        self.schema = self._file.schema_arrow
        self.rows = [self._file.metadata.row_group(k).num_rows for k in range(self._file.num_row_groups)]

    def column(self, group: int, name: str) -> Any:
        return self._file.read_row_group(group, columns=[name]).column(0)

    def labels(self, name: str) -> Any:
        if name not in self.schema.names:
            raise KeyError(name)
        return self._file.read(columns=[name]).column(0)


class _Arrow:
    """One Arrow file, as Hugging Face's save_to_disk writes it: mapped, nothing is copied."""

    def __init__(self, file: Path) -> None:
        pyarrow_parquet()
        import pyarrow as pa

        mapped = pa.memory_map(str(file))
        try:
            self._table = pa.ipc.open_stream(mapped).read_all()
        except pa.ArrowInvalid:
            mapped.seek(0)
            self._table = pa.ipc.open_file(mapped).read_all()
        self.schema, self.rows = self._table.schema, [self._table.num_rows]

    def column(self, group: int, name: str) -> Any:
        return self._table.column(name)

    def labels(self, name: str) -> Any:
        return self._table.column(name)


def open_table(file: Path) -> _Parquet | _Arrow:
    return _Arrow(file) if file.suffix == ".arrow" else _Parquet(file)


# --- columns --------------------------------------------------------------------------------------------------------


def _columns(file: Path, opened: _Parquet | _Arrow, options: Options, account: Account) -> tuple[str, str | None]:
    """The columns of images and of labels. UserError where two could be meant, or the wanted one is not there."""
    names = opened.schema.names
    for flag, wanted in (("--image-key", options.image_key), ("--label-key", options.label_key)):
        if wanted is not None and wanted not in names:
            raise UserError(f"{flag} {wanted}: {file} has no such column among {', '.join(names)}.")
    image = options.image_key or _image_column(file, opened, account)
    label = options.label_key or next((name for name in LABEL_COLUMNS if name in names and name != image), None)
    if options.labels == NO_LABELS or options.table:
        label = None
    elif label and options.label_key is None:
        other = next((name for name in names if name != label and (name in LABEL_COLUMNS or "label" in name)), None)
        if other:
            account.guess(f"column {label} is taken for the labels, {other} is not; --label-key {other} takes that one")
    return image, label


def _image_column(file: Path, opened: _Parquet | _Arrow, account: Account) -> str:
    held = [field.name for field in opened.schema if _holds_images(field.type)]
    if not held:
        held = [field.name for field in opened.schema if _holds_paths(field, opened)]
    preferred = next((name for name in IMAGE_COLUMNS if name in held), None)
    if preferred and len(held) > 1:
        other = next(name for name in held if name != preferred)
        account.guess(f"column {preferred} is taken for the images, {other} is not; --image-key {other} takes that one")
    if preferred or len(held) == 1:
        return preferred or held[0]
    if held:
        raise UserError(
            f"{file}: the columns {' and '.join(held)} hold bytes, and any of them could be meant; give --image-key "
            f"{held[0]} or another."
        )
    raise UserError(
        f"{file}: no column with image bytes among {', '.join(opened.schema.names)}; `image` with {{bytes, path}} is "
        "expected (--image-key NAME takes another)."
    )


def _holds_images(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(kind.field(k).name == "bytes" for k in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def _holds_paths(field: Any, opened: _Parquet | _Arrow) -> bool:
    """Whether a column of texts names image files."""
    from pyarrow import types

    if not (types.is_string(field.type) or types.is_large_string(field.type)) or not opened.rows:
        return False
    first = next((value.as_py() for value in opened.column(0, field.name) if value.is_valid), "")
    return is_image_name(first)


def _class_names(schema: Any, label: str | None) -> list[str] | None:
    try:
        return json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None


def _numbered(columns: list, names: list[str] | None, told: str) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """(N,) labels, -1 for null and for Hugging Face's own -1, and the classes' names."""
    if not columns:
        return None, None
    import pyarrow as pa
    from pyarrow import types

    column = pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type)
    kind = column.type
    if types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if types.is_boolean(kind) or types.is_integer(kind):
        try:
            numbers = column.cast(pa.int64()).fill_null(-1).to_numpy()
        except pa.ArrowInvalid as error:
            raise UserError(f"{told}: holds larger numbers than any class has ({error}).") from error
    elif types.is_floating(kind):
        numbers = column.fill_null(-1).to_numpy()
        numbers = np.where(np.isnan(numbers), -1, numbers)
        if (numbers != np.round(numbers)).any():
            raise UserError(
                f"{told}: holds numbers that are no classes, such as {numbers[numbers != np.round(numbers)][0]:g}"
                "; give --label-key NAME, or --labels none."
            )
        numbers = numbers.astype(np.int64)
    elif types.is_string(kind) or types.is_large_string(kind):
        met = column.combine_chunks().dictionary_encode()
        if isinstance(met, pa.ChunkedArray):  # of newer pyarrow
            met = met.combine_chunks()
        texts = [text if text and text.strip() else None for text in met.dictionary.to_pylist()]
        numbers, classes = numbered(texts, told)
        which = met.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
        return None if numbers is None else np.append(numbers, -1)[which], classes
    else:
        raise UserError(
            f"{told}: holds {kind} values, and an image has one class; give --label-key NAME of another column, or "
            "--labels none to train without labels."
        )
    numbers = check_labels(numbers, told)
    return numbers, tuple(names) if names and numbers is not None and numbers.max() < len(names) else None
