"""Readers: any data set as a list of named images with labels, in the bytes it has. One per split."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from saccade.base.errors import UserError
from saccade.pipelines.beton import BetonSource
from saccade.pipelines.manifest import manifest_of
from saccade.pipelines.sources import ArraySource, BadImage, FolderSource, list_images

_FILE_COLUMNS = ("file", "filename", "file_name", "image", "img", "path", "name", "id", "image_id")
_LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "breed")


class Reader(ABC):
    """One split of a data set.

    labels: (N,) int64, -1 where an image has none, or None; classes: names by label or None.
    in_order: reading in another order than the stored one is slow.
    """

    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    in_order = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name_of(self, i: int) -> str:
        """Unique in the split: a path of "/"-separated parts."""

    @abstractmethod
    def read(self, i: int) -> bytes | np.ndarray:
        """Image i: its file's bytes, or (H, W, 3) uint8. Raises BadImage. Called by many threads."""

    def label_of(self, i: int) -> int:
        return -1 if self.labels is None else int(self.labels[i])


class FolderReader(Reader):
    """Image files; class names are the direct sub-folders, in the manifest's order if there is one."""

    def __init__(self, folder: Path) -> None:
        source = FolderSource(folder)
        self._folder, self._files = folder, source.files
        self.labels, self.classes = source.labels, source.classes
        manifest = manifest_of(folder)
        if manifest and manifest.classes and self.classes and set(self.classes) <= set(manifest.classes):
            number = np.array([manifest.classes.index(name) for name in self.classes], dtype=np.int64)
            self.labels, self.classes = number[self.labels], tuple(manifest.classes)

    def __len__(self) -> int:
        return len(self._files)

    def name_of(self, i: int) -> str:
        return self._files[i].relative_to(self._folder).as_posix()

    def read(self, i: int) -> bytes:
        try:
            return self._files[i].read_bytes()
        except OSError as error:
            raise BadImage(f"cannot be read ({error.strerror})") from error


class CsvReader(FolderReader):
    """Image files below a folder and a table with a row (file, label) for each; labels are class names or numbers."""

    def __init__(self, folder: Path, table: Path) -> None:
        files = list_images(folder)
        if not files:
            raise UserError(
                f"the folder {folder} {'is empty' if not any(folder.iterdir()) else 'holds no image file'}."
            )
        wanted = _read_table(table)
        self._folder, self._files = folder, files
        found = [_row_of(file.relative_to(folder), wanted) for file in files]
        missing = [str(file.relative_to(folder)) for file, label in zip(files, found, strict=True) if label is None]
        if missing:
            raise UserError(
                f"{table}: has no row for {len(missing)} of {len(files)} images below {folder}, such as "
                f"{', '.join(missing[:3])}; add them, or move the images away."
            )
        if len(files) < len(wanted):
            raise UserError(
                f"{table}: has {len(wanted)} rows but {folder} only {len(files)} images; "
                "remove the rows without an image, or bring the images."
            )
        names = sorted(set(found), key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
        number = {name: k for k, name in enumerate(names)}
        self.labels, self.classes = np.array([number[label] for label in found], dtype=np.int64), tuple(names)


def _read_table(table: Path) -> dict[str, str]:
    """File name (as written) -> label."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--labels {table}: cannot be read as CSV ({error}).") from error
    if not rows:
        raise UserError(f"--labels {table}: is empty; it needs a row FILE,LABEL for each image.")
    head = [name.strip().lower() for name in rows[0]]
    file_column = next((head.index(name) for name in _FILE_COLUMNS if name in head), None)
    label_column = next((head.index(name) for name in _LABEL_COLUMNS if name in head), None)
    if file_column is None or label_column is None:
        if any(len(row) != 2 for row in rows):
            raise UserError(
                f"--labels {table}: name its columns 'file' and 'label' in the first row (it has {', '.join(head)})."
            )
        file_column, label_column = 0, 1
    else:
        rows = rows[1:]
    short = next((k for k, row in enumerate(rows) if len(row) <= max(file_column, label_column)), None)
    if short is not None:
        raise UserError(f"--labels {table}: data row {short + 1} has {len(rows[short])} columns, too few.")
    return {row[file_column].strip(): row[label_column].strip() for row in rows}


def _row_of(file: Path, wanted: dict[str, str]) -> str | None:
    """A row may name the file by its path or its name, with or without the extension."""
    for name in (file.as_posix(), file.name, file.with_suffix("").as_posix(), file.stem):
        if name in wanted:
            return wanted[name]
    return None


class ArrayReader(Reader):
    """Images of one size in memory."""

    def __init__(self, source: ArraySource) -> None:
        self._source = source
        self.labels, self.classes = source.labels, source.classes

    def __len__(self) -> int:
        return len(self._source)

    def name_of(self, i: int) -> str:
        return f"{i:0{len(str(len(self) - 1))}d}"

    def read(self, i: int) -> np.ndarray:
        return self._source.images[i]


class BetonReader(Reader):
    """JPEG images as the bytes they lie in the file as, raw ones as pixels."""

    def __init__(self, path: Path) -> None:
        self._source = BetonSource(path)
        self.labels, self.classes = self._source.labels, self._source.classes

    def __len__(self) -> int:
        return len(self._source)

    def name_of(self, i: int) -> str:
        return f"{i:0{len(str(len(self) - 1))}d}"

    def read(self, i: int) -> bytes | np.ndarray:
        return self._source.stored(i).tobytes() if self._source.is_jpeg[i] else self._source.read(i)
