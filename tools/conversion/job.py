"""What one conversion is asked to do, and what is refused before it starts."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saccade.base.errors import UserError
from saccade.base.text import printable
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.open import DataSet
from saccade.pipelines.sources.parquet import pyarrow_parquet
from saccade.tools.conversion.prepare import Settings
from saccade.tools.conversion.write_packed import BetonWriter, NpzWriter, ParquetWriter
from saccade.tools.conversion.writers import FolderWriter, WdsWriter, Writer

WRITERS: dict[str, type[Writer]] = {
    "folder": FolderWriter,
    "npz": NpzWriter,
    "wds": WdsWriter,
    "beton": BetonWriter,
    "parquet": ParquetWriter,
}
SINGLE = {"beton": ".beton", "npz": ".npz"}  # formats that one file may hold


@dataclass(frozen=True)
class Job:
    """to: a key of WRITERS; verify: full, sample or none; shuffle: seed of the order, None to keep it."""

    src: str
    dst: Path
    to: str
    settings: Settings
    part_size: int
    shuffle: int | None
    verify: str
    max_bad: float
    workers: int

    @property
    def single(self) -> bool:
        return SINGLE.get(self.to) == self.dst.suffix


def check(job: Job, data: DataSet) -> None:
    if job.dst.exists() and (not job.dst.is_dir() or any(job.dst.iterdir())):
        raise UserError(f"{job.dst}: exists already; choose another DST or delete it.")
    if job.single and len(data.splits) > 1:
        raise UserError(
            f"{job.src} has the splits {', '.join(data.splits)} and {job.dst.name} holds one; give --split NAME, "
            f"or a folder as DST with --to {job.to}."
        )
    if job.shuffle is not None and any(reader.reader.in_order for reader in data.splits.values()):
        raise UserError("--shuffle: parquet is read in its own order; convert it to beton or folder first.")
    for name, reader in data.splits.items():
        if (
            job.to == "folder"
            and reader.labels is not None
            and (reader.labels < 0).any()
            and (reader.labels >= 0).any()
        ):
            raise UserError(
                f"{name}: {(reader.labels < 0).sum()} of {len(reader)} images have no label, and a folder has no "
                "place for them beside the classes; use --to wds, beton or parquet."
            )
        if reader.account.damaged:
            raise UserError(reader.account.damaged[0])
        if job.to == "folder" and (wrong := next(filter(_is_no_folder, reader.classes or ()), None)) is not None:
            raise UserError(
                f"{name}: the class {printable(repr(wrong))} cannot be a folder's name; rename it in the source, "
                f"or use "
                "--to wds, beton or parquet, which keep it."
            )
    if job.to == "parquet":
        pyarrow_parquet()


def _is_no_folder(name: str) -> bool:
    return not name or name.startswith(".") or name != name.strip() or "/" in name or "\\" in name or "\0" in name


def describe(src: str, data: DataSet) -> str:
    classes = next((reader.classes for reader in data.splits.values() if reader.classes), None)
    named = f"{len(classes)} classes" if classes else "no class names"
    splits = ", ".join(f"{name} {len(reader):,}{_unlabelled(reader)}" for name, reader in data.splits.items())
    lines = [f"{src}: {data.kind}, {data.images:,} images ({splits}), {named}"]
    lines += [f"{name}: {line}" for name, reader in data.splits.items() if (line := reader.account.line())]
    return printable("\n".join(lines)).replace("\\n", "\n")


def _unlabelled(source: Source) -> str:
    known = 0 if source.labels is None else int((source.labels >= 0).sum())
    return f", {known:,} labelled" if 0 < known < len(source) else ""


def plan_of(job: Job, data: DataSet) -> dict[str, Any]:
    """What must be the same for parts of an earlier run to be used."""
    names = hashlib.sha256()
    for split, reader in data.splits.items():
        names.update(os.fsencode(split))
        for i in range(len(reader)):
            names.update(os.fsencode(f"{reader.key_of(i)}\0{reader.label_of(i)}\n"))
    return {
        "source": str(Path(job.src).resolve()) if Path(job.src).exists() else job.src,
        "images": names.hexdigest(),
        "format": job.to,
        "settings": asdict(job.settings),
        "part size": job.part_size,
        "order": job.shuffle,
    }
