"""Labels as people have them: a CSV of FILE,LABEL rows, for some or all images of any source, or as a list of
images itself."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saccade.base.errors import UserError
from saccade.base.text import printable
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.decode import is_image_name, looks_like_image
from saccade.pipelines.sources.folder import FileReader
from saccade.pipelines.sources.index import Index
from saccade.pipelines.sources.labels import mixed_kinds, plain_labels
from saccade.pipelines.sources.options import NO_LABELS, PLAIN, Options
from saccade.pipelines.sources.source import Source

FILE_COLUMNS = (
    "file",
    "filename",
    "file_name",
    "filepath",
    "image",
    "img",
    "path",
    "name",
    "id",
    "image_id",
    "image_path",
)
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "fold")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "breed")


@dataclass(frozen=True)
class Table:
    """labels: file (as written, "/" between folders) -> label, None where the cell is blank."""

    path: Path
    labels: dict[str, str | None]
    rows: int = 0  # with those that repeat another
    remarks: tuple[str, ...] = ()  # sentences on what was guessed to read it
    unread: tuple[str, ...] = ()  # names of the other columns
    labelled: bool = True  # whether there is a column of labels
    repeated: str = ""  # the first row that repeats another


def read_table(path: Path, need_labels: bool = True, label_key: str | None = None, flag: str = "--label-key") -> Table:
    """The rows of a CSV. UserError for one that cannot be read, or that gives a file two labels."""
    try:
        text, remarks = _text(path)
        read = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
        rows = [row for row in read if any(map(str.strip, row))]
        while rows and rows[0][0].lstrip().startswith("#"):  # lines on the table
            rows = rows[1:]
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"--labels {path}: cannot be read as CSV ({error}).") from error
    if not rows:
        raise UserError(f"--labels {path}: is empty; it needs a row FILE,LABEL for each image.")
    head = rows[0]
    names = [name.strip().lower() for name in rows[0]]
    file_column, label_column, rows = _columns(path, rows, need_labels, label_key, flag)
    labels: dict[str, str | None] = {}
    repeated = ""
    for number, row in enumerate(rows, 1):
        if len(row) <= max(file_column, -1 if label_column is None else label_column):
            raise UserError(f"--labels {path}: data row {number} has {len(row)} columns, too few.")
        name = _normal(row[file_column])
        label = None if label_column is None else row[label_column].strip() or None
        if name in labels and labels[name] != label:
            raise UserError(
                f"--labels {path}: data row {number} gives {printable(name)} the label {label!r}, an earlier one "
                f"{labels[name]!r}; leave one of them."
            )
        if name in labels and not repeated:
            repeated = f"data row {number} ({name})"
        labels[name] = label
    unread = tuple(name for k, name in enumerate(head) if k not in (file_column, label_column))
    if label_column is not None and label_key is None and (other := next((n for n in unread if _may_label(n)), None)):
        same = other.strip().lower() == names[label_column]
        way = "the first of that name; name its columns apart" if same else f"--label-key {other} takes that one"
        remarks.append(f"{path}: column {names[label_column]} is the label, {way}")
    return Table(path, labels, len(rows), tuple(remarks), unread, label_column is not None, repeated)


def _text(path: Path) -> tuple[str, list[str]]:
    """The table as text, UTF-16 of spreadsheets too; what is no UTF-8 is kept as bytes, and said."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16"), []
    text = data.decode("utf-8-sig", errors="surrogateescape")
    odd = next((line for line in text.splitlines() if any("\udc80" <= c <= "\udcff" for c in line)), None)
    if odd is None:
        return text, []
    return text, [f"{path}: is no UTF-8 (see {printable(odd)}), so names and labels may look odd; save it as UTF-8"]


def _may_label(name: str) -> bool:
    return name in LABEL_COLUMNS or "label" in name or "class" in name


def _delimiter(text: str) -> str:
    head = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    if any(c in head for c in ",;\t"):
        return max(",;\t", key=head.count)
    return " " if " " in head.strip() and not is_image_name(head.strip()) else ","


