"""What a table of labels means, by dicts and lists of Python: the oracle for the columns that do the same."""

import csv
import os
from collections import defaultdict
from pathlib import Path

from saccade.base.errors import UserError
from saccade.base.text import printable


def read(table: Path) -> dict[str, str | None]:
    """File, with "/" between folders -> label, None where the cell is blank; of a CSV with the head file,label."""
    labels: dict[str, str | None] = {}
    with open(table, encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = [row for row in csv.reader(file) if any(map(str.strip, row))]
        for number, row in enumerate(rows[1:], 1):
            name = row[0].strip().replace("\\", "/")
            name = os.path.normpath(name) if name else name
            label = row[1].strip() or None
            if name in labels and labels[name] != label:
                raise UserError(
                    f"--labels {table}: data row {number} gives {printable(name)} the label {label!r}, an earlier one "
                    f"{labels[name]!r}; leave one of them."
                )
            labels[name] = label
    return labels


def matched(
    keys: list[str], folder: Path | None, table: Path, labels: dict[str, str | None]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Row's name -> image's number, and the (name, image) that are alike only."""
    exact, stems, bases, folded = {key: i for i, key in enumerate(keys)}, *(defaultdict(list) for _ in range(3))
    for i, key in enumerate(keys):
        stems[os.path.splitext(key)[0]].append(i)
        folded[key.lower()].append(i)
        base = key.rpartition("/")[2]
        bases[base].append(i)
        if (stem := os.path.splitext(base)[0]) != base:
            bases[stem].append(i)
    rows: dict[str, int] = {}
    named: dict[int, str] = {}
    alike = []
    for name in labels:
        inside = _relative(name, folder, table.parent)
        found = [exact[inside]] if inside in exact else stems.get(inside) or bases.get(inside) or []
        if not found and (found := _alike(inside, exact, folded)):
            alike.append((name, keys[found[0]]))
        if not found:
            continue
        if len(found) > 1:
            first, second = (printable(keys[i]) for i in found[:2])
            raise UserError(
                f"--labels {table}: {printable(name)} could be {len(found)} images, {first} or {second}; write "
                "the folder and the extension too."
            )
        other = named.setdefault(found[0], name)
        if labels[other] != labels[name]:
            raise UserError(
                f"--labels {table}: {printable(other)} and {printable(name)} are one image with two labels."
            )
        rows[name] = found[0]
    return rows, alike


def _alike(name: str, exact: dict[str, int], folded: dict[str, list[int]]) -> list[int]:
    parts = name.split("/")
    tails = ("/".join(parts[k:]) for k in range(1, len(parts)))
    tail = next((tail for tail in tails if tail in exact), None)
    return folded.get(name.lower(), []) if tail is None else [exact[tail]]


def _relative(name: str, folder: Path | None, beside: Path) -> str:
    if folder is None:
        return name
    root = os.path.abspath(folder)
    place = name if os.path.isabs(name) else os.path.join(os.path.abspath(beside), name)
    return place[len(root) + 1 :] if place.startswith(root + os.sep) else name
