"""Which parts of a data set are for training and which for evaluation, by the names of folders and files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from saccade.base.errors import UserError
from saccade.base.text import printable
from saccade.pipelines.manifest import manifest_of
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.folder import holds_image, scan
from saccade.pipelines.sources.listing import SYSTEM_FOLDERS
from saccade.pipelines.sources.split_names import SPLITS, is_train, split_word


def split_of(file: Path) -> str | None:
    """The split a file's name begins with, as in train-000012.tar and val.beton, or as its folder is called."""
    manifest = manifest_of(file)
    for name, split in (manifest.splits if manifest else {}).items():
        if file.name in split.files:
            return name
    start = re.split(r"[-_.]", file.name)[0].lower()
    return start if start in SPLITS else file.parent.name.lower() if file.parent.name.lower() in SPLITS else None


def by_split(files: Iterable[Path]) -> dict[str, list[Path]]:
    """The files of each split, in the splits' order; those that name none are `train`."""
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(split_of(file) or "train", []).append(file)
    return {name: groups[name] for name in sorted(groups, key=_place)}


def _place(name: str) -> int:
    return SPLITS.index(name) if name in SPLITS else 0


def split_folders(folder: Path, account: Account, loose: bool = True) -> dict[str, Path]:
    """The sub-folders that are splits, by the splits' names; {} where the sub-folders are classes. What lies beside
    them, and what was guessed, is accounted. loose: where each of them is named like one, train_set and val2017 too.

    A folder called `train` among others is a class, unless it holds class folders and they do not.
    """
    inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    inside = [p for p in inside if p.name.lower() not in SYSTEM_FOLDERS]
    found: dict[str, Path] = {}
    for place in inside:
        if place.name.lower() in SPLITS:
            found.setdefault(place.name.lower(), place)
    for place in found.values():
        if not _depth(place):
            account.guess(f"{printable(place.name)} in {folder} holds no images, so it is no split")
    found = {name: found[name] for name in sorted(found, key=_place) if _depth(found[name])}
    if loose and (named := _named_alike(inside, found)):
        names = " and ".join(f"{printable(place.name)} for {split}" for split, place in named.items())
        account.guess(f"folders of {folder} are taken for splits: {names}; --labels folders takes them for classes")
        _leave_beside(folder, list(named.values()), account)
        return named
    if len(inside) == 1 and not found and _depth(folder) > 1:
        deeper = split_folders(inside[0], account, loose)
        if deeper:
            _leave_beside(folder, [inside[0]], account)
            account.guess(f"the splits are those in {printable(str(inside[0]))}; --data names it to settle that")
        return deeper
    others = [p for p in inside if p.name.lower() not in SPLITS and _depth(p)] if found else []
    if not others:
        if found:
            _leave_beside(folder, list(found.values()), account)
        return found
    names = ", ".join(printable(p.name) for p in others[:3])
    if len(found) == 1 and not _depth(next(iter(found.values()))) > max(map(_depth, others)):
        (place,) = found.values()
        account.guess(
            f"{printable(place.name)} in {folder} is taken for a class beside {names}; --data "
            f"{printable(str(place))} takes "
            "its images alone"
        )
        return {}
    kept, lost = (sum(_images(p) for p in places) for places in (found.values(), others))
    if lost > kept:
        raise UserError(
            f"{folder}: holds {', '.join(printable(p.name) for p in found.values())} with {kept:,} images and "
            f"{names} with "
            f"{lost:,}, so it is no set of splits and no class tree either; give --data the folder that is meant."
        )
    _leave_beside(folder, list(found.values()), account)
    account.guess(
        f"{', '.join(printable(p.name) for p in found.values())} in {folder} are taken for the splits, so "
        f"{names} beside "
        "them are not read; --data FOLDER names what is meant"
    )
    return found


def _named_alike(inside: list[Path], exact: dict[str, Path]) -> dict[str, Path]:
    """All folders with images by the splits they are named like, each another, train among them; {} where they are
    not, or are called by the splits' own names."""
    if any(split_word(place.name) is None and _depth(place) for place in inside):
        return {}  # known by the first of many classes
    full = [place for place in inside if _depth(place)]
    named = {word: place for place in full if (word := split_word(place.name))}
    if len(full) < 2 or len(named) < len(full) or len(exact) == len(full) or not any(map(is_train, named)):
        return {}
    return {name: named[name] for name in sorted(named, key=_place)}


def _leave_beside(folder: Path, taken: list[Path], account: Account) -> None:
    """Account for all that lies in the folder beside the splits: images in other folders, files on top."""
    places = {place.name for place in taken}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name in places:
            continue
        if entry.name.startswith("."):
            reason = "hidden"
        elif entry.name.lower() in SYSTEM_FOLDERS:
            reason = "folders that a system made"
        elif entry.is_dir():
            inside = Account()
            images = sum(1 for _ in scan(Path(entry.path), inside))
            account.see(inside.seen)
            account.leave("images in folders beside the splits", f"{entry.name}/", images)
            others = inside.seen - images
            account.leave("other files in folders beside the splits", f"{entry.name}/", others, aside=True)
            continue
        else:
            reason = "files beside the splits"
        account.see()
        account.leave(reason, entry.name, aside=True)


def _depth(folder: Path) -> int:
    """0 without images, 1 with images in it, 2 with images only in sub-folders."""
    if holds_image(folder):
        return 1
    return 0 if next(scan(folder, Account()), None) is None else 2


def _images(folder: Path) -> int:
    return sum(1 for _ in scan(folder, Account()))
