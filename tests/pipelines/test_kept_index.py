"""What was found once is found again from a mapped file, and only while it is still true."""

import os
import pickle
import tracemalloc
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from saccade.base.errors import UserError
from saccade.pipelines.sources import Account, Reader, beton, index, kept, shards
from saccade.pipelines.sources import folder as folders
from saccade.pipelines.sources import parquet as parquets
from saccade.pipelines.sources.beton import BetonSource
from saccade.pipelines.sources.fingerprint import fingerprint
from saccade.pipelines.sources.folder import FolderSource
from saccade.pipelines.sources.index import FACTS, Index, Names
from saccade.pipelines.sources.options import Options
from saccade.pipelines.sources.parquet import ParquetSource
from saccade.pipelines.sources.shards import ShardSource
from saccade.pipelines.sources.source import Source
from tests.pipelines.elsewhere import names_and_labels
from tests.pipelines.files import SIDE, beton_with, tar_with
from tests.pipelines.test_shards import image

LONG_AGO = 10**9


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "MANY", 1)
    return tmp_path / "cache" / "index"


@pytest.fixture
def photos(tmp_path) -> Path:
    for name in ("a/0.jpg", "a/sub/1.jpg", "b/\udcff2.jpg", "b/notes.txt"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image(len(name)))
    return aged(tmp_path / "photos")


def aged(folder: Path) -> Path:
    for place, _, _ in os.walk(folder):
        os.utime(place, (LONG_AGO, LONG_AGO))
    return folder


def shown(source: Source) -> tuple:
    assert source.labels is not None
    names = [source.index.names[i] for i in range(len(source))]
    places = {name: column.tolist() for name, column in source.index.columns.items()}
    return names, source.labels.tolist(), source.classes, places, source.account, source.read(0).sum()


def test_a_folder_is_looked_through_once_until_one_of_its_folders_changes(photos, monkeypatch):
    first = shown(FolderSource(photos))
    with monkeypatch.context() as patch:
        patch.setattr(folders, "scan", lambda *_: pytest.fail("looked through again"))
        again = FolderSource(photos)
        assert shown(again) == first
        assert again.labels is not None and not again.labels.flags.writeable  # mapped
    (photos / "a" / "sub" / "3.jpg").write_bytes(image(3))
    assert len(FolderSource(photos)) == 4
    aged(photos)
    assert len(FolderSource(photos)) == 4
    (photos / "a" / "sub" / "3.jpg").unlink()
    assert shown(FolderSource(photos)) == first


def test_every_file_is_looked_at_when_that_is_asked_for(photos, tmp_path, monkeypatch):
    """A file system that keeps no folder's times, and a tar whose bytes were exchanged under its old time and size."""
    first = FolderSource(photos)
    (photos / "a" / "9.jpg").write_bytes(image(9))
    with monkeypatch.context() as patch:
        patch.setattr(folders, "_unchanged", lambda _: True)  # as it seems where folders have no times
        assert len(FolderSource(photos)) == len(first) == 3
        assert len(FolderSource(photos, Options(recheck=True))) == 4
    shard = tmp_path / "x.tar"
    tar_with(shard, {"0.jpg": image(1), "0.cls": b"1"})
    os.utime(shard, (LONG_AGO, LONG_AGO))
    assert shown(ShardSource([shard]))[1] == [1]
    tar_with(shard, {"0.jpg": image(1), "0.cls": b"2"})
    os.utime(shard, (LONG_AGO, LONG_AGO))
    assert shown(ShardSource([shard]))[1] == [1] and shown(ShardSource([shard], None, Options(recheck=True)))[1] == [2]
    assert shown(ShardSource([shard]))[1] == [2]  # and that is kept


def test_a_folder_that_may_still_be_written_is_not_kept(photos, cache):
    os.utime(photos / "b")
    FolderSource(photos)
    assert not cache.exists()


def test_shards_are_read_once_until_one_changes(tmp_path, monkeypatch):
    files = [tmp_path / "x-0.tar", tmp_path / "x-1.tar"]
    for k, file in enumerate(files):
        tar_with(file, {f"{k}0.jpg": image(1), f"{k}0.cls": b"1", f"{k}1.jpg": image(2), f"{k}1.cls": b"0"})
    first = shown(ShardSource(files))
    with monkeypatch.context() as patch:
        patch.setattr(shards, "index_of", lambda *_: pytest.fail("read again"))
        assert shown(ShardSource(files)) == first
    tar_with(files[1], {"9.jpg": image(1), "9.cls": b"2"})
    assert len(ShardSource(files)) == 3


