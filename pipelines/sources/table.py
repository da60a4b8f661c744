"""A CSV of FILE,LABEL rows as people write them, read as columns: no object for a row."""

from __future__ import annotations

import codecs
import csv
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from saccade.base.errors import UserError
from saccade.base.text import printable
from saccade.pipelines.sources.decode import is_image_name
from saccade.pipelines.sources.index import AT_ONCE, Names, NamesWriter
from saccade.pipelines.sources.texts import distinct

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
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "breed")
LOOKED_AT = 100  # rows, to tell which column holds the files


@dataclass(frozen=True)
class Table:
    """names: of the files (as written, "/" between folders), all different; labels: (N,) int64, which of `texts` each
    has, of which "" is none."""

    path: Path
    names: Names
    labels: np.ndarray
    texts: Names
    rows: int = 0  # with those that repeat another
    remarks: tuple[str, ...] = ()  # sentences on what was guessed to read it
    unread: tuple[str, ...] = ()  # names of the other columns
    repeated: str = ""  # the first row that repeats another


def read_table(path: Path, need_labels: bool = True, label_key: str | None = None, flag: str = "--label-key") -> Table:
    """The rows of a CSV. UserError for one that cannot be read, or that gives a file two labels."""
    odd: list[str] = []
    try:
        rows = _rows(_lines(path, odd))
        first = next((row for row in rows if not row[0].lstrip().startswith("#")), None)  # lines on the table
        if first is None:
            raise UserError(f"--labels {path}: is empty; it needs a row FILE,LABEL for each image.")
        front = [first, *islice(rows, LOOKED_AT)]
        file, label, headed = _columns(path, front, need_labels, label_key, flag)
        names, texts, met = _cells(chain(front[headed:], rows), file, label)
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"--labels {path}: cannot be read as CSV ({error}).") from error
    if not headed:
        _check_widths(path, first, met, need_labels)
    which, differ = distinct(texts.text, texts.starts, texts.ends)
    texts = texts.take(differ)
    names, labels, repeated = _each_once(path, names, which, texts, _short(met, file, label))
    head = [name.strip().lower() for name in first]
    unread = tuple(name for k, name in enumerate(first) if k not in (file, label))
    told = f"{path}: is no UTF-8 (see {{}}), so names and labels may look odd; save it as UTF-8"
    remarks = [told.format(printable(odd[0]))] if odd else []
    if label is not None and label_key is None and (other := next((n for n in unread if _may_label(n)), None)):
        same = other.strip().lower() == head[label]
        way = "the first of that name; name its columns apart" if same else f"--label-key {other} takes that one"
        remarks.append(f"{path}: column {head[label]} is the label, {way}")
    return Table(path, names, labels, texts, len(which), tuple(remarks), unread, repeated)


def _lines(path: Path, odd: list[str]) -> Iterator[str]:
    """The lines of the table, of UTF-16 of spreadsheets too; what is no UTF-8 is kept as bytes, and the first such
    line put into `odd`."""
    with open(path, "rb") as file:
        wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    with open(
        path, encoding="utf-16" if wide else "utf-8-sig", errors=None if wide else "surrogateescape", newline=""
    ) as file:
        for line in file:
            if not odd and not line.isascii() and _NO_UTF8.search(line):
                odd.extend(part for part in line.splitlines() if _NO_UTF8.search(part))
            yield line


_NO_UTF8 = re.compile("[\udc80-\udcff]")


def _rows(lines: Iterator[str]) -> Iterator[list[str]]:
    """The rows that are not blank."""
    front, head = [], ""
    for line in lines:
        front.append(line)
        if head := next((part for part in line.splitlines() if part.strip() and not part.startswith("#")), ""):
            break
    for row in csv.reader(chain(front, lines), delimiter=_delimiter(head)):
        if any(map(str.strip, row)):
            yield row


def _cells(rows: Iterable[list[str]], file: int, label: int | None) -> tuple[Names, Names, dict[int, int]]:
    """The files and the labels of all rows ("" for none), and the first row of each width."""
    files, labels, met = NamesWriter(), NamesWriter(), dict[int, int]()
    named, texts = [], []
    for number, row in enumerate(rows):
        if len(row) not in met:
            met[len(row)] = number
        named.append(_normal(row[file]) if file < len(row) else "")
        texts.append("" if label is None or label >= len(row) else row[label].strip())
        if len(named) == AT_ONCE:
            files.add(named)
            labels.add(texts)
            named, texts = [], []
    files.add(named)
    labels.add(texts)
    return files.done(), labels.done(), met


