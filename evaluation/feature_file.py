"""Features on disk: mapped, extracted once for a backbone and its images, and gone on with after a stop."""

from __future__ import annotations

import json
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
        told = self._told()
        self.done: int = told.get("images", 0) if self._mapped() else 0
        self.bad: dict[str, str] = told.get("bad", {})

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
                    raise UserError("a feature is beyond what float16 holds (65,504); leave out --keep-features.")
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
        mode: Any = "r+" if self.done else "w+"
        make = np.lib.format.open_memmap
        return (
            make(self._folder / "features.npy", mode, self._dtype, (self._images, width)),
            make(self._folder / "labels.npy", mode, np.int64, (self._images,)),
        )

    def _mapped(self) -> Batch | None:
        """What is there, of the right form."""
        try:
            features, labels = (np.load(self._folder / name, mmap_mode="c") for name in ("features.npy", "labels.npy"))
        except (OSError, ValueError, EOFError):
            return None
        if features.dtype != self._dtype or features.ndim != 2 or not len(features) == len(labels) == self._images:
            return None
        return torch.from_numpy(features), torch.from_numpy(np.array(labels))

    def _told(self) -> dict[str, Any]:
        try:
            return json.loads((self._folder / "done.json").read_text())
        except (OSError, ValueError):
            return {}

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
