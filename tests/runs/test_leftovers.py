"""What killed writes leave is removed by the next run of that folder, and named."""

import os
import signal
import time
from pathlib import Path

from saccade.base.files import swept, whole_file
from saccade.runs.folder import RunFolder


def killed_write(file: Path) -> None:
    """A process that is killed inside a write of `file`."""
    if (child := os.fork()) == 0:
        with whole_file(file) as out:
            out.write(bytes(1_500_000))
            out.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_the_next_run_removes_and_names_what_killed_writes_left(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    kept = [tmp_path / ".lock", tmp_path / ".notes.original", tmp_path / "checkpoints" / "step-00000001.safetensors"]
    for file in kept:
        file.touch()
    killed_write(tmp_path / "checkpoints" / "step-00000002.safetensors")
    killed_write(tmp_path / "backbone.safetensors")
    for left in tmp_path.glob(".backbone*"):
        os.utime(left, (time.time() - 20, time.time() - 20))
    with whole_file(tmp_path / "report.json") as file, RunFolder(tmp_path) as folder:  # eval.py at this moment
        folder.create(resume=True)
        file.write(b"{}")
    error = capsys.readouterr().err
    assert "removed 2 unfinished files of killed writes, 3.0 MB: .backbone.safetensors." in error
    assert all(file.exists() for file in kept) and (tmp_path / "report.json").read_text() == "{}"
    assert {path.name for path in tmp_path.rglob("*.*") if path.is_file()} == {
        *(file.name for file in kept),
        "report.json",
    }


def test_no_more_than_that_is_taken_for_left(tmp_path):
    for name in (".config.settings", ".x.json.ABCDEFGH", "x.json.abcdefgh", ".x.json.abcdefg", ".json.abcdefgh"):
        (tmp_path / name).touch(mode=0o600)
    (tmp_path / ".y.json.abcdefgh").touch(mode=0o644)
    (tmp_path / ".folder.json.abcdefgh").mkdir()
    (tmp_path / ".link.json.abcdefgh").symlink_to(tmp_path / "x.json.abcdefgh")
    assert swept(tmp_path) == {} and swept(tmp_path / "nothing") == {}