def _columns(
    path: Path, rows: list[list[str]], need_labels: bool, label_key: str | None, flag: str
) -> tuple[int, int | None, list[list[str]]]:
    """The columns of files and labels, and the rows below the head."""
    head = [name.strip().lower() for name in rows[0]]
    file = next((head.index(name) for name in FILE_COLUMNS if name in head), None)
    wanted = LABEL_COLUMNS if label_key is None else (label_key.lower(),)
    label = next((k for name in wanted for k, n in enumerate(head) if n == name and k != file), None)
    if label_key is not None and label is None:
        raise UserError(f"{flag} {label_key}: {path} has the columns {', '.join(head)}.")
    if file is not None and (label is not None or not need_labels):
        return file, label, rows[1:]
    if any(len(row) != 2 for row in rows) and any(len(row) != 1 for row in rows):
        short = next((k for k, row in enumerate(rows) if len(row) < 2), None)
        raise UserError(
            f"--labels {path}: name its columns 'file' and 'label' in the first row (it has "
            f"{printable(', '.join(head))})" + (f"; data row {short} has 1 columns." if short else ".")
        )
    if need_labels and len(rows[0]) < 2:
        raise UserError(f"--labels {path}: has one column; it needs FILE,LABEL.")
    return 0, 1 if len(rows[0]) > 1 else None, rows


def _normal(name: str) -> str:
    """A path as the index has it: "/" between folders, no leading "./"."""
    name = name.strip().replace("\\", "/")
    return os.path.normpath(name).replace(os.sep, "/") if name else name


def class_numbers(labels: list[str | None]) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Labels numbered in the order of their names, numbers by their value; -1 for None. The names are the classes."""
    labels = plain_labels(labels)
    known = {label for label in labels if label is not None}
    names = sorted(known, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    if not names:
        return None, None
    number = {name: k for k, name in enumerate(names)}
    return np.array([-1 if label is None else number.get(label, -1) for label in labels], dtype=np.int64), tuple(names)


# --- labels for a source --------------------------------------------------------------------------------------------


def with_table(source: Source, table: Table) -> Source:
    """The source under the table's labels; images without a row or with a blank one have none."""
    rows, alike = _matched(source, table)
    found: list[str | None] = [None] * len(source)
    for name, i in rows.items():
        found[i] = table.labels[name]
    labels, classes = class_numbers(found)
    if labels is None:
        example = printable(source.key_of(0))
        raise UserError(
            f"--labels {table.path}: not one of its {len(table.labels):,} rows names an image of {source.name} with a "
            f"label; its images are called like {example}."
        )
    other = source.relabelled(labels, classes)
    for told in (*table.remarks, mixed_kinds([text for text in found if text is not None])):
        if told:
            other.account.guess(told)
    if alike:
        name, image = map(printable, alike[0])
        other.account.guess(
            f"{len(alike):,} rows of {table.path} are taken for images by the end of their path or in other letters, "
            f"such as {name} for {image}"
        )
    missing = len(source) - int((labels >= 0).sum())
    if missing:
        first = printable(source.key_of(int(np.argmin(labels))))
        other.account.guess(f"{missing:,} of {len(source):,} images have no label in {table.path}, such as {first}")
    unmatched = [name for name in table.labels if name not in rows]
    _account(table, other.account, f"rows of {table.path} that name no image of {source.name}", unmatched)
    other.account.use("rows of labels", len(rows))
    return other


def _account(table: Table, account: Account, why: str, left: list[str]) -> None:
    """Note the table's rows and columns that are not used; the others are for the caller to note."""
    account.see(table.rows + len(table.unread))
    account.leave(why, next(iter(left), ""), len(left))
    account.leave("rows that repeat another", table.repeated, table.rows - len(table.labels))
    if split := next((name for name in table.unread if name.strip().lower() in SPLIT_COLUMNS), None):
        account.guess(
            f"{table.path}: its column {printable(split)} is not read, and the rows of all splits are taken; make a "
            "table of each, and name that of the test with --val-data"
        )
    account.leave("columns that are not read", next(iter(table.unread), ""), len(table.unread), aside=True)


