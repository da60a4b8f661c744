"""What travels beside converted data, so that labels survive: class names, splits, counts and where it came from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from saccade.base.errors import UserError

FORMAT = "saccade data, version 1"


@dataclass(frozen=True)
class Split:
    """One split. files: names relative to the manifest; heights, widths: smallest and largest, pixels."""

    images: int
    files: list[str]
    labelled: bool
    heights: tuple[int, int]
    widths: tuple[int, int]
    per_class: list[int] | None = None

    def __post_init__(self) -> None:  # JSON has no tuples
        object.__setattr__(self, "heights", tuple(self.heights))
        object.__setattr__(self, "widths", tuple(self.widths))


@dataclass(frozen=True)
class Manifest:
    """manifest.json of a folder, or NAME.beton.json beside a single file."""

    to: str  # folder, npz, wds, beton or parquet
    classes: list[str] | None  # by label
    splits: dict[str, Split]
    source: str
    settings: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # bad images: name -> reason
    format: str = FORMAT

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")


def load_manifest(file: Path) -> Manifest | None:
    """The manifest in `file`; None if there is none or it is another program's."""
    try:
        content = json.loads(file.read_text())
        if not isinstance(content, dict) or not str(content.get("format", "")).startswith("saccade data"):
            return None
        if content["format"] != FORMAT:
            raise UserError(
                f"{file}: written as {content['format']!r}, this program reads {FORMAT!r}; convert it again."
            )
        content["splits"] = {name: Split(**split) for name, split in content["splits"].items()}
        return Manifest(**content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: cannot be read as a manifest ({error}); repair or delete it.") from error


def manifest_of(data: Path) -> Manifest | None:
    """The manifest that describes a folder or file: in it, beside it, or in the folder that holds it."""
    beside = data.with_name(data.name + ".json")
    if not data.is_dir() and beside.exists():
        return load_manifest(beside)
    for folder in (data, data.parent) if data.is_dir() else (data.parent,):
        manifest = load_manifest(folder / "manifest.json")
        if manifest and (
            folder == data or any(data.name in (name, *split.files) for name, split in manifest.splits.items())
        ):
            return manifest
    return None
