"""The one way a file is written: whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from saccade.base.errors import UserError


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when all of it is on the disk: a reader sees the old one or the new. Raises OSError."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, write: Callable[[BinaryIO], Any], size: int = 0) -> None:
    """Call write(file) on a `whole_file`; a full disk or a missing right becomes a UserError. size: bytes, if known."""
    try:
        with whole_file(path) as file:
            write(file)
    except OSError as error:
        raise Unwritable(path, error, size) from error


class Unwritable(UserError):
    """A file that could not be written, and why; for a full disk what the file takes and what there is."""

    def __init__(self, path: Path, error: OSError, size: int = 0) -> None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = error.strerror or str(error)
        if full and size and path.parent.exists():  # what was written of it is removed by now
            reason += f": it takes {megabytes(size)}, {megabytes(shutil.disk_usage(path.parent).free)} are free"
        super().__init__(f"{path} cannot be written ({reason}); free some space or choose another folder.")
        self.passes = full or error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # may be better in a while


def megabytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def lock(file: IO, patience: float = 1.0) -> None:
    """Hold `file` for this process alone: what it forks lets go of it, so a killed holder's orphans hold nothing.

    A holder that is about to end is waited for, `patience` seconds; then BlockingIOError. Without locks here, a warning
    and no lock.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _held.add(file)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            print(
                f"warning: the file system of {file.name} has no locks ({error.strerror}), so a second process that "
                "writes there would not be noticed",
                file=sys.stderr,
                flush=True,
            )
            return


_held: weakref.WeakSet[IO] = weakref.WeakSet()  # a lock is the open file's, which a fork shares


def _let_go() -> None:
    for file in list(_held):
        file.close()


os.register_at_fork(after_in_child=_let_go)
