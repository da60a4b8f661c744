"""The one opener: from what a user writes to the splits of a data set, each a source. Training, evaluation and
conversion ask it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from saccade.base.errors import UserError
from saccade.base.text import did_you_mean, printable
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.arrays import load_npz, npz_splits
from saccade.pipelines.sources.beton import BetonSource
from saccade.pipelines.sources.decode import extensions, looks_like_image
from saccade.pipelines.sources.folder import ARCHIVES, FolderSource, ImageFile, scan
from saccade.pipelines.sources.labels import share_classes
from saccade.pipelines.sources.mixed import mixed, parts_of
from saccade.pipelines.sources.named import FOLDERS, NAMES, named_splits
from saccade.pipelines.sources.options import FOLDER_LABELS, PLAIN, Options
from saccade.pipelines.sources.own import is_own, open_own
from saccade.pipelines.sources.parquet import ParquetSource
from saccade.pipelines.sources.ranges import with_channels, with_range
from saccade.pipelines.sources.remote import is_pattern, is_remote, local_files
from saccade.pipelines.sources.shards import ShardSource
from saccade.pipelines.sources.source import Source
from saccade.pipelines.sources.split_names import VALIDATION, is_train
from saccade.pipelines.sources.splits import by_split, split_folders
from saccade.pipelines.sources.table import read_table
from saccade.pipelines.sources.table_source import TableSource, with_table

Opener = Callable[[], Source]


@dataclass(frozen=True)
class Found:
    """The splits of a data set by name, each opened when called. account: of what lies beside them, and what was
    guessed to tell them."""

    kind: str
    splits: dict[str, Opener]
    account: Account = field(default_factory=Account)


@dataclass(frozen=True)
class DataSet:
    """kind: the format it came in; splits: name -> Source, all numbered by one list of classes."""

    kind: str
    splits: dict[str, Source]

    @property
    def images(self) -> int:
        return sum(map(len, self.splits.values()))


def open_dataset(data: str, options: Options = PLAIN, split: str | None = None) -> DataSet:
    """All splits of what a user wrote, or `split` only."""
    found = find(data, options, "SRC")
    if split and split not in found.splits:
        raise UserError(f"--split {split}: {data} has {', '.join(found.splits)}.")
    names = [split] if split else [name for name in found.splits if name != "all"]
    sources = {name: open_split(found, name, options) for name in names}
    return DataSet(found.kind, share_classes(sources))


def open_split(found: Found, split: str, options: Options, part: bool = False) -> Source:
    """One split, under the labels of a CSV where one was given. part: of a mixture or beside other data, which the
    options may mean."""
    source = with_range(with_channels(found.splits[split](), options.channels or 3), options.value_range)
    if not part:
        _check_options(source, options)
    if options.table:
        table = Path(options.table).expanduser()
        if not table.is_file():
            raise UserError(f"--labels {options.table}: no such file; give a CSV of FILE,LABEL rows, none or folders.")
        source = with_table(source, read_table(table, label_key=options.label_key))
    if found.kind == "own":
        source.account.seen = 0  # what a user's own source met is taken at its word
    source.account.add(found.account)
    source.account.check(source.name)
    return source


_ROWS = ("wds", "parquet", "beton", "npz")  # where members, columns or fields have names
_OF_KIND = {"image_key": _ROWS, "label_key": (*_ROWS, "csv")}


def _check_options(source: Source, options: Options) -> None:
    """UserError for an option that such a source has no use for: it would change nothing, without a word."""
    for name, kinds in _OF_KIND.items():
        value, listed = getattr(options, name), name == "label_key" and options.table
        if value and not listed and source.kind in ("folder", "csv") and source.kind not in kinds:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} {value}: {source.name} is files, of which no part has a name; leave it out"
                f"{', or give a CSV with --labels' if name == 'label_key' else ''}."
            )
    if options.labels == FOLDER_LABELS and source.kind in ("npz", "beton", "parquet", "csv"):
        raise UserError(f"--labels folders: the images of {source.name} lie in no folders; leave it out.")


def train_split(found: Found, data: str, labelled: bool, unlabelled: bool = False) -> str:
    if "all" in found.splits and not labelled:
        return "unlabeled" if unlabelled and "unlabeled" in found.splits else "all"
    name = next((split for split in found.splits if is_train(split)), None)
    if name is None and len(found.splits) == 1:
        name = next(iter(found.splits))
    if name is None:
        raise UserError(
            f"--data {data}: holds {', '.join(found.splits)} and no train; give --data one of them by its own path."
        )
    return name


def find(data: str, options: Options = PLAIN, flag: str = "--data") -> Found:
    """What `data` names: a set's name, MODULE:ARGUMENT, a folder, a file, a pattern or list of files, or a URL."""
    if not data.strip():
        raise UserError(f"{flag} is empty; give a folder, a file or a data set's name.")
    if data in NAMES:
        return Found(data, dict(named_splits(data, options.data_dir)))
    if parts := parts_of(data):
        return _mixture(parts, options)
    if is_own(data):
        return Found("own", {"train": lambda: open_own(data, options)})
    path = Path(data).expanduser()
    if not path.exists() and (is_remote(data) or is_pattern(data)):
        return _files(local_files(data, options.allow_pipe), data, options)
    if not path.exists():
        raise UserError(
            f"{flag} {printable(data)}: no such file or folder, nor a data set's name ({', '.join(NAMES)})"
            f"{did_you_mean(data, NAMES)}."
        )
    return _folder(path, options) if path.is_dir() else _file(path, options)


