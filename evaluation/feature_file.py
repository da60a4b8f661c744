"""Features on disk: mapped, extracted once for a backbone and its images by any number of processes, and gone on with
after a stop."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade.base.caches import cache_folder
from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.base.mapped import say_so, unwritable
from saccade.evaluation.kept import EVERY, OLD
from saccade.runs.ranks import ONE, SHARED_CACHE, Ranks

Batch = tuple[Tensor, Tensor]  # features (n, D), labels (n,)
Rows = tuple[int, int]  # from, up to
SEEN = 10.0  # seconds after which a folder that another machine has made is seen, if ever


class FeatureFile:
    """A folder, named by a key of the backbone, the images and how they are shown: `features.npy` (N, D),
    `labels.npy` (N,) int64, and for each stretch of them that is there a `done-FIRST.json`, with its end and the
    unreadable images.

    room: the folder it lies in, the cache's by default; way_out: for the sentence when it cannot be written; ranks: who
    write to it together, each its own rows. Everything but `whole` is called by all of them alike.
    """

    def __init__(
        self,
        key: str,
        images: int,
        room: Path | None = None,
        dtype: Any = np.float16,
        way_out: str = "set SACCADE_CACHE to another folder, or leave out --keep-features",
        ranks: Ranks = ONE,
    ) -> None:
        self._folder, self._images = (room or cache_folder() / "features") / key, images
        self._dtype, self._way_out, self._ranks = np.dtype(dtype), way_out, ranks
        self._shared = "give --out in a folder that all machines share" if room else SHARED_CACHE
        ranks.same("what tells these images and this backbone from others", key, "give the same files to all machines")

    def whole(self) -> Batch | None:
        """All features and labels, mapped; None where some are missing."""
        return self._mapped() if not self._left() else None

    @property
    def bad(self) -> dict[str, str]:
        """The images that could not be read, and why."""
        return {name: why for *_, bad in self._stretches() for name, why in bad.items()}

    def left(self) -> list[Rows]:
        """The stretches of images whose features are missing, in order; every process is told the same."""
        return [(a, b) for a, b in json.loads(self._ranks.of_main("kept features", json.dumps(self._left())))]

    def fill(
        self,
        stretches: Iterable[Rows],
        made: Callable[[Rows], AbstractContextManager[Iterable[Batch]]],
        unreadable: Mapping[str, str],
    ) -> Batch:
        """Write the features of this process's stretches of those that are left, batch by batch as `made`, and wait for
        the other processes; `unreadable` is looked at after each batch.

        Raises UserError where the folder cannot be written, or a feature is beyond float16.
        """
        try:
            self._ranks.on_main("making room for the features", self._begin)
            self._seen()
            for rows in stretches:
                with made(rows) as batches:
                    self._write(rows[0], batches, unreadable)
        except OSError as error:
            raise UserError(
                f"{self._folder}: the features cannot be kept there ({error.strerror}); {self._way_out}."
            ) from error
        self._ranks.all_here("the features of all")
        whole = self.whole()
        assert whole is not None, "every image gives a feature"
        return whole

    def remove(self) -> None:
        """Once every process has what it needs."""
        self._ranks.all_here("the features of all")
        self._ranks.on_main("removing features", lambda: shutil.rmtree(self._folder, ignore_errors=True))

    def _left(self) -> list[Rows]:
        done = [(first, end) for first, end, _ in self._stretches()] if self._mapped() is not None else []
        edges = [0, *(edge for rows in done for edge in rows), self._images]
        return [rows for rows in pairwise(edges) if rows[0] < rows[1] and rows not in done]

    def _begin(self) -> None:
        forget_old(self._folder.parent)
        if (self._folder / "features.npy").exists() and self._mapped() is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)

    def _seen(self) -> None:
        deadline = time.monotonic() + SEEN
        while not self._folder.is_dir():
            if time.monotonic() > deadline:
                raise UserError(
                    f"{self._folder}, where process 0 keeps features, is not there on {socket.gethostname()}; "
                    f"{self._shared}."
                )
            time.sleep(0.1)

    def _write(self, first: int, batches: Iterable[Batch], unreadable: Mapping[str, str]) -> None:
        end, last, columns = first, time.monotonic(), []
        try:
            for found, label in batches:
                columns = columns or self._columns(found.shape[1])
                with np.errstate(over="ignore"):
                    rows = found.cpu().numpy().astype(self._dtype)
                if torch.isfinite(found).all() and not np.isfinite(rows).all():
                    raise UserError(
                        "a feature is beyond what float16 holds (65,504); leave out --keep-features, or --dense."
                    )
                for column, part in zip(columns, (rows, label.cpu().numpy()), strict=True):
                    column.put(end, part)
                end += len(rows)
                if time.monotonic() - last > EVERY:
                    self._tell(columns, first, end, unreadable)
                    last = time.monotonic()
        finally:  # a stop costs no batch that was made
            if columns:
                self._tell(columns, first, end, unreadable)

    def _columns(self, width: int) -> list[_Column]:
        return [
            _Column(self._folder / "features.npy", self._dtype, (self._images, width)),
            _Column(self._folder / "labels.npy", np.dtype(np.int64), (self._images,)),
        ]

    def _tell(self, columns: Iterable[_Column], first: int, end: int, bad: Mapping[str, str]) -> None:
        for column in columns:
            column.keep()
        text = json.dumps({"end": end, "bad": dict(bad)})
        write_atomically(self._folder / f"done-{first}.json", lambda file: file.write(text.encode()))

    def _mapped(self) -> Batch | None:
        """What is there, of the right form; of the features nothing is in memory until it is read."""
        try:
            features, labels = (np.load(self._folder / name, mmap_mode="r") for name in ("features.npy", "labels.npy"))
        except (OSError, ValueError, EOFError):
            return None
        if features.dtype != self._dtype or features.ndim != 2 or not len(features) == len(labels) == self._images:
            return None
        say_so()
        return unwritable(features), torch.from_numpy(np.array(labels))

    def _stretches(self) -> list[tuple[int, int, dict[str, str]]]:
        """What is there: from, up to, and which images could not be read; in order, and none over another."""
        found, end = [], 0
        for first, told in sorted(self._told(), key=lambda record: record[0]):
            if end <= first < told[0] <= self._images:
                found.append((first, *told))
                end = told[0]
        return found

    def _told(self) -> Iterator[tuple[int, tuple[int, dict[str, str]]]]:
        for path in self._folder.glob("done-*.json"):
            try:
                first, told = int(path.stem[5:]), json.loads(path.read_text())
                end, bad = told["end"], told["bad"]
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
            if first >= 0 and type(end) is int and isinstance(bad, dict):
                yield first, (end, bad)


class _Column:
    """A .npy file that several processes write to, each its own rows; all of its room is on the disk from the start.

    Each makes it, where it is not there, of the same bytes. No map: of a page that two machines write to, one would
    write back the other's rows too.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start, self._row = self._file.tell(), dtype.itemsize * int(np.prod(shape[1:]))
        self._file.flush()
        os.posix_fallocate(self._file.fileno(), 0, self._start + shape[0] * self._row)

    def put(self, first: int, rows: np.ndarray) -> None:
        self._file.seek(self._start + first * self._row)
        self._file.write(rows.tobytes())

    def keep(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


def forget_old(folder: Path) -> None:
    """Remove features that are a month old."""
    for kept in folder.iterdir() if folder.is_dir() else ():
        told = [path.stat().st_mtime for path in kept.glob("done*.json")]
        if told and time.time() - max(told) > OLD:
            shutil.rmtree(kept, ignore_errors=True)