def _short(met: dict[int, int], file: int, label: int | None) -> tuple[int, int] | None:
    """The first row that lacks one of the columns, and its width."""
    needed = max(file, -1 if label is None else label)
    return min(((row, width) for width, row in met.items() if width <= needed), default=None)


def _each_once(
    path: Path, names: Names, which: np.ndarray, texts: Names, short: tuple[int, int] | None
) -> tuple[Names, np.ndarray, str]:
    """The names that differ, their labels, and the first row that repeats another. UserError for a file of two labels,
    and for a row without a column."""
    same, firsts = distinct(names.text, names.starts, names.ends)
    earlier = firsts[same]
    two = np.flatnonzero(which != which[earlier])
    if short and not (len(two) and two[0] < short[0]):
        raise UserError(f"--labels {path}: data row {short[0] + 1} has {short[1]} columns, too few.")
    if len(two):
        k = int(two[0])
        one, other = (texts[int(which[row])] or None for row in (k, earlier[k]))
        raise UserError(
            f"--labels {path}: data row {k + 1} gives {printable(names[k])} the label {one!r}, an earlier one "
            f"{other!r}; leave one of them."
        )
    if len(firsts) == len(names):
        return names, which, ""
    again = int(np.argmax(earlier != np.arange(len(names))))
    return names.take(firsts), which[firsts], f"data row {again + 1} ({names[again]})"


def _may_label(name: str) -> bool:
    return name in LABEL_COLUMNS or "label" in name or "class" in name


def _delimiter(head: str) -> str:
    if any(c in head for c in ",;\t"):
        return max(",;\t", key=head.count)
    return " " if " " in head.strip() and not is_image_name(head.strip()) else ","


def _columns(
    path: Path, front: list[list[str]], need_labels: bool, label_key: str | None, flag: str
) -> tuple[int, int | None, bool]:
    """The columns of files and labels by the first rows, and whether the first of all names them."""
    head = [name.strip().lower() for name in front[0]]
    file = next((head.index(name) for name in FILE_COLUMNS if name in head), None)
    wanted = LABEL_COLUMNS if label_key is None else (label_key.lower(),)
    label = next((k for name in wanted for k, n in enumerate(head) if n == name and k != file), None)
    if label_key is not None and label is None:
        raise UserError(f"{flag} {label_key}: {path} has the columns {', '.join(head)}.")
    if file is not None and (label is not None or not need_labels):
        return file, label, True
    images = file if file is not None else _image_column(front, label)
    if images is None and label_key is not None and len(head) == 2:
        images = 1 - (label or 0)
    if images is not None and (label is not None or len(head) == 1):
        return images, label, True
    if images is not None or label_key is not None:
        other = next((name for k, name in enumerate(head) if k != images), "")
        what = "is the label" if images is not None else "names the files"
        way = f"give {flag} {other}, or another" if images is not None else "call it 'file'"
        raise UserError(
            f"--labels {path}: which of its columns {what}? It has {printable(', '.join(head))}; {printable(way)}."
        )
    return 0, 1 if len(head) > 1 else None, False


def _check_widths(path: Path, first: list[str], met: dict[int, int], need_labels: bool) -> None:
    """UserError where a table without names of its columns is not FILE,LABEL, or FILE, in all rows."""
    if set(met) - {2} and set(met) - {1}:
        short, head = met.get(1), ", ".join(name.strip().lower() for name in first)
        raise UserError(
            f"--labels {path}: name its columns 'file' and 'label' in the first row (it has {printable(head)})"
            + (f"; data row {short} has 1 columns." if short else ".")
        )
    if need_labels and len(first) < 2:
        raise UserError(f"--labels {path}: has one column; it needs FILE,LABEL.")


def _image_column(front: list[list[str]], label: int | None) -> int | None:
    """The column that holds names of image files below a head that is none; None where there is no such."""
    for k, name in enumerate(front[0]):
        held = front[1:] and all(len(row) > k and is_image_name(row[k].strip()) for row in front[1:])
        if held and k != label and not is_image_name(name.strip()):
            return k
    return None


def _normal(name: str) -> str:
    """A path as the index has it: "/" between folders, no leading "./"."""
    name = name.strip().replace("\\", "/")
    return os.path.normpath(name).replace(os.sep, "/") if name else name
