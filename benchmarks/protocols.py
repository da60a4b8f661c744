"""python -m benchmarks.protocols outputs/RUN --json FILE: every protocol at miniature on one run, as docs/protocols.md
has it. Called again it measures what the file lacks."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from saccade import eval as program
from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.base.machine import git_commit, hardware, versions
from saccade.evaluation.registry import protocols

EPOCHS = {  # instead of the many that it takes
    "attentive": 20,
    "finetune": 2,
    "finetune-1pct": 20,
    "finetune-10pct": 10,
    "resa-1pct": 20,
    "resa-10pct": 5,
    "stec-stl10": 1,
}
FEW = 5  # where every epoch passes through the backbone
FIRST = ("knn", "linear", "prototypes", "stec-online", "attentive", "finetune-1pct", "finetune-10pct", "finetune")


def main(argv: list[str] | None = None) -> int:
    """Measures a finished run by each protocol, few epochs where every one passes through the backbone; prints the
    table."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.protocols", description=main.__doc__)
    p.add_argument("run", help="a run folder, such as that of the README's first command")
    p.add_argument("--json", required=True, help="the record, kept after each protocol")
    p.add_argument("--only", help="comma-separated names (default: all)")
    flags = p.parse_args(argv)
    path, known = Path(flags.json), protocols()
    names = flags.only.split(",") if flags.only else [*FIRST, *(name for name in known if name not in FIRST)]
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    for name in names:
        if name not in record["rows"]:
            record["rows"][name] = measured(flags.run, name)
            record |= {"hardware": hardware(), "versions": versions(), "commit": git_commit()}
            write_atomically(path, partial(_dump, {**record, "date": time.strftime("%Y-%m-%d")}))
            print(line(name, record["rows"][name]), flush=True)
    print("\n| protocol | command | top-1 % (95 %) | top-5 % | s |\n|---|---|---|---|---|")
    print("\n".join(line(name, row) for name, row in record["rows"].items()))
    return 0


def arguments(name: str) -> list[str]:
    """What follows the run's name."""
    measures = protocols()[name].measures
    passes = any(getattr(measure, "crop", None) is not None for measure in measures)
    epochs = EPOCHS.get(name, FEW if passes else None)
    return ["--protocol", name, *(["--epochs", str(epochs)] if epochs else [])]


def measured(run: str, name: str) -> dict[str, Any]:
    started, out, err = time.perf_counter(), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program.main([run, *arguments(name), "--no-baselines"])
    if code:
        raise UserError(f"--protocol {name}: {err.getvalue().strip().splitlines()[-1]}")
    found = json.loads(out.getvalue().splitlines()[-1])
    told = ("top1", "top5", "interval", "n_train", "n_test", "deviations", "notes")
    return {
        "command": f"saccade eval {Path(run).name} {' '.join(arguments(name))}",
        "seconds": round(time.perf_counter() - started, 1),
        **{key: found[key] for key in told},
    }


def line(name: str, row: dict[str, Any]) -> str:
    low, high = row["interval"]
    shown = f"{row['top1']:.1f} ({low:.1f} to {high:.1f})"
    options = row["command"].partition("--protocol ")[2]
    return f"| `{name}` | `--protocol {options}` | {shown} | {row['top5']:.1f} | {row['seconds']:.0f} |"


def _dump(record: dict[str, Any], file: BinaryIO) -> None:
    file.write((json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    run_command("benchmarks.protocols", main)
