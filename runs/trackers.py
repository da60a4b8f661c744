"""TensorBoard, Weights & Biases and CSV through Accelerate's trackers; off unless asked for."""

from __future__ import annotations

import csv
from itertools import compress
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, LoggerType, on_main_process

from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.runs.config import Config


class CSVTracker(GeneralTracker):
    """metrics.csv in the run folder: long form, a line per (step, name, value), so new names never move columns."""

    name = "csv"
    requires_logging_directory = True

    @on_main_process
    def __init__(self, folder: str, step: int = 0) -> None:
        """step: the one that a resumed run goes on from; what a killed one has logged after it is dropped."""
        super().__init__()
        _rewind(Path(folder) / "metrics.csv", step)
        self._file = open(f"{folder}/metrics.csv", "a", newline="")  # noqa: SIM115 - open for the whole run
        self._writer = csv.writer(self._file)
        if self._file.tell() == 0:
            self._writer.writerow(("step", "name", "value"))

    @property
    def tracker(self) -> Any:
        return self._file

    def store_init_configuration(self, values: dict) -> None:
        """The configuration is config.json beside the file."""

    @on_main_process
    def log(self, values: dict, step: int | None = None, **_: Any) -> None:
        self._writer.writerows((step, name, value) for name, value in values.items() if name != "step")
        self._file.flush()

    @on_main_process
    def finish(self) -> None:
        self._file.close()


def _rewind(file: Path, step: int) -> None:
    """Keep the heading and the whole lines up to `step`."""
    if not file.exists():
        return
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    numbers = [line.partition(",")[0] for line in lines]
    kept = [
        n == "step" or (n.isdecimal() and int(n) <= step and line[-1:] == "\n")
        for n, line in zip(numbers, lines, strict=True)
    ]
    write_atomically(file, lambda f: f.write("".join(compress(lines, kept)).encode()))


def start_trackers(accelerator: Accelerator, config: Config, step: int) -> None:
    """Start what --track asks for, at `step`; a tracker whose package is missing is a UserError."""
    if not config.track:
        return
    from accelerate.tracking import filter_trackers

    wanted: list[str | LoggerType | GeneralTracker] = [
        CSVTracker(str(config.out), step) if name == "csv" else name for name in config.track
    ]
    accelerator.project_configuration.set_directories(str(config.out))
    try:
        accelerator.log_with = filter_trackers(wanted, str(config.out))
        options = {"tensorboard": {"purge_step": step + 1}} if step else {}  # it hides what was logged from there on
        accelerator.init_trackers("saccade", init_kwargs=options)
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"--track {','.join(config.track)} cannot be started ({error}).") from error
    missing = set(config.track) - {t.name for t in accelerator.trackers}
    if missing and accelerator.is_main_process:
        raise UserError(
            f"--track {', '.join(sorted(missing))}: the package is not installed; pip install {' '.join(missing)}."
        )
