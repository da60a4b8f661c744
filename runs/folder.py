"""The run folder: what a run leaves behind. Every file is written whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pipelines.build import available_cpus
from pipelines.errors import UserError

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "numba", "nvidia-dali-cuda130", "ffcv", "webdataset")


class RunFolder:
    """config.json, metrics.jsonl, summary.json, pictures, checkpoints/, backbone.safetensors, bad_images.txt."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: dict[str, int] = {}

    def create(self, resume: bool) -> None:
        """Make the folder and hold it; UserError if it cannot be written, holds another run, or is held by a process."""
        if not resume and any((self.path / "checkpoints").glob("step-*.pt")):
            raise UserError(f"--out {self.path} already holds a run; --resume it, or choose another folder.")
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")  # held until the process ends, however it ends
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not resume:  # what a run left that was stopped before its first checkpoint
                (self.path / "metrics.jsonl").unlink(missing_ok=True)
        except BlockingIOError as error:
            raise UserError(f"{self.path} is being written by another process; wait for it or stop it.") from error
        except OSError as error:
            raise UserError(f"--out {self.path} cannot be written ({error.strerror}); choose another folder.") from error

    def write_json(self, name: str, content: Any) -> None:
        write_atomically(self.path / name, lambda f: f.write((json.dumps(content, indent=2) + "\n").encode()))

    def read_json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        try:
            with open(self.path / "metrics.jsonl", "a") as f:
                f.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"{self.path}/metrics.jsonl cannot be written ({error.strerror}).") from error

    def metrics(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl (a killed run may leave half of one)."""
        file = self.path / "metrics.jsonl"
        records = []
        for line in file.read_text().splitlines() if file.exists() else ():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records

    def rewind(self, step: int) -> None:
        """Drop the metrics a killed run logged after its last checkpoint: their steps are done again."""
        kept = [r for r in self.metrics() if r["step"] <= step]
        write_atomically(self.path / "metrics.jsonl",
                         lambda f: f.write("".join(json.dumps(r) + "\n" for r in kept).encode()))

    def list_bad(self, bad: dict[str, str]) -> None:
        """Write bad_images.txt: a line for each unreadable image with the reason; only if the list grew."""
        if len(bad) > self._written.get("bad", 0):
            lines = "".join(f"{name}\t{reason}\n" for name, reason in sorted(bad.items()))
            write_atomically(self.path / "bad_images.txt", lambda f: f.write(lines.encode()))
            self._written["bad"] = len(bad)


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call write(file) on a temporary file beside `path`, then move it there: a reader sees the old file or the whole new one.

    A full disk or a missing right becomes a UserError and leaves nothing behind.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another folder.") from error
    try:
        with os.fdopen(handle, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        # torch.save reports a full disk as a RuntimeError of its zip writer
        if isinstance(error, OSError) or (
                isinstance(error, RuntimeError) and ("writ" in str(error) or "unexpected pos" in str(error))):
            full = shutil.disk_usage(path.parent).free < 1 << 22
            reason = getattr(error, "strerror", None) or ("the disk is full" if full else error)
            raise UserError(f"{path} cannot be written ({reason}); free some space or choose another folder.") from error
        raise


def versions() -> dict[str, str]:
    """Installed versions of the packages a run depends on, and Python's."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the code that runs, with "+" if it was changed; None outside a checkout."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True,
                              check=True, timeout=10).stdout.strip()
    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """What this machine is, for summaries and measurements."""
    described: dict[str, Any] = {"machine": platform.machine(), "cpus": available_cpus(), "threads": torch.get_num_threads()}
    try:
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        described["cpu"] = names[0] if names else platform.processor()
        described["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (OSError, ValueError):
        pass
    if torch.cuda.is_available():
        described["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return described
