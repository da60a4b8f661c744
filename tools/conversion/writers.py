"""Writers: parts of a split, each written whole and then known by its rows, and at the end the files they make up."""

from __future__ import annotations

import io
import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from saccade.base.errors import UserError
from saccade.base.files import whole_file
from saccade.tools.conversion.prepare import Prepared


@dataclass(frozen=True)
class Row:
    """One image in the target. place: what the format must remember of it."""

    index: int  # in the source's split
    label: int
    height: int
    width: int
    size: int  # bytes
    place: list


@dataclass(frozen=True)
class Item:
    """One image on its way into a part."""

    index: int
    name: str
    label: int
    image: Prepared

    def row(self, *place: object) -> Row:
        return Row(self.index, self.label, self.image.height, self.image.width, len(self.image.data), list(place))


class Writer(ABC):
    """Writes one split below `folder`. Parts come in order; one that was cut short is written again from its start."""

    forms = ("file",)  # what Settings.form may be

    def __init__(self, folder: Path, split: str, images: int, parts: int, classes: tuple[str, ...] | None) -> None:
        self.folder, self.split, self.images, self.parts, self.classes = folder, split, images, parts, classes
        self._names: set[str] | None = None

    @abstractmethod
    def write(self, number: int, items: Iterable[Item], before: list[Row]) -> list[Row]:
        """Part `number`; `before`: the rows of all earlier parts. On return the part is on the disk."""

    def finish(self, rows: list[Row]) -> list[str]:
        """Names of the split's files below `folder`, all of them whole."""
        return sorted(p.name for p in self.folder.glob(f"{self.split}-*") if p.suffix in (".tar", ".parquet"))

    def _unique(self, name: str, before: list[Row]) -> str:
        """The name, changed where an earlier row has it; `before`: rows of earlier parts, place[0] their names."""
        if self._names is None:
            self._names = {row.place[0] for row in before}
        stem, extension = os.path.splitext(name)
        while name in self._names:
            name = f"{stem}~{len(self._names)}{extension}"
        self._names.add(name)
        return name


class FolderWriter(Writer):
    """split/class/name.jpg, or split/name.jpg without labels."""

    def write(self, number: int, items: Iterable[Item], before: list[Row]) -> list[Row]:
        rows = []
        for item in items:
            name = self._unique(self._path(item), before)
            file = self.folder / self.split / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(item.image.data)
            rows.append(item.row(name))
        return rows

    def finish(self, rows: list[Row]) -> list[str]:
        return [self.split]

    def _path(self, item: Item) -> str:
        parts = [part for part in item.name.split("/") if part not in ("", ".")]
        if item.label >= 0:
            folder = (self.classes[item.label] if self.classes else f"{item.label:05d}").replace("/", "_")
            parts = parts if len(parts) > 1 and parts[0] == folder else [folder, *parts]
        if ".." in parts:
            raise UserError(f"{item.name!r} would lie outside of the target; rename it, or its class, in the source.")
        if os.path.splitext(parts[-1])[1].lower().replace("jpeg", "jpg") != item.image.kind:
            parts[-1] += item.image.kind
        return "/".join(parts)


class WdsWriter(Writer):
    """A tar for each part, KEY.jpg and KEY.cls, the same bytes every time; beside it an index that DALI reads too."""

    def write(self, number: int, items: Iterable[Item], before: list[Row]) -> list[Row]:
        shard, rows, index = self.folder / f"{self.split}-{number:06d}.tar", [], []
        with whole_file(shard) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for item in items:
                key = self._unique(_key(item.name), before)
                members = [(item.image.kind[1:], item.image.data)]
                if item.label >= 0:
                    members.append(("cls", str(item.label).encode()))
                line = []
                for extension, data in members:
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size, info.mode = len(data), 0o644
                    line.append(f"{extension} {tar.offset + tarfile.BLOCKSIZE} {len(data)} {info.name}")
                    tar.addfile(info, io.BytesIO(data))
                index.append(" ".join(line))
                rows.append(item.row(key))
        with whole_file(shard.with_suffix(".idx")) as file:
            file.write("\n".join([f"v1.2 {len(index)}", *index, ""]).encode())
        return rows


def _key(name: str) -> str:
    """The name without its extension and what a sample's key cannot hold: further dots, spaces, other than ASCII."""
    base = os.path.splitext(name)[0].replace(".", "_").replace(" ", "_")
    return base.encode("ascii", "replace").decode().replace("?", "_").lstrip("/")[-80:].lstrip("/")
