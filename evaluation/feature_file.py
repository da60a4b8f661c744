"""Features on disk: mapped, extracted once for a backbone and its images, and gone on with after a stop."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
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

Batch = tuple[Tensor, Tensor]  # features (n, D), labels (n,)


class FeatureFile:
    """A folder, named by a key of the backbone, the images and how they are shown: `features.npy` (N, D),
    `labels.npy` (N,) int64, and `done.json`: how many of them are there, and the unreadable images.

    room: the folder it lies in, the cache's by default; way_out: for the sentence when it cannot be written.
    """

    def __init__(
        self,
        key: str,
        images: int,
        room: Path | None = None,
        dtype: Any = np.float16,
        way_out: str = "set SACCADE_CACHE to another folder, or leave out --keep-features",
    ) -> None:
        self._folder, self._images = (room or cache_folder() / "features") / key, images
        self._dtype, self._way_out = np.dtype(dtype), way_out
        self.done, self.bad = self._told() if self._mapped() else (0, {})

    def whole(self) -> Batch | None:
        """All features and labels, mapped; None where some are missing."""
        return self._mapped() if self.done == self._images else None

    def fill(self, batches: Iterable[Batch], unreadable: Mapping[str, str]) -> Batch:
        """Write the features from number `done` on, batch by batch; `unreadable` is looked at after each.

        Raises UserError where the folder cannot be written, or a feature is beyond float16.
        """
        forget_old(self._folder.parent)
        try:
            return self._fill(batches, unreadable)
        except OSError as error:
            raise UserError(
                f"{self._folder}: the features cannot be kept there ({error.strerror}); {self._way_out}."
            ) from error

    def _fill(self, batches: Iterable[Batch], unreadable: Mapping[str, str]) -> Batch:
        self._folder.mkdir(parents=True, exist_ok=True)
        features = labels = None
        last = time.monotonic()
        try:
            for found, label in batches:
                if features is None or labels is None:
                    features, labels = self._open(found.shape[1])
                rows = slice(self.done, self.done + len(found))
                with np.errstate(over="ignore"):
                    features[rows], labels[rows] = found.cpu().numpy(), label.cpu().numpy()
                if torch.isfinite(found).all() and not np.isfinite(features[rows]).all():
                    raise UserError(
                        "a feature is beyond what float16 holds (65,504); leave out --keep-features, or --dense."
                    )
                self.done += len(found)
                if time.monotonic() - last > EVERY:
                    self._keep(features, labels, unreadable)
                    last = time.monotonic()
        finally:  # a stop costs no batch that was made
            if features is not None and labels is not None:
                self._keep(features, labels, unreadable)
        whole = self.whole()
        assert whole is not None, "every image gives a feature"
        return whole

    def _keep(self, features: np.memmap, labels: np.memmap, unreadable: Mapping[str, str]) -> None:
        features.flush()
        labels.flush()
        self._tell({**self.bad, **unreadable})

    def _open(self, width: int) -> tuple[np.memmap[Any, Any], np.memmap[Any, Any]]:
        say_so()
        return (
            self._array("features.npy", self._dtype, (self._images, width)),
            self._array("labels.npy", np.dtype(np.int64), (self._images,)),
        )

    def _array(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
        """One to write to, all of whose room is on the disk: a map that runs out of it would end the process."""
        mode: Any = "r+" if self.done else "w+"
        made = np.lib.format.open_memmap(self._folder / name, mode, dtype, shape)
        with (self._folder / name).open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, made.offset + made.nbytes)
        return made

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

    def _told(self) -> tuple[int, dict[str, str]]:
        """How many are there, and which images could not be read; (0, {}) for anything else."""
        try:
            told = json.loads((self._folder / "done.json").read_text())
            images, bad = told["images"], told["bad"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return 0, {}
        whole = type(images) is int and 0 <= images <= self._images and isinstance(bad, dict)
        return (images, bad) if whole else (0, {})

    def _tell(self, bad: dict[str, str]) -> None:
        self.bad = bad
        text = json.dumps({"images": self.done, "bad": bad})
        write_atomically(self._folder / "done.json", lambda file: file.write(text.encode()))


def forget_old(folder: Path) -> None:
    """Remove features that are a month old."""
    for kept in folder.iterdir() if folder.is_dir() else ():
        told = kept / "done.json"
        if told.exists() and time.time() - told.stat().st_mtime > OLD:
            shutil.rmtree(kept, ignore_errors=True)
