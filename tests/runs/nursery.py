"""Starts runs as real processes in a tenth of a second: a process that has imported everything forks them.

with Nursery() as nursery:
    run = nursery.start(["--data", ...], log)     # train.py's arguments; .kill(), .wait()
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SERVE = """
import json, os, resource, sys
os.environ["OMP_NUM_THREADS"] = "1"
from saccade import train
import pathlib, tempfile, torch
from saccade.runs.pictures import plot_curves
torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:  # matplotlib and its fonts
    line = {"epoch": 0.1, "loss": 1.0, "lr": 1.0, "images_per_second": 1.0, "data_wait": 0.0}
    plot_curves([{"step": 1, **line}, {"step": 2, **line}], pathlib.Path(folder) / "c.png", {})
print("ready", flush=True)
for line in sys.stdin:
    argv, log, environment = json.loads(line)
    if (child := os.fork()) == 0:
        os.environ.update(environment)
        sys.argv = ["train.py", *argv]
        if more := environment.get("MEMORY"):  # bytes of its own data beside what it has now
            has = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_DATA, (has + int(more), resource.RLIM_INFINITY))
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0), os.dup2(out, 1), os.dup2(out, 2)
        code = 99
        try:
            code = train.main(argv)
            sys.stdout.flush(), sys.stderr.flush()
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(code)
    print(child, flush=True)
"""


class Nursery:
    """Its processes are zombies until it ends: nothing waits for them, and their exit codes can be read."""

    def __enter__(self) -> Nursery:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def start(self, argv: list[str], log: Path, **environment: str) -> Run:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([argv, str(log), environment]) + "\n")
        self._process.stdin.flush()
        return Run(int(self._process.stdout.readline()))


class Run:
    def __init__(self, process: int) -> None:
        self.process = process

    @property
    def code(self) -> int | None:
        """Its exit code, -9 where it was killed; None while it runs."""
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return os.waitstatus_to_exitcode(int(fields[-1])) if fields[0] == "Z" else None

    def wait(self, seconds: float = 120) -> int:
        deadline = time.monotonic() + seconds
        while (code := self.code) is None:
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(0.005)
        return code

    def kill(self) -> None:
        """SIGKILL, after which its workers are gone too."""
        children = [
            int(child) for file in Path(f"/proc/{self.process}/task").glob("*/children") for child in _read(file)
        ]
        os.kill(self.process, signal.SIGKILL)
        self.wait(10)
        until(lambda: not any(Path(f"/proc/{child}/cmdline").exists() and alive(child) for child in children), 10)


def meeting(processes: int) -> dict[str, str]:
    """The environment in which processes of one machine each find each other, but for their RANK."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes), "LOCAL_RANK": "0"}


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool], seconds: float, every: float = 0.002) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def _read(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
