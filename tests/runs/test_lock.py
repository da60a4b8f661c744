"""One writer for a run folder; nobody who is gone holds it."""

import os
import signal
import time

import pytest

from saccade.base.errors import UserError
from saccade.base.files import lock
from saccade.runs.folder import RunFolder


def test_a_worker_does_not_inherit_the_lock(tmp_path):
    with open(tmp_path / "lock", "w") as held:
        lock(held)
        if (worker := os.fork()) == 0:
            time.sleep(60)
    try:  # the holder let go, as a killed process does; its worker lives on
        with open(tmp_path / "lock", "w") as again:
            lock(again, patience=5)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_a_held_folder_says_who_holds_it(tmp_path):
    with RunFolder(tmp_path / "run") as first:
        first.create(resume=False)
        with RunFolder(tmp_path / "run") as second, pytest.raises(UserError, match=f"process {os.getpid()} on "):
            second.create(resume=False)
    with RunFolder(tmp_path / "run") as third:
        third.create(resume=False)