def column_of(source: Source, table: str, column: str) -> list[str | None]:
    """The texts of a column of the CSV for each image, None where it has no row or a blank cell."""
    read = read_table(Path(table).expanduser(), label_key=column, flag="--sampling")
    texts: list[str | None] = [None] * len(source)
    for name, i in _matched(source, read)[0].items():
        texts[i] = read.labels[name]
    return texts


def _matched(source: Source, table: Table) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Row's name -> image's number, and the (name, image) that are alike only. A row may name an image by its path or
    its name, with or without the extension; by another path that ends like it, or in capitals, where nothing fits."""
    folder = getattr(source, "folder", None)
    keys = [source.key_of(i) for i in range(len(source))]
    exact, stems, bases, folded = {key: i for i, key in enumerate(keys)}, *(defaultdict(list) for _ in range(3))
    for i, key in enumerate(keys):
        stems[os.path.splitext(key)[0]].append(i)
        folded[key.lower()].append(i)
        base = key.rpartition("/")[2]
        bases[base].append(i)
        if (stem := os.path.splitext(base)[0]) != base:
            bases[stem].append(i)
    rows: dict[str, int] = {}
    named: dict[int, str] = {}
    alike = []
    for name in table.labels:
        inside = _relative(name, folder, table.path.parent)
        found = [exact[inside]] if inside in exact else stems.get(inside) or bases.get(inside) or []
        if not found and (found := _alike(inside, exact, folded)):
            alike.append((name, keys[found[0]]))
        if not found:
            continue
        if len(found) > 1:
            first, second = (printable(keys[i]) for i in found[:2])
            raise UserError(
                f"--labels {table.path}: {printable(name)} could be {len(found)} images, {first} or {second}; write "
                "the folder and the extension too."
            )
        other = named.setdefault(found[0], name)
        if table.labels[other] != table.labels[name]:
            raise UserError(
                f"--labels {table.path}: {printable(other)} and {printable(name)} are one image with two labels."
            )
        rows[name] = found[0]
    return rows, alike


def _alike(name: str, exact: dict[str, int], folded: dict[str, list[int]]) -> list[int]:
    """The images whose whole path ends the name (C:/elsewhere/cat/1.jpg, a set that was moved), or is it in other
    letters."""
    parts = name.split("/")
    tails = ("/".join(parts[k:]) for k in range(1, len(parts)))
    tail = next((tail for tail in tails if tail in exact), None)
    return folded.get(name.lower(), []) if tail is None else [exact[tail]]


def _relative(name: str, folder: Path | None, beside: Path) -> str:
    """The name as one below the source's folder."""
    if folder is None:
        return name
    root = os.path.abspath(folder)
    for place in (name,) if os.path.isabs(name) else (os.path.join(os.path.abspath(beside), name),):
        if place.startswith(root + os.sep):
            return place[len(root) + 1 :].replace(os.sep, "/")
    return name


# --- a table as a list of images ------------------------------------------------------------------------------------


class TableSource(Source):
    """The images that a CSV lists, by paths from its own folder, with its labels."""

    def __init__(self, path: Path, options: Options = PLAIN) -> None:
        table, account, folder = read_table(path, False, options.label_key), Account(), path.parent
        files, texts = [], []
        for name, label in table.labels.items():
            file = folder / name
            if not file.is_file():
                account.leave("rows without a file", name)
            elif is_image_name(name) or looks_like_image(file):
                files.append(name)
                texts.append(label)
            else:
                account.leave("rows whose file is no image", name)
        _account(table, account, "", [])
        for told in table.remarks:
            account.guess(told)
        if not files:
            raise UserError(
                f"{path}: not one of its {len(table.labels):,} rows names an image below {folder.absolute()}; "
                f"the first "
                f"column is the file's path ({account.line()})."
            )
        labels, classes = (None, None) if options.labels == NO_LABELS else class_numbers(texts)
        super().__init__(str(path), Index.of(files, labels, classes, account), FileReader(folder), "csv")
        self.folder = folder
