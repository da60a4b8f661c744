"""What a conversion has done so far, in the folder it works in: DST.partial. Survives a kill at any moment."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saccade.base.errors import UserError
from saccade.base.files import lock, whole_file
from saccade.tools.conversion.writers import Row

OWN = "conversion"  # the journal's folder within the working folder


class Journal:
    """plan: everything that decides what is written; another plan in the same place is refused."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder, self._own = folder, folder / OWN
        if folder.exists() and not self._own.is_dir():  # it will be moved or removed in the end
            raise UserError(
                f"{folder}: is in the way, and no conversion's working folder; move it, or choose another DST."
            )
        try:
            self._own.mkdir(parents=True, exist_ok=True)
            self._lock = open(self._own / "lock", "w")  # noqa: SIM115 - held until the process ends
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}).") from error
        try:
            lock(self._lock)
        except BlockingIOError as error:
            self._lock.close()
            raise UserError(
                f"{folder}: another conversion is writing there; wait for it or choose another DST."
            ) from error
        self._check_plan(json.loads(json.dumps(plan)))

    def _check_plan(self, plan: dict[str, Any]) -> None:
        file = self._own / "plan.json"
        if not file.exists():
            with whole_file(file) as out:
                out.write(json.dumps(plan, indent=1).encode())
            return
        earlier = json.loads(file.read_text())
        changed = [key for key in plan if earlier.get(key) != plan[key]]
        if changed:
            self._lock.close()
            raise UserError(
                f"{self.folder}: holds an unfinished conversion that differs in its {' and '.join(changed)}; "
                "repeat that one to finish it, or delete the folder to start anew."
            )

    def part(self, split: str, number: int) -> tuple[list[Row], dict[str, str]] | None:
        """Rows and left-out images (name -> reason) of a part that is done."""
        file = self._part(split, number)
        if not file.exists():
            return None
        content = json.loads(file.read_text())
        return [Row(*row) for row in content["rows"]], content["left_out"]

    def record(self, split: str, number: int, rows: list[Row], left_out: dict[str, str]) -> None:
        with whole_file(self._part(split, number)) as file:
            file.write(
                json.dumps({"rows": [list(asdict(row).values()) for row in rows], "left_out": left_out}).encode()
            )

    def forget_bad(self) -> None:
        """Do the parts again that left images out: the user was told to repair those."""
        for file in self._own.glob("*-??????.json"):
            if json.loads(file.read_text())["left_out"]:
                file.unlink()

    def _part(self, split: str, number: int) -> Path:
        return self._own / f"{split}-{number:06d}.json"

    def parts_done(self) -> int:
        return sum(1 for file in self._own.iterdir() if file.name != "plan.json" and file.suffix == ".json")

    def close(self) -> None:
        self._lock.close()

    def discard(self) -> None:
        """Leave nothing behind, where nothing has been done yet."""
        if self.parts_done() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def same_disk_free(folder: Path) -> int:
    """Free bytes where `folder` will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def publish(partial: Path, produced: Path, final: Path) -> None:
    """Give the finished file or folder its name, then remove the journal and whatever else is left."""
    os.replace(produced, final)
    shutil.rmtree(final / OWN if produced == partial else partial)