def _mixture(parts: list[tuple[str, float]], options: Options) -> Found:
    """The training images of each part, in the proportion of their weights; to evaluate on, the split of each part
    that has one."""
    found = [(find(part, options), part, weight) for part, weight in parts]
    chosen = [(each, train_split(each, part, False), weight) for each, part, weight in found]
    tests = [(each, evaluation_split(each, training)) for each, training, _ in chosen]
    beside = [(each, name) for each, name in tests if name]
    without = [part for (_, part, _), (_, name) in zip(found, tests, strict=True) if name is None]
    splits: dict[str, Opener] = {
        "train": lambda: mixed([open_split(e, name, options, True) for e, name, _ in chosen], [w for *_, w in chosen])
    }
    account = Account()
    if beside:
        splits["val"] = lambda: mixed([open_split(e, name, options, True) for e, name in beside], [1] * len(beside))
        if without:
            account.guess(f"{', '.join(map(printable, without))} has no validation split; the others' are tested on")
    return Found("mixed", splits, account)


def evaluation_split(found: Found, training: str) -> str | None:
    """The split beside the training images, if there is one."""
    name = next((name for name in VALIDATION if name in found.splits), None)
    return None if name == training else name


# --- files ----------------------------------------------------------------------------------------------------------

_ONE = {".npz": load_npz, ".beton": BetonSource, ".csv": TableSource, ".tsv": TableSource}
_MANY = {".tar": ("wds", ShardSource), ".parquet": ("parquet", ParquetSource), ".arrow": ("parquet", ParquetSource)}
_KIND = {".npz": "npz", ".beton": "beton", ".csv": "csv", ".tsv": "csv"}


def _file(path: Path, options: Options) -> Found:
    """A single file, and the split beside it: val.npz beside train.npz."""
    suffix = path.suffix.lower()
    if suffix in _MANY:
        kind, opener = _MANY[suffix]
        return Found(kind, {"train": partial(opener, [path], options=options)} | _beside(path, options))
    if suffix in ARCHIVES:
        raise UserError(f"--data {printable(str(path))}: an archive; unpack it, and give the folder or the .tar in it.")
    if suffix == ".npy":
        raise UserError(f"--data {printable(str(path))}: a single array; save it with np.savez(FILE, images=array).")
    if suffix not in _ONE and (suffix in extensions() or looks_like_image(path)):
        return Found("folder", {"train": partial(ImageFile, path)})
    if suffix not in _ONE:
        raise UserError(
            f"--data {printable(str(path))}: an image, a folder of images, a file ending in "
            f"{', '.join([*_ONE, *_MANY])} is needed, not a {suffix or 'plain'} file."
        )
    if suffix == ".npz" and not options.image_key and (splits := npz_splits(path)):
        return Found("npz", {split: partial(load_npz, path, options, split) for split in splits})
    return Found(_KIND[suffix], {"train": partial(_ONE[suffix], path, options)} | _beside(path, options))


def _beside(path: Path, options: Options) -> dict[str, Opener]:
    for name in VALIDATION if "train" in path.stem else ():
        other = path.with_name(path.stem.replace("train", name) + path.suffix)
        if other.is_file():
            return {name: _file(other, options).splits["train"]}
    return {}


def _files(files: list[Path], name: str, options: Options) -> Found:
    """Several files of one kind, by the splits that their names tell."""
    suffixes = {file.suffix.lower() for file in files}
    if suffixes <= extensions():
        raise UserError(f"--data {name}: {len(files)} images; put them into a folder of their own, and give that.")
    if len(suffixes) > 1 or not suffixes <= set(_MANY):
        raise UserError(f"--data {name}: several files must all be {' or '.join(_MANY)}, not {', '.join(suffixes)}.")
    kind, opener = _MANY[suffixes.pop()]
    if twice := len(files) - len(set(files)):
        raise UserError(f"{name}: names {twice} of its files twice; to show images more often, mix sets: --data A B:2.")
    groups = by_split(files)
    if kind == "parquet":
        _check_configurations(name, groups)
    return Found(
        kind,
        {split: partial(opener, own, name if len(groups) == 1 else None, options) for split, own in groups.items()},
    )


def _check_configurations(name: str, groups: dict[str, list[Path]]) -> None:
    """UserError where a split's files lie in several folders: configurations of one set hold the same images again."""
    for split, files in groups.items():
        folders = sorted({file.parent for file in files})
        if len(folders) > 1:
            raise UserError(
                f"{name}: the split {split} lies in {len(folders)} folders "
                f"({', '.join(f.name for f in folders[:4])}), which "
                "are configurations of one data set or several sets; give --data one of them."
            )


