"""Image files below a folder; its direct sub-folders, if they hold the images, are the classes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from saccade.base.errors import UserError
from saccade.base.text import printable
from saccade.pipelines.kernels_cpu import cached
from saccade.pipelines.manifest import manifest_of
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.decode import BadImage, bad_image, extensions, image_size, looks_like_image, why_not
from saccade.pipelines.sources.index import Index, Names
from saccade.pipelines.sources.kept import kept_index
from saccade.pipelines.sources.listing import SETTLED, SYSTEM_FOLDERS, Listing, looked_into, times_of
from saccade.pipelines.sources.options import FOLDER_LABELS, NO_LABELS, PLAIN, Options
from saccade.pipelines.sources.source import Reader, Source
from saccade.pipelines.sources.split_names import split_word
from saccade.pipelines.sources.texts import distinct, next_slash
from saccade.pipelines.sources.unfinished import Entry, Unfinished

ARCHIVES = {".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"}
_NO_IMAGES = {".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".md", ".html", ".py", ".idx", ".npy"}


class FileReader(Reader):
    """Files by their names below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def encoded(self, index: Index, i: int) -> bytes:
        name = self.lies_in(index, i)
        try:
            with open(name, "rb", buffering=0) as file:  # no buffer to copy through
                return file.readall()
        except OSError as error:
            raise bad_image(error, name) from error

    def lies_in(self, index: Index, i: int) -> str:
        return f"{self.folder}{os.sep}{index.names[i]}"

    def file_size(self, index: Index, i: int) -> int:
        try:
            return os.stat(self.lies_in(index, i)).st_size
        except OSError:
            return -1

    def size(self, index: Index, i: int) -> tuple[int, int]:
        if self.channels in (1, 3):
            with suppress(BadImage):
                return image_size(self.folder / index.names[i])
        return super().size(index, i)


class FolderSource(Source):
    """The images below `folder`, in the order of their names."""

    def __init__(self, folder: Path, options: Options = PLAIN) -> None:
        manifest = manifest_of(folder)
        classes = manifest.classes if manifest else None
        called = {"folder": os.path.realpath(folder), "options": options.meaning, "classes": classes}
        called["extensions"] = sorted(extensions())
        index = kept_index(called, _unchanged, partial(_read, folder, options, classes), options.recheck)
        super().__init__(str(folder), index, FileReader(folder), "folder")
        self.folder = folder

    @property
    def files(self) -> list[Path]:
        return [self.folder / self.index.names[i] for i in range(len(self))]


class ImageFile(Source):
    """A single image, without a label."""

    def __init__(self, file: Path) -> None:
        index = Index.of([file.name], None, None, Account(seen=1, taken=1))
        super().__init__(str(file), index, FileReader(file.parent), "folder")
        self.folder = file.parent


def _read(folder: Path, options: Options, classes: Sequence[str] | None) -> tuple[Index, dict[str, list[int]] | None]:
    """The index, and the time of every folder that was looked into; None where those may not tell a change."""
    account, started = Account(), time.time_ns()
    times: dict[str, list[int]] = {}
    kept = None if options.recheck else Unfinished(str(folder))
    files = Names.of(scan(folder, account, times, kept))
    if kept is not None:
        kept.end()
    if not len(files):
        held = "is empty" if not any(folder.iterdir()) else "holds no image file"
        left = f" ({account.line()})" if account.left_out else ""
        if any(reason.split(" ")[0].lower() in ARCHIVES for reason in account.left_out):
            raise UserError(f"the folder {folder} holds no image file but archives{left}; unpack them.")
        raise UserError(
            f"the folder {folder} {held}{left}; images end in {', '.join(sorted(extensions() & _USUAL))} and the like."
        )
    files, labels, names = _labelled(folder, files, options, account, classes)
    told = not any(reason.startswith(_MAY_RETURN) for reason in account.left_out)
    settled = max(changed for changed, _ in times.values()) < started - SETTLED
    account.taken = len(files)
    return Index(len(files), labels, names, files, account=account), times if told and settled else None


_MAY_RETURN = ("folders that cannot be read", "that are no files")  # without a change of the folder they lie in


def _unchanged(times: dict[str, list[int]]) -> bool:
    try:
        return all(times_of(place) == then for place, then in times.items())
    except OSError:
        return False


_USUAL = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif", ".jp2"}


def scan(
    folder: Path, account: Account, times: dict[str, list[int]] | None = None, kept: Unfinished | None = None
) -> Iterator[str]:
    """Names of all image files below `folder`: a folder's own sorted, then those of its sub-folders. The rest is
    accounted. times: is given the time (ns) of each folder; kept: what a scan that was
    killed had listed."""
    root = os.path.realpath(folder)
    known = {each for extension in extensions() for each in (extension, extension.upper())}
    listing = Listing(kept)

    def walk(place: str, prefix: str, above: frozenset[str], real: str) -> Iterator[str]:
        found = listing.take(place)
        entries = found.entries
        if times is not None and found.times:
            times[real] = found.times
        if isinstance(entries, OSError):
            account.see()
            account.leave(f"folders that cannot be read ({entries.strerror})", prefix or place)
            return
        if prefix and not entries:
            account.see()
            account.leave("empty folders", prefix, aside=True)
        folders = []
        for entry in entries:
            name = prefix + entry.name
            hidden = name[len(prefix)] == "."
            if not hidden and entry.is_dir():
                folders.append(entry)
                continue
            account.seen += 1
            if hidden:
                account.leave("hidden", name)
            elif not entry.is_file():
                account.leave("that are no files (a pipe, a socket, a broken link)", name)
            elif name[name.rfind(".") :] in known or _is_image(entry):
                yield name
            else:
                account.leave(why_not(os.path.splitext(entry.name)[1]), name)
        listing.expect([entry.path for entry in folders if looked_into(entry)])
        for entry in folders:
            own = not entry.is_symlink()
            inside = os.path.join(real, entry.name) if own else os.path.realpath(entry.path)
            if entry.name.lower() in SYSTEM_FOLDERS:
                account.see()
                account.leave("folders that a system made", prefix + entry.name)
            elif inside in above or (not own and _below(root, real) and _below(root, inside)):
                account.see()
                account.leave("linked folders (their images are taken where they lie)", prefix + entry.name)
            else:
                yield from walk(entry.path, f"{prefix}{entry.name}/", above | {inside}, inside)

    with listing:
        yield from walk(str(folder), "", frozenset([root]), root)


