"""From what a user writes as SRC to a Reader for each split."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saccade.base.errors import UserError
from saccade.pipelines.data import NAMES, load_npz, open_data
from saccade.pipelines.manifest import manifest_of
from saccade.pipelines.sources import ArraySource
from saccade.tools.conversion.read_parquet import ParquetReader
from saccade.tools.conversion.read_wds import WdsReader
from saccade.tools.conversion.readers import ArrayReader, BetonReader, CsvReader, FolderReader, Reader

SPLITS = ("train", "val", "valid", "validation", "test", "unlabeled")
_TORCHVISION = {"cifar-10-batches-py": "cifar10", "cifar-100-python": "cifar100", "stl10_binary": "stl10"}
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class DataSet:
    """kind: the format it came in; splits: name -> Reader."""

    kind: str
    splits: dict[str, Reader]

    @property
    def images(self) -> int:
        return sum(map(len, self.splits.values()))


def open_dataset(src: str, labels: str | None = None, data_dir: str = "data", split: str | None = None) -> DataSet:
    """SRC with all its splits, or `split` only. labels: a CSV for a flat folder; data_dir: where named sets lie."""
    kind, splits = _open(src, labels, data_dir)
    if split:
        if split not in splits:
            raise UserError(f"--split {split}: {src} has {', '.join(splits)}.")
        splits = {split: splits[split]}
    _share_classes(src, splits)
    return DataSet(kind, splits)


def _open(src: str, labels: str | None, data_dir: str) -> tuple[str, dict[str, Reader]]:
    if not src.strip():
        raise UserError("SRC is empty; give a folder, a file or a data set's name.")
    path = Path(src).expanduser()
    if labels:
        table = Path(labels).expanduser()
        if not path.is_dir() or not table.is_file():
            raise UserError(f"--labels {labels} with {src}: a CSV file and a folder of images are needed.")
        return "folder with a table of labels", {"train": CsvReader(path, table)}
    if src in NAMES:
        return src, _named(src, data_dir)
    if _BRACES.search(src):
        return "wds", _by_split(_expanded(src), WdsReader)
    if not path.exists():
        raise UserError(f"{src}: no such file or folder, nor a data set's name ({', '.join(NAMES)}).")
    if path.is_file():
        return _open_file(path)
    for folder, name in _TORCHVISION.items():
        if path.name == folder or (path / folder).is_dir():
            return name, _named(name, str(path.parent if path.name == folder else path))
    for kind, pattern, opener in (
        ("wds", "*.tar", WdsReader),
        ("parquet", "**/*.parquet", ParquetReader),
        ("beton", "*.beton", None),
        ("npz", "*.npz", None),
    ):
        files = sorted(path.glob(pattern))
        if files:
            return kind, _by_split(files, opener) if opener else {
                _split_of(f) or f.stem: _open_file(f)[1]["train"] for f in files
            }
    inside = [name for name in SPLITS if (path / name).is_dir()]
    return "folder", {name: FolderReader(path / name) for name in inside} if inside else {"train": FolderReader(path)}


def _open_file(path: Path) -> tuple[str, dict[str, Reader]]:
    openers: dict[str, tuple[str, Callable[[Path], Reader]]] = {
        ".npz": ("npz", lambda p: ArrayReader(load_npz(p))),
        ".beton": ("beton", BetonReader),
        ".tar": ("wds", lambda p: WdsReader([p])),
        ".parquet": ("parquet", lambda p: ParquetReader([p])),
    }
    if path.suffix not in openers:
        raise UserError(
            f"{path}: a {path.suffix or 'plain'} file cannot be read; give a folder, or a file ending in "
            f"{', '.join(openers)}."
        )
    kind, opener = openers[path.suffix]
    return kind, {"train": opener(path)}


def _expanded(src: str) -> list[Path]:
    """`data-{000..127}.tar` as its files, which must all be there."""
    found = _BRACES.search(src)
    first, last = found.groups()
    names = [
        src[: found.start()] + str(k).zfill(len(first)) + src[found.end() :] for k in range(int(first), int(last) + 1)
    ]
    missing = [name for name in names if not Path(name).is_file()]
    if missing or not names:
        raise UserError(
            f"{src}: {len(missing)} of {len(names)} files are not there, such as {missing[0] if missing else src}."
        )
    return [Path(name) for name in names]


def _by_split(files: list[Path], opener: Callable[[list[Path]], Reader]) -> dict[str, Reader]:
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(_split_of(file) or "train", []).append(file)
    return {name: opener(groups[name]) for name in sorted(groups, key=lambda n: SPLITS.index(n) if n in SPLITS else 0)}


def _split_of(file: Path) -> str | None:
    """The split a file's name begins with, as in train-000012.tar and val.beton, or as its folder is called."""
    manifest = manifest_of(file)
    for name, split in (manifest.splits if manifest else {}).items():
        if file.name in split.files:
            return name
    start = re.split(r"[-_.]", file.name)[0]
    return start if start in SPLITS else file.parent.name if file.parent.name in SPLITS else None


def _named(name: str, data_dir: str) -> dict[str, Reader]:
    """torchvision checks its files by their MD5, and downloads them where they are missing."""
    train, test = open_data(name, None, data_dir, labelled=True)
    splits = {"train": ArrayReader(train), "test": ArrayReader(test)}
    if name == "stl10":
        from torchvision.datasets import STL10

        images = STL10(data_dir, split="unlabeled").data.transpose(0, 2, 3, 1)
        splits["unlabeled"] = ArrayReader(ArraySource("stl10 unlabeled", images))
    return splits


def _share_classes(src: str, splits: dict[str, Reader]) -> None:
    """All splits number their labels by one list of class names: the training set's, with what others add behind it."""
    named = [reader for reader in splits.values() if reader.classes]
    if not named:
        return
    for reader in named:
        if len(reader.labels) and reader.labels.max() >= len(reader.classes):
            raise UserError(
                f"{src}: its largest label is {reader.labels.max()}, but it names only {len(reader.classes)} classes."
            )
    classes = list(dict.fromkeys(name for reader in named for name in reader.classes))
    for reader in named:
        number = np.array([classes.index(name) for name in reader.classes] + [-1], dtype=np.int64)  # -1 stays -1
        reader.labels, reader.classes = number[reader.labels], tuple(classes)