# --- folders --------------------------------------------------------------------------------------------------------


def _folder(path: Path, options: Options) -> Found:
    for name, known in FOLDERS.items():
        if path.name == name or (path / name).is_dir():
            splits = named_splits(known, str(path.parent if path.name == name else path))
            return Found(known, dict(splits))
    containers = _containers(path)
    if containers:
        return _containers_found(path, containers, options)
    account = Account()
    inside = split_folders(path, account, options.labels != FOLDER_LABELS)
    if inside:
        return Found("folder", {name: partial(_one_folder, place, options) for name, place in inside.items()}, account)
    found = Found("folder", {"train": partial(FolderSource, path, options)}, account)
    if is_train(path.name):
        siblings = {p.name.lower(): p for p in path.parent.iterdir() if p.is_dir()}
        other = next((siblings[name] for name in VALIDATION if name in siblings), None)
        if other is not None:
            found.splits[other.name.lower()] = partial(_one_folder, other, options)
    return found


def _one_folder(path: Path, options: Options) -> Source:
    """A split's folder: images, or containers of them."""
    containers = _containers(path)
    return _containers_found(path, containers, options).splits["train"]() if containers else FolderSource(path, options)


def _containers(path: Path) -> list[Path]:
    """The tars, tables or packed files of a folder, all of one kind; [] where it holds image files instead."""
    files = next(filter(None, (_of_kind(path, suffix) for suffix in (*_MANY, ".beton", ".npz"))), [])
    images = _images(path, len(files)) if files else []
    if images and (len(files) < len(images) or "/" in images[0]):
        others = f"{len(files)} {files[0].suffix} files, such as {files[0].name}"
        raise UserError(
            f"{path}: holds image files, such as {printable(images[0])}, and {others}; give --data the files "
            f"({path}/*{files[0].suffix}) or a folder of the images alone."
        )
    return files


def _of_kind(path: Path, suffix: str) -> list[Path]:
    """The folder's files that end so; tables in its sub-folders too, as Hugging Face has them."""
    files = sorted(path.glob(f"*{suffix}"))
    if not files and suffix in (".parquet", ".arrow") and _tables_below(path, suffix):
        files = sorted(path.rglob(f"*{suffix}"))
    return [
        f for f in files if not f.name.startswith((".", "cache-"))
    ]  # cache-: what `datasets` leaves beside its files


def _tables_below(path: Path, suffix: str, depth: int = 3) -> bool:
    """Whether one of the first files of a sub-folder ends so; a folder of a million images is not walked for it."""
    with os.scandir(path) as entries:
        inside = islice((e for e in islice(entries, 1024) if e.name[0] != "." and e.is_dir()), 64)
        folders = [Path(entry.path) for entry in inside]
    for place in folders:
        if any(name.endswith(suffix) for name in _first_names(place)) or (
            depth > 1 and _tables_below(place, suffix, depth - 1)
        ):
            return True
    return False


def _first_names(place: Path) -> list[str]:
    with os.scandir(place) as entries:
        return [entry.name for entry in islice(entries, 64)]


def _images(path: Path, most: int) -> list[str]:
    """Names of the first image files below the folder, some more than `most`."""
    found = []
    for name in scan(path, Account()):
        found.append(name)
        if len(found) > most:
            break
    return sorted(found, key=lambda name: "/" not in name)


def _leave_beside(path: Path, files: list[Path], account: Account) -> None:
    """Account for what a folder of containers holds beside them, as far down as they lie."""
    taken, folders = set(files), {path, *(file.parent for file in files)}
    for place in sorted(folders):
        for other in sorted(place.iterdir()):
            if other in taken or other in folders or any(other in folder.parents for folder in folders):
                continue
            account.see()
            suffix = other.suffix.lower()
            if other.name.endswith(_SIDECARS) or other.name.startswith((".", "cache-")):
                account.use("files that go with the data")
            elif suffix in _MANY or suffix in _ONE:
                way = f"--data with their names takes them, {path}/*{suffix} where they are several"
                account.leave(f"{suffix} files beside the {files[0].suffix} files", other.name, 1, way, guessed=True)
            else:
                account.leave(f"files and folders beside the {files[0].suffix} files", other.name, aside=True)


_SIDECARS = (".idx", ".index", ".beton.json", ".npz.json", "manifest.json", ".bad.txt", "bad_images.txt")


def _containers_found(path: Path, files: list[Path], options: Options) -> Found:
    account = Account()
    _leave_beside(path, files, account)
    if files[0].suffix in _MANY:
        return replace(_files(files, str(path), options), account=account)
    groups = by_split(files)
    if any(len(own) > 1 for own in groups.values()):
        groups = {file.stem: [file] for file in files}
    splits = {name: partial(_ONE[own[0].suffix], own[0], options) for name, own in groups.items()}
    return Found(_KIND[files[0].suffix], splits, account)
