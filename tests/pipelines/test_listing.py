"""Folders are listed ahead where listing them is waited for, and nothing else about them changes."""

import os
import time
from pathlib import Path

import pytest

from saccade.pipelines.sources import Account, listing
from saccade.pipelines.sources.folder import scan


@pytest.fixture
def tree(tmp_path) -> Path:
    for k in range(96):
        place = tmp_path / "set" / f"{k % 7}" / f"{k:03d}" / "images"
        place.mkdir(parents=True)
        (place / "1.jpg").write_bytes(b"")
        (place.parent / "notes.txt").write_bytes(b"")
    (tmp_path / "set" / "0" / "again").symlink_to(tmp_path / "set" / "1")
    (tmp_path / "set" / "2" / "empty").mkdir()
    (tmp_path / "set" / "@eaDir").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "2.png").write_bytes(b"")
    (tmp_path / "set" / "5" / "beside").symlink_to(tmp_path / "other")
    return tmp_path / "set"


def seen(folder: Path) -> tuple[list[str], Account, dict[str, list[int]]]:
    account, times = Account(), dict[str, list[int]]()
    return list(scan(folder, account, times)), account, times


def test_a_slow_file_system_is_listed_by_many_threads_and_gives_the_same(tree, monkeypatch):
    quick = seen(tree)
    assert len(quick[0]) == 97 and "5/beside/2.png" in quick[0]
    scandir = os.scandir
    running, most = [], []

    def slow(place):
        running.append(place)
        most.append(len(running))
        time.sleep(0.005)
        running.remove(place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", slow)
    started = time.perf_counter()
    assert seen(tree) == quick
    took, listed = time.perf_counter() - started, len(most)
    assert max(most) > listing.THREADS // 2 and listed <= len(quick[2]) + 1
    assert took < 0.005 * listed / 2


def test_a_quick_one_is_listed_by_the_scan_itself(tree, monkeypatch):
    monkeypatch.setattr(listing, "ThreadPoolExecutor", lambda *_: pytest.fail("threads where nothing is waited for"))
    monkeypatch.setattr(listing, "_WAIT", 1.0)  # seconds: whatever else this machine does
    assert len(seen(tree)[0]) == 97


def test_a_folder_that_cannot_be_read_is_told_of_in_both_ways(tree, monkeypatch):
    scandir = os.scandir

    def refused(place):
        if str(place).endswith("images"):
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refused)
    quick = seen(tree)
    assert quick[1].left_out["folders that cannot be read (Permission denied)"].count == 96
    monkeypatch.setattr(listing, "_LOOKED_AT", 0)
    monkeypatch.setattr(listing, "_WAIT", -1.0)
    monkeypatch.setattr(listing, "_SHARE", -1.0)
    assert seen(tree) == quick


def test_the_threads_end_with_a_scan_that_is_left(tree, monkeypatch):
    monkeypatch.setattr(listing, "_LOOKED_AT", 0)
    monkeypatch.setattr(listing, "_WAIT", -1.0)
    monkeypatch.setattr(listing, "_SHARE", -1.0)
    ended = []
    stop = listing.ThreadPoolExecutor.shutdown
    monkeypatch.setattr(listing.ThreadPoolExecutor, "shutdown", lambda self, **how: (ended.append(how), stop(self)))
    scanned = scan(tree, Account())
    assert next(scanned) == "0/000/images/1.jpg"
    scanned.close()
    assert ended == [{"wait": False, "cancel_futures": True}]
