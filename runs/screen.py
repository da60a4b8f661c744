"""Where a run shows how far it is: a bar on a terminal, plain lines in a job's log, or its records as JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import IO, Any

from tqdm import tqdm

from saccade.base.text import json_line

KINDS = ("auto", "bar", "lines", "json")
LINE = 10.0  # seconds between two plain lines, at least
_records: IO[str] | None = None


@contextmanager
def records_apart(kind: str) -> Iterator[None]:
    """With json the records alone are on standard output; all else that is said goes to standard error."""
    global _records
    if kind != "json":
        yield
        return
    _records = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _records = None


class Screen:
    """kind: one of KINDS; auto is a bar where standard error is a terminal, else lines. shown: not on other ranks."""

    def __init__(self, kind: str, total: int, done: int, shown: bool) -> None:
        if kind == "auto":
            kind = "bar" if sys.stderr.isatty() else "lines"
        self._kind, self._shown, self._total = kind, shown, total
        self._first, self._started, self._told = done, time.monotonic(), -LINE
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            disable=not shown or kind != "bar",
            mininterval=0.5,
        )

    def step(self) -> None:
        self._bar.update(1)

    def progress(self, step: int, words: dict[str, str]) -> None:
        """What stands beside the bar, or in a line."""
        self._bar.set_postfix(words)
        now = time.monotonic()
        if self._kind == "lines" and self._shown and (now - self._told >= LINE or step == self._total):
            self._told = now
            left = (now - self._started) / max(1, step - self._first) * (self._total - step)
            told = ", ".join(f"{name} {value}" for name, value in words.items())
            line = f"step {step} of {self._total} ({step / self._total:.0%}): {told}, {_clock(left)} left"
            print(time.strftime("%Y-%m-%d %H:%M:%S"), line, file=sys.stderr, flush=True)

    def record(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl, where those are asked for; what is not finite is null in JSON."""
        if self._kind == "json" and self._shown:
            print(json_line(record), file=_records or sys.stdout, flush=True)

    def message(self, text: str, file: IO[str] | None = None) -> None:
        """Above the bar, once."""
        if self._shown:
            tqdm.write(text, file=file or sys.stdout)

    def close(self) -> None:
        self._bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
