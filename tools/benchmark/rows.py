"""A measurement as a row: one flat record that says what was measured, how fast it was, and on which machine."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.base.machine import git_commit, hardware, versions

KEY = ("kind", "executor", "recipe", "data", "device", "backbone", "batch_size", "image_size", "precision", "workers")


@dataclass
class Row:
    """kind: loader, model, train, baseline or peer. Rates are medians over rounds; low, high: the slowest and fastest
    round's."""

    kind: str
    executor: str
    recipe: str
    data: str
    device: str
    image_size: int
    batch_size: int
    views_per_image: int
    workers: int | None = None
    backbone: str | None = None
    precision: str | None = None
    images_per_second: float = 0.0
    views_per_second: float = 0.0
    views_per_second_low: float = 0.0
    views_per_second_high: float = 0.0
    rounds: int = 0
    times_baseline: float | None = None  # median over rounds of this rate / the PIL DataLoader's in the same round
    times_best_other: float | None = None  # the same, by the fastest loader of that round that is not ours
    share_of_model: float | None = None  # of an end-to-end row: its rate / the model ceiling's in the same round
    cpu_percent: float | None = None  # of one core, this process and its workers
    memory_mib: float | None = None  # this process and its workers, shared pages counted once
    vram_mib: float | None = None  # the most that torch held
    more: dict[str, Any] = field(default_factory=dict)


def environment() -> dict[str, Any]:
    """What every row carries: date, commit, versions, hardware."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": git_commit(),
        "versions": versions(),
        "hardware": hardware(),
    }


def as_records(rows: list[Row], machine: dict[str, Any]) -> list[dict[str, Any]]:
    records = []
    for row in rows:
        record = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(row).items() if k != "more"}
        records.append({**record, **row.more, **machine})
    return records


def write_rows(path: Path, rows: list[Row], machine: dict[str, Any]) -> None:
    """The whole list, atomically: a reader never sees half of it."""
    text = json.dumps(as_records(rows, machine), indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda f: f.write(text.encode()))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The records of a file that `write_rows` wrote."""
    try:
        records = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as a list of measurements ({error}); give a file made with --json."
        ) from error
    if not isinstance(records, list) or not all(isinstance(r, dict) and "kind" in r for r in records):
        raise UserError(f"{path}: holds no list of measurements; give a file made with --json.")
    return records


COLUMNS = (
    "what",
    "executor",
    "recipe",
    "batch",
    "images/s",
    "views/s",
    "(low - high)",
    "x PIL",
    "x best other",
    "of model",
    "CPU %",
    "MiB",
    "VRAM",
)


def table(rows: list[Row]) -> str:
    """Aligned text, one line per row."""
    lines: list[tuple[str, ...]] = [COLUMNS]
    for r in rows:
        lines.append(
            (
                r.kind,
                r.executor,
                r.recipe,
                str(r.batch_size),
                f"{r.images_per_second:,.0f}" if r.rounds else "-",
                f"{r.views_per_second:,.0f}" if r.rounds else "-",
                f"({r.views_per_second_low:,.0f} - {r.views_per_second_high:,.0f})" if r.rounds else "-",
                "" if r.times_baseline is None else f"{r.times_baseline:.2f}",
                "" if r.times_best_other is None else f"{r.times_best_other:.2f}",
                "" if r.share_of_model is None else f"{r.share_of_model:.0%}",
                _whole(r.cpu_percent),
                _whole(r.memory_mib),
                _whole(r.vram_mib),
            )
        )
    return columns(lines, left=3)


def notes(rows: list[Row]) -> list[str]:
    """What is to be said of contenders that are not ours, or that failed: version, what they leave out, why."""
    said = {}
    for row in rows:
        name = f"{row.executor} {row.more['version']}" if row.more.get("version") else row.executor
        if "error" in row.more:
            said[row.executor, row.recipe] = f"{name}, {row.recipe}: {row.more['error']}"
        elif "leaves_out" in row.more:
            said[row.executor, ""] = f"{name} leaves out {row.more['leaves_out']}"
    return list(said.values())


def counted(rows: list[Row]) -> str:
    """E.g. "5 rounds"."""
    found = sorted({row.rounds for row in rows if row.rounds} or {0})
    return f"{' to '.join(map(str, dict.fromkeys((found[0], found[-1]))))} round{'s' * (found[-1] != 1)}"


def columns(lines: list[tuple[str, ...]], left: int) -> str:
    """The first `left` columns aligned to the left, the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