def written_beton(path: Path) -> Path:
    beton_with(path, [(image(k), SIDE, SIDE) for k in range(5)])
    return path


def written_parquet(path: Path) -> Path:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"img": [image(k) for k in range(5)], "label": ["b", "a", None, "a", " "]})
    parquet.write_table(table, path, row_group_size=2)
    return path


@pytest.mark.parametrize(
    ("opener", "write", "reads"),
    [
        (BetonSource, lambda folder: written_beton(folder / "x.beton"), (beton, "_read_tables")),
        (
            lambda path: ParquetSource([path]),
            lambda folder: written_parquet(folder / "x.parquet"),
            (parquets, "_indexed"),
        ),
    ],
)
def test_a_packed_file_is_opened_from_its_kept_index_until_it_changes(tmp_path, monkeypatch, opener, write, reads):
    path = write(tmp_path)
    first = opener(path)
    with monkeypatch.context() as patch:
        patch.setattr(*reads, lambda *_: pytest.fail("read again"))
        again = opener(path)
        assert len(again) == 5 and again.classes == first.classes and fingerprint(again) == fingerprint(first)
        assert (again.labels is None) == (first.labels is None) and np.array_equal(again.labels, first.labels)
        assert [again.name_of(i) for i in range(5)] == [first.name_of(i) for i in range(5)]
        assert all(np.array_equal(again.read(i), first.read(i)) for i in range(5))
        assert not again.index.columns["row"].flags.writeable  # mapped
    os.utime(path, (LONG_AGO, LONG_AGO))
    with monkeypatch.context() as patch:
        patch.setattr(*reads, lambda *_: pytest.fail("read again"))
        with pytest.raises(pytest.fail.Exception):
            opener(path)


def test_what_is_looked_for_once_is_kept_with_the_index(photos):
    fresh, known = FolderSource(photos), FolderSource(photos)
    assert known.index.facts == {name: known.index.fact(name) for name in FACTS} == fresh.index.facts
    assert known.index.facts == {name: make(replace(known.index, facts={})) for name, make in FACTS.items()}
    assert known.subset([0]).index.facts == {}


def test_the_sums_of_a_large_file_are_looked_at_again_only_where_it_was_written_to(photos, cache, monkeypatch):
    monkeypatch.setattr(kept, "LARGE", 1)
    first = shown(FolderSource(photos))
    with monkeypatch.context() as patch:
        patch.setattr(kept, "_sum", lambda *_: pytest.fail("the sums were looked at"))
        assert shown(FolderSource(photos)) == first
    file = next(cache.glob("*.safetensors"))
    data = file.read_bytes()
    file.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    assert shown(FolderSource(photos)) == first


def test_a_kept_index_goes_to_another_process_as_its_files_name(photos, cache):
    source = FolderSource(photos)
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=names_and_labels, args=(pickle.dumps(source), there))
    process.start()
    there.close()
    names, labels, *_ = shown(source)
    assert here.recv() == (names, labels, [True, True])
    process.join()
    part = source.subset([2, 0])
    data, of_part = pickle.dumps(source), pickle.dumps(part)
    assert shown(pickle.loads(of_part)) == shown(part)
    (file,) = cache.glob("*.safetensors")
    file.replace(file.with_suffix(".gone"))
    with pytest.raises(UserError, match=f"{file}: this index was removed or written anew"):
        pickle.loads(data)
    assert shown(pickle.loads(pickle.dumps(source))) == shown(source)  # known to be gone: its bytes are sent
    file.write_bytes(file.with_suffix(".gone").read_bytes())
    with pytest.raises(UserError, match="this index was removed or written anew"):
        pickle.loads(data)


@pytest.mark.parametrize("rows", [None, np.arange(0, 50_000, 10_000)])
def test_what_goes_to_another_process_does_not_grow_with_the_set(cache, rows):
    sizes = []
    for count in (50_000, 100_000):

        def make(count: int = count) -> tuple[Index, object]:
            columns = {"offset": np.arange(count), "bytes": np.arange(count)}
            index = Index(count, np.arange(count) % 7, tuple("abcdefg"), Names.of(map(str, range(count))), columns)
            return index, [count]

        known = kept.kept_index({"set": count}, lambda _: True, make)
        source = Source("set", replace(known, account=Account(count, count)), Reader())
        source = source if rows is None else source.subset(rows, "set")
        sizes.append(len(data := pickle.dumps(source)))
        again = pickle.loads(data)
        assert [again.name_of(4), again.label_of(4), int(again.index.columns["offset"][4])] == (
            ["4", 4, 4] if rows is None else ["40000", 40_000 % 7, 40_000]
        )
    assert sizes[1] - sizes[0] < 100 and sizes[1] < 3000


