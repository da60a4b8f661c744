"""Which image each row of a table names: by its path or its name, with or without the extension; by another path that
ends like it, or in capitals, where nothing fits. As columns: no object for an image or a row."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from saccade.base.errors import UserError
from saccade.base.text import printable
from saccade.pipelines.sources.index import Names
from saccade.pipelines.sources.source import Source
from saccade.pipelines.sources.table import Table
from saccade.pipelines.sources.texts import Lookup, Pieces, base_starts, extension_starts, gathered, next_slash

_NONE, _SEVERAL = -1, -2  # in place of an image
_Named = tuple[Pieces, np.ndarray]  # what some images are called, and which they are


def matched(source: Source, table: Table) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) int64, the image that each row of the table names, -1 for none; (k,) int64, the rows that are only like
    their image's name. UserError for a row that could be several images, and for an image of two labels."""
    keys = source.keys()
    rows = _inside(table.names.pieces, getattr(source, "folder", None), table.path.parent)
    image, alike = _images(keys, rows)
    several, named = np.flatnonzero(image == _SEVERAL), np.flatnonzero(image >= 0)
    first = np.full(len(keys), len(rows))  # the row that names each image first
    first[image[named[::-1]]] = named[::-1]
    twice = named[table.labels[named] != table.labels[first[image[named]]]]
    if not len(several) and not len(twice):
        return image, alike
    k = int(min([*several[:1], *twice[:1]]))
    name = printable(table.names[k])
    if image[k] != _SEVERAL:
        other = printable(table.names[int(first[image[k]])])
        raise UserError(f"--labels {table.path}: {other} and {name} are one image with two labels.")
    found = _all_named(keys, rows.take(np.array([k])))
    one, two = (printable(keys[int(i)]) for i in found[:2])
    raise UserError(
        f"--labels {table.path}: {name} could be {len(found)} images, {one} or {two}; write the folder and the "
        "extension too."
    )


def _images(keys: Names, rows: Pieces) -> tuple[np.ndarray, np.ndarray]:
    """The image that each row names, _NONE or _SEVERAL; the rows that are alike only."""
    exact = Lookup(keys.pieces)
    image = exact.find(rows)
    left = np.flatnonzero(image == _NONE)
    for called in (_stems, _bases):
        if len(left):
            image[left] = _only(rows.take(left), called(keys))
            left = left[image[left] == _NONE]
    unlike = left
    image[left] = _by_tails(exact, rows.take(left))
    left = left[image[left] == _NONE]
    if len(left):
        image[left] = _only(rows.take(left).lowered(), _folded(keys))
    return image, unlike[image[unlike] != _NONE]


def _only(rows: Pieces, called: Iterator[_Named]) -> np.ndarray:
    """The one image that is called like each row, _NONE or _SEVERAL."""
    known = Lookup(rows)
    count, image = np.zeros(len(rows), np.int64), np.full(len(rows), _NONE)
    for names, which in called:
        row = known.find(names)
        hit = np.flatnonzero(row >= 0)
        count += np.bincount(row[hit], minlength=len(rows))
        image[row[hit]] = which[hit]
    image[count > 1] = _SEVERAL
    return image[known.find(rows)]  # rows may be the same, too


def _all_named(keys: Names, row: Pieces) -> np.ndarray:
    """All images that one row could mean, in their order."""
    for called, wanted in ((_stems, row), (_bases, row), (_folded, row.lowered())):
        known = Lookup(wanted)
        found = [which[known.find(names) >= 0] for names, which in called(keys)]
        if len(images := np.sort(np.concatenate(found))):
            return images
    raise AssertionError("a row of several images has none")


def _stems(keys: Names) -> Iterator[_Named]:
    """Paths without the extension."""
    yield Pieces(keys.text, keys.starts, extension_starts(keys.text, keys.ends)), np.arange(len(keys))


def _bases(keys: Names) -> Iterator[_Named]:
    """Names without the folder, and without the extension where they have one."""
    base, dots = base_starts(keys.text, keys.ends), extension_starts(keys.text, keys.ends)
    yield Pieces(keys.text, base, keys.ends), np.arange(len(keys))
    with_one = np.flatnonzero(dots < keys.ends)
    yield Pieces(keys.text, base[with_one], dots[with_one]), with_one


def _folded(keys: Names) -> Iterator[_Named]:
    yield keys.pieces.lowered(), np.arange(len(keys))


def _by_tails(exact: Lookup, rows: Pieces) -> np.ndarray:
    """The image whose whole path ends each row (C:/elsewhere/cat/1.jpg, a set that was moved); of several ends the
    longest."""
    image, left, starts = np.full(len(rows), _NONE), np.arange(len(rows)), rows.starts
    while len(left):
        slash = next_slash(rows.data, starts, rows.stops[left])
        left, starts = left[slash >= 0], slash[slash >= 0] + 1
        found = exact.find(Pieces(rows.data, starts, rows.stops[left]))
        image[left] = found
        left, starts = left[found == _NONE], starts[found == _NONE]
    return image


def _inside(rows: Pieces, folder: Path | None, beside: Path) -> Pieces:
    """The rows as paths below the source's folder, where they lie there as they stand or from the table's own folder
    on."""
    if folder is None:
        return rows
    root = os.fsencode(os.path.abspath(folder)) + b"/"
    here = os.fsencode(os.path.join(os.path.abspath(beside), ""))
    relative = ~rows.begin_with(b"/")
    inside = _without(root, rows, ~relative)
    if here.startswith(root):
        return _behind(here[len(root) :], inside, relative) if here != root else inside
    return _without(root[len(here) :], inside, relative) if root.startswith(here) else inside


def _without(prefix: bytes, rows: Pieces, some: np.ndarray) -> Pieces:
    """Those of some rows that begin with the prefix without it, the others as they are."""
    return Pieces(rows.data, rows.starts + len(prefix) * (some & rows.begin_with(prefix)), rows.stops)


def _behind(prefix: bytes, rows: Pieces, some: np.ndarray) -> Pieces:
    """Some rows behind the prefix, the others as they are."""
    data, length = np.concatenate([np.frombuffer(prefix, np.uint8), rows.data]), len(prefix)
    starts = np.stack([np.zeros(len(rows), np.int64), rows.starts + length], axis=1).ravel()
    stops = np.stack([length * some, rows.stops + length], axis=1).ravel()
    data, ends = gathered(data, starts, stops)
    return Pieces(data, np.append(0, ends[1::2])[:-1], ends[1::2])
