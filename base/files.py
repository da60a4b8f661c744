"""The one way a file is written: whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from saccade.base.errors import UserError


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call write(file) on a temporary file beside `path`, then move it there: a reader sees the old file or the new.

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
            isinstance(error, RuntimeError) and ("writ" in str(error) or "unexpected pos" in str(error))
        ):
            full = shutil.disk_usage(path.parent).free < 1 << 22
            reason = getattr(error, "strerror", None) or ("the disk is full" if full else error)
            raise UserError(
                f"{path} cannot be written ({reason}); free some space or choose another folder."
            ) from error
        raise
