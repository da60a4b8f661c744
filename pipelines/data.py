"""From what a user writes after --data to a training source and, where there is one, a source to evaluate on."""

from __future__ import annotations

import difflib
import zipfile
from pathlib import Path

import numpy as np

from saccade.base.errors import UserError
from saccade.pipelines.beton import BetonSource
from saccade.pipelines.embedded import CLASSES, textures
from saccade.pipelines.remote import is_pattern, is_remote, local_shards
from saccade.pipelines.shards import ShardSource
from saccade.pipelines.sources import ArraySource, FolderSource, Source, check_largest

NAMES = ("textures", "cifar10", "cifar100", "stl10")
_FILES = (".npz", ".beton", ".tar")
_VALIDATION = ("val", "valid", "validation", "test")


def open_data(
    data: str,
    val_data: str | None = None,
    data_dir: str = "data",
    labelled: bool = False,
    allow_pipe: bool | None = None,
) -> tuple[Source, Source | None]:
    """The training source and the evaluation source (None where there is none).

    data: one of NAMES, a folder of images, a .beton, or an .npz with `images` uint8 (N, H, W, 3) and optional `labels`;
    or a folder that holds train/, train.beton or train.npz; or WebDataset shards: a .tar, a folder of them,
    `x-{000..127}.tar`, or a URL of either (allow_pipe: also pipe: URLs, which run a shell command; None: if
    SACCADE_ALLOW_PIPE=1 is set).
    val_data: likewise; of a folder that holds splits its val/ or test/, else its train/. Without it a split beside the
    training data is used: val/ or test/ beside train/, val.npz beside train.npz.
    labelled: only the labelled training images, of a set that has others too (STL-10: 5,000 of 105,000).

    Examples:
        >>> train, val = open_data("textures")
        >>> len(train), train.read(0).shape, len(train.classes), len(val)
        (6000, (32, 32, 3), 10, 1000)
    """
    if data in NAMES:
        train = _named(data, True, data_dir, labelled)
        val = None if val_data else _named(data, False, data_dir)
    elif _is_shards(data):
        train, val = ShardSource(local_shards(data, allow_pipe), data), None
    else:
        path = _inside(_existing(data), "train")
        train, val = _open_path(path), None
        beside = None if val_data else _validation_beside(path)
        if beside:
            val = _open_path(beside)
        elif path.is_dir() and not val_data and (shards := _shards_in(path, *_VALIDATION)):
            val = ShardSource(shards)
    if val_data in NAMES:
        val = _named(val_data, False, data_dir)
    elif val_data:
        val = (
            ShardSource(local_shards(val_data, allow_pipe), val_data)
            if _is_shards(val_data)
            else _open_path(_inside(_existing(val_data, "--val-data"), *_VALIDATION, "train"))
        )
    if val is not None and train.classes and val.classes and train.classes != val.classes:
        val = _with_classes_of(train, val)
    return train, val


def open_labelled(labelled_data: str | None, data: str, data_dir: str, train: Source) -> Source | None:
    """Labelled images to go beside unlabelled training data: those asked for, or STL-10's own 5,000; None without."""
    if labelled_data is None:
        return (
            open_data("stl10", None, data_dir, labelled=True)[0] if data == "stl10" and train.labels is None else None
        )
    source, _ = open_data(labelled_data, None, data_dir, labelled=True)
    if source.labels is None:
        raise UserError(
            f"--labelled-data {labelled_data} has no labels; use a folder with one sub-folder for each class, or "
            "an .npz with `labels`."
        )
    return source


def _existing(data: str, flag: str = "--data") -> Path:
    path = Path(data).expanduser()
    if path.exists():
        return path
    near = difflib.get_close_matches(data, NAMES, n=1)
    raise UserError(
        f"{flag} {data}: no such file or folder, nor a data set's name ({', '.join(NAMES)})"
        + (f"; did you mean {near[0]}?" if near else ".")
    )


def _inside(folder: Path, *splits: str) -> Path:
    """The first of these splits that the folder holds, as a folder or a file; else the folder itself."""
    found = (folder / f"{split}{extension}" for split in splits for extension in ("", *_FILES))
    return next((p for p in found if (p.is_file() if p.suffix else p.is_dir())), folder)


