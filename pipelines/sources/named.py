"""Data sets by name: the embedded textures, and torchvision's CIFAR and STL-10, whose files it checks by their MD5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from saccade.base.errors import UserError
from saccade.pipelines.embedded import CLASSES, textures
from saccade.pipelines.sources.arrays import ArraySource

NAMES = ("textures", "cifar10", "cifar100", "stl10")
FOLDERS = {"cifar-10-batches-py": "cifar10", "cifar-100-python": "cifar100", "stl10_binary": "stl10"}


def named_splits(name: str, data_dir: str) -> dict[str, Callable[[], ArraySource]]:
    """The splits of a named set, read when called. STL-10's `train` is its 5,000 labelled images; `all` adds the
    others."""
    if name == "textures":
        return {split: lambda split=split: ArraySource(name, *textures(split), CLASSES) for split in ("train", "test")}
    splits = {"train": "train", "test": "test"}
    if name == "stl10":
        splits |= {"unlabeled": "unlabeled", "all": "train+unlabeled"}
    return {split: lambda wanted=wanted: _load(name, wanted, data_dir) for split, wanted in splits.items()}


def _load(name: str, split: str, data_dir: str) -> ArraySource:
    from torchvision.datasets import CIFAR10, CIFAR100, STL10

    def load(download: bool) -> Any:
        if name == "stl10":
            return STL10(data_dir, split=split, download=download)
        return (CIFAR10 if name == "cifar10" else CIFAR100)(data_dir, train=split == "train", download=download)

    try:
        dataset = load(download=False)
    except RuntimeError:  # torchvision's word for "not there or damaged"
        try:
            dataset = load(download=True)
        except Exception as error:  # no network, no space, a server's error page
            raise UserError(
                f"{name} is not in {Path(data_dir).resolve()} and could not be downloaded ({error}); put "
                "torchvision's files there with --data-dir, or give --data a folder or an .npz."
            ) from error
    if name != "stl10":
        return ArraySource(name, dataset.data, np.array(dataset.targets), tuple(dataset.classes))
    labels = None if dataset.labels is None or (dataset.labels < 0).all() else dataset.labels
    if split == "train+unlabeled":
        labels = None  # what trains is all of it; the labelled 5,000 go beside it
    called = "stl10 unlabeled" if split == "unlabeled" else name
    return ArraySource(
        called,
        dataset.data.transpose(0, 2, 3, 1),
        labels,
        tuple(dataset.classes) if labels is not None or split == "train+unlabeled" else None,
    )