@pytest.mark.parametrize(
    ("files", "wanted", "classes"),
    [
        (["b/1.jpg", "a/2.jpg"], [0, 1], ("a", "b")),
        (["x/y/b/1.jpg", "x/y/a/s/2.jpg"], [0, 1], ("a", "b")),
        (["x/y/1.jpg", "x/y/2.jpg"], [0, 0], ("y",)),
        (["x/ab/1.jpg", "x/a/2.jpg", "x/abc/3.jpg"], [0, 1, 2], ("a", "ab", "abc")),
        (["1.jpg", "a/2.jpg", "b/3.jpg"], [0, 1], ("a", "b")),
        (["1.jpg", "2.jpg"], None, None),
        (["1.jpg", "2.jpg", "a/3.jpg"], None, None),
    ],
)
def test_the_folders_that_are_classes(tmp_path, files, wanted, classes):
    for name in files:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(image(0))
    source = FolderSource(tmp_path / "data")
    assert (None if source.labels is None else source.labels.tolist()) == wanted and source.classes == classes


def test_names_come_back_as_they_were(monkeypatch):
    monkeypatch.setattr(index, "AT_ONCE", 3)
    for names in ([], [""], ["a", "", "b"], ["ü\udcff", "a/b c\n"] * 4, ["a\0b", "c"]):
        kept_as = Names.of(names)
        assert [kept_as[k] for k in range(len(kept_as))] == names


def test_a_part_of_a_part_copies_nothing_that_is_not_asked_for(photos):
    whole = FolderSource(photos)
    index = replace(whole.index, columns={"place": np.arange(3) * 10, "wide": np.arange(6).reshape(3, 2)})
    part = index.take(np.array([2, 0, 2])).take(np.array([0, 0, 1]))
    again = pickle.loads(pickle.dumps(part))
    for found in (part, again):
        assert [found.names[k] for k in range(3)] == [index.names[k] for k in (2, 2, 0)] and len(found.names) == 3
        assert found.columns["place"].tolist() == [20, 20, 0] and found.columns["wide"].shape == (3, 2)
        assert set(found.columns) == {"place", "wide"} and found.labels.tolist() == index.labels[[2, 2, 0]].tolist()
        assert found.names.checksum() == Names.of([index.names[k] for k in (2, 2, 0)]).checksum()
    big = Index(10**5, names=Names.of(map(str, range(10**5))), columns={"place": np.arange(10**5)})
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    few = big.take(np.arange(10**5)).take(np.arange(10))
    assert few.columns["place"].tolist() == list(range(10)) and few.names[9] == "9"
    assert tracemalloc.get_traced_memory()[0] - before < 10_000
    tracemalloc.stop()


def test_names_by_their_extension():
    names = ["a.jpg", "b/.tif", "c.d/e", "..png", "f..png", "g.tar.TIF", "", "h.", "i/j.k/l.png", ".x.png"]
    wanted = {".png", ".tif", ""}
    found = Names.of(names).end_in(wanted).tolist()
    assert found == [os.path.splitext(name)[1].lower() in wanted for name in names]


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-9],
        lambda b: b[:40],
        lambda b: b"",
        lambda b: b"\xff" * 99,
        lambda b: b[:-3] + bytes([b[-3] ^ 1]) + b[-2:],
    ],
)
def test_a_damaged_file_is_made_anew(photos, cache, damage):
    first = shown(FolderSource(photos))
    (file,) = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert shown(FolderSource(photos)) == first == shown(FolderSource(photos))


def test_names_are_taken_as_they_are():
    names = [f"{'x' * (k % 7)}{k}" for k in range(50)]
    rows = np.array([0, 49, 3, 3, 0, 20])
    taken = Names.of(names).take(rows)
    assert [taken[k] for k in range(6)] == [names[k] for k in rows] and len(Names.of(names).take(rows[:0])) == 0
