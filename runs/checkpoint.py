"""Checkpoints: atomic, the last few kept, holding all that a run needs to go on as if nothing had happened."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from saccade.base.errors import UserError
from saccade.base.files import write_atomically


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write checkpoints/step-NNNNNNNN.pt and remove all but the newest `keep`."""
    path = folder / "checkpoints" / f"step-{step:08d}.pt"
    write_atomically(path, lambda f: torch.save(state, f))
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted((folder / "checkpoints").glob("step-*.pt"))


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """The newest readable checkpoint, on the CPU. Only tensors and plain values are unpickled (weights_only)."""
    found = checkpoints(folder)
    if not found:
        raise UserError(f"--resume {folder}: there is no checkpoint in {folder / 'checkpoints'}; start the run anew.")
    reasons = []
    for path in reversed(found):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            reasons.append(f"{path.name}: {type(error).__name__}")  # torch's text advises to unpickle it all the same
    raise UserError(f"--resume {folder}: no checkpoint can be read ({'; '.join(reasons)}).")
