"""A table of vectors, or of patches, with names: .parquet, .csv, or .npy with a .names.csv beside it. Written block by
block."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from saccade.base.errors import UserError
from saccade.base.files import Unwritable, whole_file

ENDINGS = (".parquet", ".npy", ".csv")
COLUMNS = ("name", "split", "class", "label")


@dataclass(frozen=True)
class Block:
    """vectors (n, D) float32, or patches (n, h, w, D) float16, and of each row its name, split, class ("" for none) and
    label (-1 for none)."""

    names: list[str]
    split: str
    classes: list[str]
    labels: np.ndarray
    vectors: np.ndarray


@dataclass(frozen=True)
class Embeddings:
    """vectors (N, D) float32; (N,) names, splits and classes, "" for none; made: how, as a .parquet says."""

    path: Path
    vectors: np.ndarray
    names: np.ndarray
    splits: np.ndarray
    classes: np.ndarray
    made: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.vectors)

    def unit(self) -> np.ndarray:
        """The vectors at length 1, a copy."""
        length = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        return self.vectors / np.maximum(length, 1e-12)


def names_file(path: Path) -> Path:
    return path.with_suffix(".names.csv")


def write_embeddings(
    path: Path, blocks: Iterable[Block], rows: int, shape: tuple[int, ...], made: Mapping[str, Any]
) -> None:
    """All of it, or nothing; the names of a .npy first. shape: of a row, (D,) or (h, w, D). Raises UserError where it
    cannot be written."""
    kind = "<f4" if len(shape) == 1 else "<f2"
    try:
        if path.suffix == ".npy":
            with whole_file(path) as file, whole_file(names_file(path)) as beside:
                header = {"descr": kind, "fortran_order": False, "shape": (rows, *shape)}
                np.lib.format.write_array_header_1_0(file, header)
                table = _table(beside, COLUMNS)
                for block in blocks:
                    file.write(np.ascontiguousarray(block.vectors, kind).tobytes())
                    table.write(_lines(_told(block)))
                table.flush()
                table.detach()
        elif path.suffix == ".csv":
            with whole_file(path) as file:
                table = _table(file, (*COLUMNS, *(f"v{k}" for k in range(shape[0]))))
                for block in blocks:
                    numbers = ([f"{x:.9g}" for x in vector] for vector in block.vectors)
                    table.write(_lines([*row, *each] for row, each in zip(_told(block), numbers, strict=True)))
                table.flush()
                table.detach()
        else:
            with whole_file(path) as file:
                _write_parquet(file, blocks, shape, made)
    except OSError as error:
        raise Unwritable(path, error, rows * prod(shape) * int(kind[-1])) from error


def _table(file: IO[bytes], columns: Iterable[str]) -> io.TextIOWrapper:
    table = io.TextIOWrapper(file, encoding="utf-8", newline="")
    table.write(_lines([list(columns)]))
    return table


def _lines(rows: Iterable[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _told(block: Block) -> Iterator[list[str]]:
    for name, kind, label in zip(block.names, block.classes, block.labels.tolist(), strict=True):
        yield [name, block.split, kind, str(label) if label >= 0 else ""]


def _write_parquet(file: IO[bytes], blocks: Iterable[Block], shape: tuple[int, ...], made: Mapping[str, Any]) -> None:
    """A column `vector` of lists, or `patches` of Arrow's tensors of one shape: a list to who does not know those."""
    pyarrow, parquet = arrow()
    if len(shape) == 1:
        last = ("vector", pyarrow.list_(pyarrow.float32(), shape[0]))
    else:
        last = ("patches", pyarrow.fixed_shape_tensor(pyarrow.float16(), shape))
    fields = [("name", pyarrow.string()), ("split", pyarrow.string()), ("class", pyarrow.string())]
    schema = pyarrow.schema([*fields, ("label", pyarrow.int64()), last])
    schema = schema.with_metadata({"saccade": json.dumps(made)})
    with parquet.ParquetWriter(file, schema) as writer:
        for block in blocks:
            columns = [
                pyarrow.array(block.names, pyarrow.string()),
                pyarrow.array([block.split] * len(block.names), pyarrow.string()),
                pyarrow.array([kind or None for kind in block.classes], pyarrow.string()),
                pyarrow.array([k if k >= 0 else None for k in block.labels.tolist()], pyarrow.int64()),
                _arrow_rows(pyarrow, block.vectors),
            ]
            writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))