def holds_image(folder: Path) -> bool:
    """Whether an image file lies in the folder itself; not all of it is listed to tell."""
    with suppress(OSError), os.scandir(folder) as entries:
        return any(entry.name[0] != "." and entry.is_file() and _is_image(entry) for entry in entries)
    return False


def _below(root: str, place: str) -> bool:
    return place == root or place.startswith(root.rstrip(os.sep) + os.sep)


def _is_image(entry: os.DirEntry | Entry) -> bool:
    extension = os.path.splitext(entry.name)[1].lower()
    return extension in extensions() or (extension not in _NO_IMAGES and looks_like_image(entry.path))


def _labelled(
    folder: Path, files: Names, options: Options, account: Account, known: Sequence[str] | None
) -> tuple[Names, np.ndarray | None, tuple[str, ...] | None]:
    """The files that are taken, their labels and the classes' names."""
    if options.labels == NO_LABELS or options.table:
        return files, None, None
    prefix = _common_folder(files)
    slash = _slash_after(files, len(os.fsencode(prefix)))
    if prefix and (slash < 0).all():  # all in one folder: that one is the class
        prefix = prefix[: prefix[:-1].rfind("/") + 1]
        slash = _slash_after(files, len(os.fsencode(prefix)))
    on_top = int(np.count_nonzero(slash < 0))
    if on_top == len(files):
        return files, None, None
    if on_top > len(files) - on_top and options.labels != FOLDER_LABELS:
        account.guess(
            f"{on_top:,} of {len(files):,} images of {folder} lie beside its folders, so the folders are no "
            f"classes and "
            "there are no labels; --labels folders takes the others by their folders"
        )
        return files, None, None
    first = files[int(np.argmin(slash))] if on_top else ""
    way = f"--labels none takes all {len(files):,} without labels"
    account.leave("on top of a class tree", first, on_top, way, guessed=options.labels != FOLDER_LABELS)
    rows = np.flatnonzero(slash >= 0) if on_top else slice(None)
    starts, ends, slash = files.starts[rows], files.ends[rows], slash[rows]
    starts += len(os.fsencode(prefix))
    of, found = _pieces(files, starts, slash)
    del starts
    if prefix:
        account.guess(
            f"all images of {folder} lie in {printable(prefix)}: its {len(found)} folders are the classes (--data "
            f"{printable(str(folder / prefix))} says so, --labels none takes no labels)"
        )
    elif len(found) == 1:
        account.guess(
            f"all images of {folder} are of one class, {printable(found[0])}; accuracy means nothing with one"
        )
    below = next_slash(files.text, slash + 1, ends)
    deeper = below >= 0
    _, inside = _pieces(files, slash[deeper] + 1, below[deeper])
    del slash, below
    inside = {part.lower() for part in inside}
    if len(inside) > 1 and all(split_word(part) for part in inside):
        account.guess(
            f"the class folders of {folder} hold {', '.join(map(printable, sorted(inside)))}, which are all taken "
            "together; to keep them apart, let SPLIT/CLASS lie there instead of CLASS/SPLIT"
        )
    classes = tuple(sorted(found))
    if known and set(classes) <= set(known):
        classes = tuple(known)
    number = {name: k for k, name in enumerate(classes)}
    return (
        files if isinstance(rows, slice) else files.take(rows),
        np.array([number[name] for name in found])[of],
        classes,
    )


def _common_folder(files: Names) -> str:
    """The folders, as "a/b/", that all files lie in."""
    first = files.text[: int(files.ends[0])]
    return os.fsdecode(first[: _common(files.text, files.ends)].tobytes())


def _slash_after(files: Names, start: int) -> np.ndarray:
    """(N,) int64, where in `text` the first slash of a name lies that comes after so many bytes; -1 where none does."""
    return next_slash(files.text, files.starts + start, files.ends)


def _pieces(files: Names, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Which of the different pieces of `text` each of these is, and the pieces."""
    which, met = distinct(files.text, starts, stops)
    return which, [os.fsdecode(files.text[starts[k] : stops[k]].tobytes()) for k in met.tolist()]


@cached
def _common(text, ends):
    """Bytes of the longest path, with its slash, that all names begin with."""
    length = ends[0]
    start = ends[0] * 0
    for end in ends:
        same = start
        while same < min(end, start + length) and text[same] == text[same - start]:
            same += 1
        length = same - start
        while length > 0 and text[length - 1] != 47:
            length -= 1
        start = end
    return length
