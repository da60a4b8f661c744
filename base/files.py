"""The one way a file is written: whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO

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


def lock(file: IO) -> None:
    """Hold `file` for this process. BlockingIOError where another has it; without locks here, a warning and no lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        print(
            f"warning: the file system of {file.name} has no locks ({error.strerror}), so a second process that writes "
            "there would not be noticed",
            file=sys.stderr,
            flush=True,
        )