def _arrow_rows(pyarrow: Any, rows: np.ndarray) -> Any:
    if rows.ndim == 2:
        flat = pyarrow.array(np.ascontiguousarray(rows, np.float32).ravel())
        return pyarrow.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    return pyarrow.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(rows, np.float16))


def read_embeddings(path: Path) -> Embeddings:
    """What `write_embeddings` wrote, or any table with columns name and vector, or name and v0, v1 ..."""
    if path.suffix not in ENDINGS:
        raise UserError(f"--in {path}: give a file ending in {', '.join(ENDINGS)}, as saccade embed writes them.")
    if not path.is_file():
        raise UserError(f"--in {path}: no such file; saccade embed DATA --from RUN --out {path} makes it.")
    try:
        read = {".parquet": _read_parquet, ".npy": _read_npy, ".csv": _read_csv}[path.suffix]
        found = read(path)
    except UserError:
        raise
    except Exception as error:  # pyarrow, numpy and csv raise what a stranger's bytes lead them to
        raise UserError(f"--in {path}: cannot be read as vectors with names ({type(error).__name__}).") from error
    if found.vectors.ndim != 2 or not len(found) == len(found.names) or not len(found):
        raise UserError(f"--in {path}: holds {len(found.names)} names for vectors of shape {found.vectors.shape}.")
    if not found.vectors.shape[1]:
        raise UserError(
            f"--in {path}: has no vectors (columns v0, v1 ...); saccade embed DATA --from RUN makes a table."
        )
    if not np.isfinite(found.vectors).all():
        raise UserError(f"--in {path}: some of its numbers are not finite; embed again with another backbone.")
    return found


def _read_parquet(path: Path) -> Embeddings:
    _, parquet = arrow()
    file = parquet.ParquetFile(path)
    if "patches" in file.schema_arrow.names:
        raise _patches(path)
    table, made = file.read(), {}
    with suppress(ValueError, KeyError, TypeError):
        made = json.loads((file.schema_arrow.metadata or {})[b"saccade"])
    vector = table.column("vector").combine_chunks()
    flat = vector.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    texts = [
        _texts(table.column(name).to_pylist() if name in table.column_names else [""] * len(table))
        for name in COLUMNS[:3]
    ]
    return Embeddings(path, flat.reshape(len(table), -1), *texts, made=made if isinstance(made, dict) else {})


def _read_npy(path: Path) -> Embeddings:
    with names_file(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts = [_texts([row.get(name, "") for row in rows]) for name in COLUMNS[:3]]
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    if vectors.ndim == 4:
        raise _patches(path)
    return Embeddings(path, np.array(vectors, np.float32), *texts, made={})


def _read_csv(path: Path) -> Embeddings:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        head = next(reader)
        numbers = [k for k, name in enumerate(head) if name[:1] == "v" and name[1:].isdecimal()]
        place = {name: head.index(name) if name in head else None for name in COLUMNS[:3]}
        told: dict[str, list[str]] = {name: [] for name in place}
        vectors = []
        for row in reader:
            vectors.append(np.array([row[k] for k in numbers], np.float32))
            for name, k in place.items():
                told[name].append("" if k is None else row[k])
    return Embeddings(path, np.stack(vectors), *(_texts(told[name]) for name in COLUMNS[:3]), made={})


def _patches(path: Path) -> UserError:
    return UserError(f"--in {path}: holds the features of patches, not of images; embed again without --dense.")


def _texts(values: Iterable[str | None]) -> np.ndarray:
    return np.array([value or "" for value in values])


def arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("parquet files need pyarrow; pip install 'saccade[parquet]'.") from error
    return pyarrow, parquet
