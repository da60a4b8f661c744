"""The run folder: what a run leaves behind. Every file is written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import IO, Any

from saccade.base.errors import UserError
from saccade.base.files import lock, megabytes, swept, write_atomically
from saccade.base.text import json_line, printable
from saccade.runs.checkpoint import holds_run


def default_folder(method: str, data: str) -> Path:
    """outputs/METHOD-DATA-TIME; runs that a sweep starts in one second have names of their own."""
    now = time.time()
    name = re.sub(r"[^\w.-]+", "_", Path(data).stem)[:60] or "data"
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    return Path(f"outputs/{method}-{name}-{stamp}-{int(now % 1 * 1e6):06d}{os.getpid() % 1000:03d}")


class RunFolder:
    """config.json, metrics.jsonl, summary.json, pictures, checkpoints/, backbone.safetensors, bad_images.txt."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: dict[str, int] = {}
        self._waiting: list[str] = []  # lines of metrics.jsonl that are not written yet
        self._lock: IO | None = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the folder, so that the same program may go on with it."""
        if self._lock is not None:
            self._lock.close()

    def create(self, resume: bool) -> None:
        """Make the folder and hold it; UserError if it cannot be written, holds another run, or a process holds it."""
        if not resume and holds_run(self.path):
            raise UserError(f"--out {self.path} already holds a run; --resume it, or choose another folder.")
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a+")  # noqa: SIM115 - held until the run ends, however it ends
            lock(self._lock)
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._lock.flush()
            self._sweep()
            if not resume:  # what a run left that was stopped before its first checkpoint
                (self.path / "metrics.jsonl").unlink(missing_ok=True)
        except BlockingIOError as error:
            holder = printable((self.path / ".lock").read_text(errors="replace")[:200]) or "another process"
            raise UserError(f"{self.path} is being written by {holder}; wait for it or stop it.") from error
        except OSError as error:
            raise UserError(
                f"--out {self.path} cannot be written ({error.strerror}); choose another folder."
            ) from error

    def _sweep(self) -> None:
        """Remove what killed writes left; in the folder itself others write too, without the lock, for moments."""
        left = swept(self.path / "checkpoints") | swept(self.path, older=10)
        if left:
            names = printable(", ".join(sorted(left)[:5])) + (", ..." if len(left) > 5 else "")
            size = megabytes(sum(left.values()))
            print(
                f"removed {len(left)} unfinished files of killed writes, {size}: {names}", file=sys.stderr, flush=True
            )

    def write_json(self, name: str, content: Any) -> None:
        write_atomically(self.path / name, lambda f: f.write((json.dumps(content, indent=2) + "\n").encode()))

    def read_json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; one that cannot be written waits for the next, and that is said once."""
        self._waiting.append(json_line(record) + "\n")
        try:
            with open(self.path / "metrics.jsonl", "ab") as f:
                end = f.tell()
                try:
                    f.write("".join(self._waiting).encode())
                    f.flush()
                except OSError:
                    os.ftruncate(f.fileno(), end)  # no half of a line
                    raise
        except OSError as error:
            if len(self._waiting) == 1:
                where = f"{self.path}/metrics.jsonl cannot be written ({error.strerror})"
                print(f"\nwarning: {where}; training goes on, and its lines wait", file=sys.stderr, flush=True)
            return
        self._waiting = []

    def metrics(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl: a killed run may leave half of one, and what is no record is none. null is
        NaN again."""
        file = self.path / "metrics.jsonl"
        records = []
        for line in file.read_bytes().splitlines() if file.exists() else ():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and type(record.get("step")) is int:
                records.append({name: float("nan") if value is None else value for name, value in record.items()})
        return records

    def rewind(self, step: int) -> None:
        """Drop the metrics a killed run logged after its last checkpoint: their steps are done again."""
        kept = [r for r in self.metrics() if r["step"] <= step]
        write_atomically(
            self.path / "metrics.jsonl", lambda f: f.write("".join(json_line(r) + "\n" for r in kept).encode())
        )

    def list_bad(self, bad: dict[str, str]) -> None:
        """Write bad_images.txt: a line for each unreadable image with the reason; only if the list grew."""
        if len(bad) > self._written.get("bad", 0):
            lines = "".join(f"{printable(name)}\t{printable(why)}\n" for name, why in sorted(bad.items()))
            write_atomically(self.path / "bad_images.txt", lambda f: f.write(lines.encode()))
            self._written["bad"] = len(bad)
