"""The one way a file is written: whole or not at all."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import os
import re
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from saccade.base.errors import UserError

TEMPORARY = re.compile(r"\.[^/]+\.[a-z]{2,}\.[a-z0-9_]{8}")  # as mkstemp calls a file for `whole_file`
FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(OSError):
    """As measured while what could be written, `written` bytes, still lay there: `free` are left."""

    def __init__(self, error: OSError, written: int, free: int) -> None:
        super().__init__(error.errno, error.strerror or "No space left on device")
        self.written, self.free = written, free


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when all of it is on the disk: a reader sees the old one or the new. Raises OSError,
    of a full disk DiskFull."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        full = isinstance(error, OSError) and error.errno in FULL and _measured(error, Path(temporary))
        Path(temporary).unlink(missing_ok=True)
        if full:
            raise full from error
        raise


def _measured(error: OSError, partial: Path) -> DiskFull | None:
    try:
        return DiskFull(error, partial.stat().st_blocks * 512, shutil.disk_usage(partial.parent).free)
    except OSError:
        return None


def swept(folder: Path, older: float = 0.0) -> dict[str, int]:
    """Remove what killed writers of `whole_file` left in `folder`, `older` seconds ago or more; name -> bytes."""
    found = {}
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                stat = entry.stat(follow_symlinks=False)
                left = TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
                if left and not stat.st_mode & 0o077 and time.time() - stat.st_mtime >= older:  # mkstemp's mode
                    os.unlink(entry.path)
                    found[entry.name] = stat.st_size
    return found


def write_atomically(path: Path, write: Callable[[BinaryIO], Any], size: int = 0) -> None:
    """Call write(file) on a `whole_file`; a full disk or a missing right becomes a UserError. size: bytes, if known."""
    try:
        with whole_file(path) as file:
            write(file)
    except OSError as error:
        raise Unwritable(path, error, size) from error


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """The rows as a CSV file in UTF-8; UserError as of write_atomically."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


class Unwritable(UserError):
    """A file that could not be written, and why; for a full disk what the file takes and what there is."""

    def __init__(self, path: Path, error: OSError, size: int = 0) -> None:
        reason = error.strerror or str(error)
        if isinstance(error, DiskFull) and size:
            had = error.written + error.free
            quota = ", by the disk; a quota allows less" if had >= size else ""
            reason += f": it takes {megabytes(size)}, and there was room for {megabytes(had)}{quota}"
        super().__init__(f"{path} cannot be written ({reason}); free some space or choose another folder.")


def free_space(folder: Path) -> int | None:
    """Bytes that may be written below `folder`, which need not exist yet; None where that cannot be told."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        space = shutil.disk_usage(place)
        return space.free if space.total else None  # what is no disk has none
    except OSError:
        return None


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
