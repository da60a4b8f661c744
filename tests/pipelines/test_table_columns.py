"""Labels from a CSV are matched as columns: the images and the sentences that dicts give, and no object for a row."""

import csv
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saccade.base.errors import UserError
from saccade.pipelines.sources import Index, Reader, Source, table
from saccade.pipelines.sources.index import Names
from saccade.pipelines.sources.matching import matched
from saccade.pipelines.sources.table import read_table
from saccade.pipelines.sources.table_source import with_table
from saccade.pipelines.sources.texts import Lookup
from tests.pipelines import plain_tables

PART = st.sampled_from(["a", "A", "b.c", "b", ".h", "x.png", "X.png", "x.jpg", "ä", "Ä", "\udcfe", "..", "p", "q q"])
PATH = st.lists(PART.filter(lambda part: part != ".."), min_size=1, max_size=3).map("/".join)
ROW = st.tuples(
    st.sampled_from(["", "", "", "./", "/", "/data/p/", "/data/", "p/", "C:/gone/", "..\\"]),
    st.lists(PART, min_size=0, max_size=3).map("/".join),
).map("".join)
LABEL = st.sampled_from(["cat", "cat", "cat", "dog", " ", "", "1"])


def source_of(names: list[str], folder: Path | None) -> Source:
    source = Source("photos", Index.of(names), Reader())
    if folder is not None:
        source.folder = folder  # pyright: ignore[reportAttributeAccessIssue]  # as those of files have
    return source


def outcome(find):
    try:
        return find()
    except UserError as error:
        return str(error)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(PATH, min_size=1, max_size=6),
    st.lists(st.tuples(ROW, LABEL), min_size=1, max_size=6),
    st.sampled_from([None, ".", "p", "..", "/data/p", "/"]),
)
def test_rows_name_the_images_that_dicts_find_or_are_refused_in_the_same_words(tmp_path, names, rows, folder):
    place = tmp_path / "l.csv"
    with open(place, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *rows])
    below = None if folder is None else tmp_path / folder
    source = source_of(names, below)

    def by_columns():
        read = read_table(place)
        image, alike = matched(source, read)
        rows = {read.names[k]: int(i) for k, i in enumerate(image) if i >= 0}
        labels = {read.names[k]: read.texts[int(n)] or None for k, n in enumerate(read.labels)}
        return labels, rows, [(read.names[int(k)], source.key_of(int(image[k]))) for k in alike]

    def by_dicts():
        labels = plain_tables.read(place)
        return labels, *plain_tables.matched(names, below, place, labels)

    assert outcome(by_columns) == outcome(by_dicts)


@settings(deadline=None)  # compiled at first
@given(st.lists(st.binary(max_size=4)), st.lists(st.binary(max_size=4)))
def test_pieces_are_found_as_a_dict_finds_them(known, wanted):
    where = {piece: k for k, piece in enumerate(known)}
    pieces = [_pieces(some) for some in (known, wanted)]
    assert Lookup(pieces[0]).find(pieces[1]).tolist() == [where.get(piece, -1) for piece in wanted]


def _pieces(some: list[bytes]):
    ends = np.cumsum([len(piece) for piece in some], dtype=np.int64)
    return Names(np.frombuffer(b"".join(some), np.uint8), ends).pieces


@pytest.mark.parametrize("row", ["/elsewhere/set/{}.jpg", "{}"])
def test_rows_take_the_bytes_of_their_columns_and_no_object_each(tmp_path, monkeypatch, row):
    monkeypatch.setattr(table, "AT_ONCE", 1000)
    names = [f"{k % 100:03d}/{k:06d}.jpg" for k in range(30_000)]
    rows = "".join(f"{row.format(name[:-4])},{name[:3]}\n" for name in names)
    (tmp_path / "l.csv").write_text("file,label\n" + rows, encoding="utf-8")
    source = source_of(names, None)
    with_table(source, read_table(tmp_path / "l.csv"))  # compiled
    tracemalloc.start()
    labelled = with_table(source, read_table(tmp_path / "l.csv"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert labelled.labels is not None and labelled.labels.tolist() == [k % 100 for k in range(30_000)]
    assert peak < 30_000 * 300  # bytes; 1,200 by dicts
