"""The regression gate: two files of measurements, matched row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saccade.base.errors import UserError
from saccade.tools.benchmark.rows import KEY, columns, read_rows


def compare(old_file: Path, new_file: Path, tolerance: float, force: bool) -> int:
    """Print a table; 1 if any row is slower by more than `tolerance` (a share), else 0.

    Other hardware, or files without a common row, are UserErrors: neither says anything about the code.
    """
    if not 0 <= tolerance < 1:
        raise UserError(f"--tolerance {tolerance} is no share; give a number from 0 up to, not including, 1.")
    old, new = _by_key(old_file), _by_key(new_file)
    common = [key for key in old if key in new]
    if not common:
        raise UserError(f"{old_file} and {new_file} have no row in common (same {', '.join(KEY)}).")
    if not force:
        _check_hardware(old_file, old[common[0]], new_file, new[common[0]])
    lines, slower = [("what", "executor", "recipe", "batch", "old views/s", "new views/s", "change", "")], 0
    for key in common:
        before, after = old[key]["views_per_second"], new[key]["views_per_second"]
        is_slower = after < before * (1 - tolerance)
        slower += is_slower
        lines.append(
            (
                key[0],
                str(key[1]),
                str(key[2]),
                str(old[key]["batch_size"]),
                f"{before:,.0f}",
                f"{after:,.0f}",
                f"{after / before - 1:+.1%}",
                "SLOWER" if is_slower else "",
            )
        )
    print(columns(lines, left=3))
    print(
        f"{slower} of {len(common)} rows slower by more than {tolerance:.0%}; "
        f"{len(old) - len(common)} rows only in {old_file.name}, {len(new) - len(common)} only in {new_file.name}"
    )
    return 1 if slower else 0


def _by_key(file: Path) -> dict[tuple, dict[str, Any]]:
    rows = {tuple(str(r.get(name)) for name in KEY): r for r in read_rows(file) if r.get("views_per_second")}
    if not rows:
        raise UserError(f"{file}: holds no row with a rate; give a file made with --json.")
    return rows


def _check_hardware(old_file: Path, old: dict[str, Any], new_file: Path, new: dict[str, Any]) -> None:
    mine, theirs = old.get("hardware") or {}, new.get("hardware") or {}
    differing = [name for name in ("cpu", "cpus", "gpus") if mine.get(name) != theirs.get(name)]
    if differing:
        said = "; ".join(f"{name} {mine.get(name)} and {theirs.get(name)}" for name in differing)
        raise UserError(
            f"{old_file} and {new_file} were measured on different machines ({said}); measure both on one, or "
            "give --force."
        )
