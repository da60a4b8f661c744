"""Checkpoints: atomic, checked when read, the last few kept, holding all that a run needs to go on as if nothing had
happened."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.base.errors import UserError
from saccade.base.files import free_space, megabytes, write_atomically
from saccade.runs.tensor_file import Damaged, read_tree, size_of, write_tree

ENDING, OLD = ".safetensors", ".pt"  # OLD: torch.save's, of version 0.1
Foreign = Callable[[dict[str, Any]], str | None]  # why a state is of another run
PATTERN = re.compile(r"step-(\d{8,})\.safetensors")


def _own(state: dict[str, Any]) -> None:
    return None


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write checkpoints/step-NNNNNNNN.safetensors and remove all but the newest `keep` up to it."""
    path = folder / "checkpoints" / f"step-{step:08d}{ENDING}"
    write_atomically(path, lambda f: write_tree(f, state), size_of(state))
    for old in [p for p in checkpoints(folder) if p.name <= path.name][:-keep]:
        old.unlink(missing_ok=True)
    return path


def check_space(folder: Path, size: int, keep: int) -> None:
    """Raise UserError where the disk has no room for the checkpoints of `size` bytes that are kept and one more."""
    there = sum(path.stat().st_size for path in checkpoints(folder))
    needed, free = (keep + 1) * size - there, free_space(folder)
    if free is not None and needed > free:
        raise UserError(
            f"--out {folder}: {keep} checkpoints and the one that is being written take {megabytes((keep + 1) * size)}"
            f"{f', {megabytes(there)} of it are there' if there else ''}, but {megabytes(free)} are free; free some "
            f"space, choose another folder{', or give --keep 1' if keep > 1 else ''}."
        )


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(p for p in (folder / "checkpoints").glob(f"step-*{ENDING}") if PATTERN.fullmatch(p.name))


def newest_whole(folder: Path, say: Callable[[str], object]) -> Path:
    """The newest checkpoint that can be read; UserError if there is none. Those left out are said."""
    step = load_checkpoint(folder, say=say)["step"]
    return folder / "checkpoints" / f"step-{step:08d}{ENDING}"


def holds_run(folder: Path) -> bool:
    """Whether a run has left checkpoints here, of this version or an older one."""
    return any(folder.glob("checkpoints/step-*.*"))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """One checkpoint, on the CPU. UserError where it is damaged or something else."""
    state, reason = _read(path)
    if reason:
        raise UserError(f"{path} cannot be used: {reason}.")
    return state


@dataclass
class Found:
    """A checkpoint that was read, and the newer ones that cannot be used, with the reasons. It is read once, and held
    until it is `taken`."""

    folder: Path
    path: Path
    state: dict[str, Any]
    left_out: list[tuple[Path, str]]

    def taken(self, foreign: Foreign, total_steps: int, say: Callable[[str], object]) -> dict[str, Any]:
        """Its state, or that of the newest one before it that is not `foreign`; what is left out is said."""
        while reason := foreign(self.state):
            older = newest(self.folder, foreign, [*self.left_out, (self.path, reason)])
            self.path, self.state, self.left_out = older.path, older.state, older.left_out
        state, self.state = self.state, {}
        for bad, why in self.left_out:
            done, most = state["step"], _step(bad)
            again = f"steps {done + 1} to {most}" if done < most <= total_steps else f"steps after {done}"
            again = f": the {again} are done again" if total_steps else ""
            say(f"warning: {bad} is left out: {why}; going on from {self.path.name}{again}")
        return state


def newest(folder: Path, foreign: Foreign = _own, left_out: Sequence[tuple[Path, str]] = ()) -> Found:
    """The newest checkpoint that is whole and not `foreign` (why it is of another run), but those `left_out`."""
    reasons = list(left_out)
    for path in reversed(checkpoints(folder)):
        if path in dict(reasons):
            continue
        state, reason = _read(path)
        if reason := reason or foreign(state):
            reasons.append((path, reason))
            continue
        return Found(folder, path, state, reasons)
    if reasons:
        listed = "; ".join(f"{path.name}: {why}" for path, why in reasons)
        raise UserError(f"{folder}: no checkpoint can be used ({listed}); start the run anew.")
    if any(folder.glob(f"checkpoints/step-*{OLD}")):
        raise UserError(
            f"{folder}: its checkpoints (step-*{OLD}) were written by Saccade 0.1, without checksums, and are "
            "not read any more; finish the run with that version, or start it anew."
        )
    raise UserError(f"{folder}: there is no checkpoint in {folder / 'checkpoints'}; start the run anew.")


def load_checkpoint(folder: Path, say: Callable[[str], object] = print) -> dict[str, Any]:
    """The state of the newest checkpoint that is whole. Those left out are said."""
    return newest(folder).taken(_own, 0, say)


def _read(path: Path) -> tuple[dict[str, Any], str | None]:
    """The state and None, or {} and why it cannot be used."""
    if path.suffix == OLD:
        return {}, "it was written by Saccade 0.1, without a checksum, and is not read any more"
    try:
        state = read_tree(path)
    except OSError as error:
        return {}, f"it cannot be read ({error.strerror})"
    except Damaged as error:
        return {}, str(error)
    whole = isinstance(state, dict) and isinstance(state.get("step"), int) and isinstance(state.get("learner"), dict)
    return (state, None) if whole else ({}, "it is no checkpoint of a run")


def _step(path: Path) -> int:
    found = PATTERN.fullmatch(path.name)
    return int(found[1]) if found else 0
