"""Folders are listed ahead where listing them is waited for, and nothing else about them changes."""

import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from saccade.pipelines.sources import Account, FolderSource, Options, listing, unfinished
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


# --- a scan that was killed -----------------------------------------------------------------------------------------


@pytest.fixture
def killed(tree, tmp_path, monkeypatch) -> Path:
    """The listings that a process left which was killed in the middle of its scan."""
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "_WAIT", 1.0)  # no threads, which list some folders more than are taken
    monkeypatch.setattr(unfinished, "AFTER", 0.0)
    monkeypatch.setattr(unfinished, "EVERY", 0.0)
    for place, _, _ in os.walk(tree):
        os.utime(place, (10**9, 10**9))
    process = get_context("fork").Process(target=die_after, args=(150, tree))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return next((tmp_path / "cache" / "index").glob("*.listing"))


def die_after(folders: int, tree: Path) -> None:
    scandir, left = os.scandir, [folders]

    def counted(place):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return scandir(place)

    os.scandir = counted
    FolderSource(tree)


def counted(tree: Path, options: Options | None = None) -> tuple[list[str], int]:
    """The names, and how many folders were listed for them."""
    scandir, places = os.scandir, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", lambda place: (places.append(place), scandir(place))[1])
        source = FolderSource(tree, options or Options())
    return [source.name_of(i) for i in range(len(source))], len(places)


def test_a_killed_scan_goes_on_where_it_was(tree, killed):
    (tree / "0" / "007" / "images" / "0.jpg").write_bytes(b"")
    names = list(scan(tree, Account()))
    assert counted(tree) == (names, 202 - 149 + 1)  # of 202 folders 149 were listed, and one has changed since
    assert not killed.exists() and counted(tree) == (names, 202)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-200], lambda b: b"{" + b, lambda b: b.replace(b"jpg", b"gif"), lambda b: b""]
)
def test_what_a_killed_scan_left_is_taken_only_where_it_is_whole(tree, killed, damage):
    names = list(scan(tree, Account()))
    killed.write_bytes(damage(killed.read_bytes()))
    assert counted(tree)[0] == names


def test_all_folders_are_listed_where_that_is_asked_for_or_another_process_is_at_it(tree, killed):
    names = list(scan(tree, Account()))
    with open(killed, "ab") as other:
        unfinished.lock(other)
        assert counted(tree) == (names, 202)
    assert counted(tree, Options(recheck=True)) == (names, 202)
