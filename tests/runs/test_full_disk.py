"""A disk that is full, will be, or cannot be written: a tmpfs of some megabytes."""

import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade import train
from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.runs import saver
from saccade.runs.checkpoint import checkpoints, load_checkpoint
from saccade.runs.folder import RunFolder
from saccade.runs.session import Session

SMALL = ["--method", "byol", "--backbone", "test_resnet", "--batch-size", "12", "--device", "cpu", "--steps", "8"]
SMALL += ["--eval-every", "0", "--log-every", "1", "--keep", "1", "--checkpoint-every", "1"]
SIZE = 24 << 20


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (48, 16, 16, 3), dtype=np.uint8))
    return path


def fill(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as handle:
        while True:
            handle.write(bytes(4096))


def test_a_full_disk_is_told_with_what_was_needed_and_what_there_was(disk):
    def write(file):
        for _ in range(40):
            file.write(bytes(1 << 20))

    with pytest.raises(
        UserError, match=r"No space left on device: it takes 41\.9 MB, and there was room for 2\d\.\d MB"
    ):
        write_atomically(disk / "file", write, 40 << 20)
    assert list(disk.iterdir()) == []


def test_a_disk_that_will_not_do_is_refused_before_anything_is_made(data, disk, capsys):
    out = disk / "run"
    assert train.main(["--data", str(data), "--out", str(out), *SMALL, "--keep", "40"]) == 2
    error = capsys.readouterr().err
    assert "40 checkpoints and the one that is being written take" in error and "25.2 MB are free" in error
    assert not out.exists()


def test_a_run_goes_on_over_a_disk_that_is_full_for_a_while(data, disk, capsys, monkeypatch):
    take, filler, out = Session.step, disk / "filler", disk / "run"

    def step(self, *args, **kwargs):
        if self.steps == 2:
            fill(filler)
        if self.steps == 6:
            filler.unlink()
        return take(self, *args, **kwargs)

    monkeypatch.setattr(saver, "PAUSE", 0.0)
    monkeypatch.setattr(Session, "step", step)
    assert train.main(["--data", str(data), "--out", str(out), *SMALL]) == 0
    error = capsys.readouterr().err
    assert "cannot be written (No space left on device: it takes" in error and "training goes on; trying again" in error
    assert [path.name for path in checkpoints(out)] == ["step-00000008.safetensors"]
    assert load_checkpoint(out)["step"] == 8 and not list(out.rglob(".*safetensors*"))
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 8


def test_lines_of_metrics_wait_for_a_full_disk(disk, capsys):
    folder = RunFolder(disk)
    folder.log({"step": 1})
    fill(disk / "filler")
    for step in (2, 3, 4):
        folder.log({"step": step, "note": "x" * 8192})
    assert [record["step"] for record in folder.metrics()] == [1]
    (disk / "filler").unlink()
    folder.log({"step": 5})
    assert [record["step"] for record in folder.metrics()] == [1, 2, 3, 4, 5]
    assert capsys.readouterr().err.count("metrics.jsonl cannot be written (No space left on device)") == 1


def read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


def test_a_run_folder_that_cannot_be_written_is_refused(data, disk, capsys):
    read_only(disk)
    assert train.main(["--data", str(data), "--out", str(disk / "run"), *SMALL]) == 2
    said = capsys.readouterr().err
    assert f"--out {disk}/run cannot be written (Read-only file system); choose another folder." in said


@pytest.mark.parametrize("kind", ["photos", pytest.param("shard.tar", marks=pytest.mark.slow)])
def test_data_and_cache_that_cannot_be_written_are_read(kind, disk, tmp_path, monkeypatch, capsys):
    for k in range(48):
        (disk / "photos").mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 20, 3), 5 * k, np.uint8)).save(disk / "photos" / f"{k:02}.png")
    with tarfile.open(disk / "shard.tar", "w") as tar:
        for path in sorted((disk / "photos").iterdir()):
            tar.add(path, path.name)
    monkeypatch.setenv("SACCADE_CACHE", str(disk / "cache"))
    read_only(disk)
    assert train.main(["--data", str(disk / kind), "--out", str(tmp_path / "run"), *SMALL, "--image-size", "16"]) == 0
    assert "Traceback" not in capsys.readouterr().err and load_checkpoint(tmp_path / "run")["step"] == 8
