"""What was found once is found again from a mapped file, and only while it is still true."""

import os
from pathlib import Path

import numpy as np
import pytest

from saccade.pipelines.sources import folder as folders
from saccade.pipelines.sources import kept, shards
from saccade.pipelines.sources.folder import FolderSource
from saccade.pipelines.sources.index import Names
from saccade.pipelines.sources.shards import ShardSource
from saccade.pipelines.sources.source import Source
from tests.pipelines.files import tar_with
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
