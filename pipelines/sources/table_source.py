"""Labels as people have them: a CSV of FILE,LABEL rows, for some or all images of any source, or as a list of
images itself."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from saccade.base.errors import UserError
from saccade.base.text import printable
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.decode import is_image_name, looks_like_image
from saccade.pipelines.sources.folder import FileReader
from saccade.pipelines.sources.index import Index, Names
from saccade.pipelines.sources.labels import mixed_kinds, plain_labels
from saccade.pipelines.sources.matching import matched
from saccade.pipelines.sources.options import NO_LABELS, PLAIN, Options
from saccade.pipelines.sources.source import Source
from saccade.pipelines.sources.table import Table, read_table

SPLIT_COLUMNS = ("split", "set", "subset", "partition", "fold")


def class_numbers(labels: list[str | None]) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Labels numbered in the order of their names, numbers by their value; -1 for None. The names are the classes."""
    labels = plain_labels(labels)
    known = {label for label in labels if label is not None}
    names = sorted(known, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    if not names:
        return None, None
    number = {name: k for k, name in enumerate(names)}
    return np.array([-1 if label is None else number.get(label, -1) for label in labels], dtype=np.int64), tuple(names)


def _numbered(which: np.ndarray, texts: Names) -> tuple[np.ndarray | None, tuple[str, ...] | None, list[str]]:
    """(N,) class numbers of images that have these texts, -1 for none; the classes; the texts in use, each once."""
    used = np.unique(which[which >= 0])
    known = [texts[int(k)] or None for k in used]
    numbers, classes = class_numbers(known)
    if numbers is None:
        return None, None, []
    number = np.full(len(texts) + 1, -1)  # the last: of an image without a row
    number[used] = numbers
    return number[which], classes, [text for text in known if text is not None]


def with_table(source: Source, table: Table) -> Source:
    """The source under the table's labels; images without a row or with a blank one have none."""
    image, alike = matched(source, table)
    rows = np.flatnonzero(image >= 0)
    labels, classes, texts = _numbered(_of_images(source, table, image), table.texts)
    if labels is None:
        example = printable(source.key_of(0))
        raise UserError(
            f"--labels {table.path}: not one of its {len(table.names):,} rows names an image of {source.name} with a "
            f"label; its images are called like {example}."
        )
    other = source.relabelled(labels, classes)
    for told in (*table.remarks, mixed_kinds(texts)):
        if told:
            other.account.guess(told)
    if len(alike):
        name, like = printable(table.names[int(alike[0])]), printable(source.key_of(int(image[alike[0]])))
        other.account.guess(
            f"{len(alike):,} rows of {table.path} are taken for images by the end of their path or in other letters, "
            f"such as {name} for {like}"
        )
    missing = len(source) - int((labels >= 0).sum())
    if missing:
        first = printable(source.key_of(int(np.argmin(labels))))
        other.account.guess(f"{missing:,} of {len(source):,} images have no label in {table.path}, such as {first}")
    left = len(image) - len(rows)
    first = table.names[int(np.argmax(image < 0))] if left else ""
    _account(table, other.account, f"rows of {table.path} that name no image of {source.name}", first, left)
    other.account.use("rows of labels", len(rows))
    return other


def _of_images(source: Source, table: Table, image: np.ndarray) -> np.ndarray:
    """(N,) which of the table's texts each image of the source has, -1 for one without a row."""
    which, rows = np.full(len(source), -1), np.flatnonzero(image >= 0)
    which[image[rows]] = table.labels[rows]
    return which


def _account(table: Table, account: Account, why: str = "", first: str = "", left: int = 0) -> None:
    """Note the table's rows and columns that are not used; the others are for the caller to note."""
    account.see(table.rows + len(table.unread))
    account.leave(why, first, left)
    account.leave("rows that repeat another", table.repeated, table.rows - len(table.names))
    if split := next((name for name in table.unread if name.strip().lower() in SPLIT_COLUMNS), None):
        account.guess(
            f"{table.path}: its column {printable(split)} is not read, and the rows of all splits are taken; make a "
            "table of each, and name that of the test with --val-data"
        )
    account.leave("columns that are not read", next(iter(table.unread), ""), len(table.unread), aside=True)


def column_of(source: Source, table: str, column: str) -> tuple[Names, np.ndarray]:
    """The texts of a column of the CSV that differ, and (N,) int64, which of them each image has: "" for a blank cell,
    -1 for no row."""
    read = read_table(Path(table).expanduser(), label_key=column, flag="--sampling")
    return read.texts, _of_images(source, read, matched(source, read)[0])


class TableSource(Source):
    """The images that a CSV lists, by paths from its own folder, with its labels."""

    def __init__(self, path: Path, options: Options = PLAIN) -> None:
        table, account, folder = read_table(path, False, options.label_key), Account(), path.parent
        taken = np.zeros(len(table.names), np.bool_)
        for k in range(len(taken)):
            name = table.names[k]
            file = os.path.join(folder, name)
            if not os.path.isfile(file):
                account.leave("rows without a file", name)
            elif is_image_name(name) or looks_like_image(file):
                taken[k] = True
            else:
                account.leave("rows whose file is no image", name)
        _account(table, account)
        for told in table.remarks:
            account.guess(told)
        rows = np.flatnonzero(taken)
        if not len(rows):
            raise UserError(
                f"{path}: not one of its {len(table.names):,} rows names an image below {folder.absolute()}; "
                f"the first column is the file's path ({account.line()})."
            )
        labels, classes = None, None
        if options.labels != NO_LABELS:
            labels, classes, _ = _numbered(table.labels[rows], table.texts)
        account.taken = len(rows)
        index = Index(len(rows), labels, classes, table.names.take(rows), account=account)
        super().__init__(str(path), index, FileReader(folder), "csv")
        self.folder = folder