def _is_shards(data: str) -> bool:
    return is_remote(data) or (is_pattern(data) and not Path(data).expanduser().exists())


def _shards_in(folder: Path, *begin: str) -> list[Path]:
    return sorted(file for file in folder.glob("*.tar") if file.name.startswith(begin or ""))


def _open_path(path: Path) -> Source:
    if path.is_dir():
        shards = _shards_in(path, "train") or _shards_in(path)
        return ShardSource(shards, str(path)) if shards else FolderSource(path)
    if path.suffix == ".tar":
        return ShardSource([path])
    if path.suffix == ".npz":
        return load_npz(path)
    if path.suffix == ".beton":
        return BetonSource(path)
    raise UserError(
        f"--data {path}: a folder of images, an .npz, a .beton or a .tar is needed, not a "
        f"{path.suffix or 'plain'} file."
    )


def _validation_beside(path: Path) -> Path | None:
    for name in _VALIDATION:
        if path.is_dir() and path.name == "train" and (path.parent / name).is_dir():
            return path.parent / name
        if path.suffix in _FILES and "train" in path.stem:
            other = path.with_name(path.stem.replace("train", name) + path.suffix)
            if other.exists():
                return other
    return None


def _with_classes_of(train: Source, val: Source) -> Source:
    """Number the evaluation labels by the training classes' names; a class the training set lacks is an error."""
    unknown = sorted(set(val.classes) - set(train.classes))
    if unknown:
        raise UserError(
            f"{val.name} has classes that {train.name} lacks: {', '.join(unknown[:5])}; "
            "give both splits the same class folders."
        )
    if val.labels is not None:
        val.labels = np.array([train.classes.index(name) for name in val.classes], dtype=np.int64)[val.labels]
    val.classes = train.classes
    return val


def load_npz(path: Path) -> ArraySource:
    """Read `images` uint8 (N, H, W, 3), and `labels` (N,) of whole numbers if present; nothing is unpickled."""
    expected = "an .npz needs `images` uint8 (N, H, W, 3) and may have `labels` of N whole numbers"
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = list(file.keys())
            if "images" not in keys:
                raise UserError(f"{path}: {expected}; it has {', '.join(keys) or 'nothing'}.")
            images = file["images"]
            labels = file["labels"] if "labels" in keys else None
            classes = (
                tuple(file["classes"].tolist()) if "classes" in keys and file["classes"].dtype.kind == "U" else None
            )
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        reason = "it holds no plain arrays" if "pickle" in str(error) else error  # numpy's text advises to unpickle it
        raise UserError(f"{path}: cannot be read as .npz ({reason}).") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise UserError(f"{path}: {expected}; its images are {images.dtype} {images.shape}.")
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0):
        raise UserError(
            f"{path}: {expected}; its labels are {labels.dtype} {labels.shape} for {len(images)} images"
            f"{', some negative' if labels.dtype.kind == 'i' and labels.size and labels.min() < 0 else ''}."
        )
    if labels is not None:
        check_largest(int(labels.max()), str(path))
    if labels is not None and classes and labels.max() >= len(classes):
        raise UserError(f"{path}: its largest label is {labels.max()}, but it names only {len(classes)} classes.")
    return ArraySource(str(path), images, None if labels is None else labels.astype(np.int64), classes)


def _named(name: str, train: bool, data_dir: str, labelled: bool = False) -> ArraySource:
    if name == "textures":
        return ArraySource(name, *textures("train" if train else "test"), CLASSES)
    from torchvision.datasets import CIFAR10, CIFAR100, STL10

    def load(download: bool):
        if name == "stl10":
            split = "test" if not train else "train" if labelled else "train+unlabeled"
            return STL10(data_dir, split=split, download=download)
        return (CIFAR10 if name == "cifar10" else CIFAR100)(data_dir, train=train, download=download)

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
    if name == "stl10":
        labels = None if (dataset.labels < 0).any() else dataset.labels
        return ArraySource(name, dataset.data.transpose(0, 2, 3, 1), labels, tuple(dataset.classes))
    return ArraySource(name, dataset.data, np.array(dataset.targets), tuple(dataset.classes))
