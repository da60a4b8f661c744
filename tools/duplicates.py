"""python -m tools.duplicates --in x.parquet: groups of images that are all but the same."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.files import write_csv
from saccade.base.program import command_parser
from saccade.base.text import printable
from saccade.evaluation.embeddings import read_embeddings
from saccade.evaluation.options import Usual, check_out
from saccade.tools.answers import Cell, add_table_flags, sklearn, write_sheet

EXAMPLES = {
    "--in photos.parquet": "duplicates.csv and a sheet of the first groups",
    "--in photos.parquet --threshold 0.95": "looser: look at the sheet, and choose",
}
ELEMENTS, MOST, STRIPS, CELLS = 2**24, 0.2, 20, 8  # similarities held at once; share in one group that is too much


def parser() -> argparse.ArgumentParser:
    command = command_parser("python -m tools.duplicates", main.__doc__ or "", EXAMPLES)
    add_table_flags(command, "duplicates.png")
    command.add_argument("--threshold", type=float, default=0.98, help="least similarity, up to 1 (default: 0.98)")
    command.add_argument("--out", default=Usual("duplicates.csv"), help="the groups (default: duplicates.csv)")
    return command


def main(argv: list[str] | None = None) -> int:
    """Group images that are linked by similarities of at least the threshold: the cosine of their vectors, from which
    the mean of all is taken away, so that what all images share does not count."""
    flags = parser().parse_args(argv)
    if not 0 < flags.threshold <= 1:
        raise UserError(f"--threshold {flags.threshold}: give a similarity above 0, up to 1.")
    check_out(flags, sheet=(".png",), out=(".csv",))
    sklearn()  # scipy comes with it
    found = read_embeddings(Path(flags.table))
    vectors = found.vectors - found.vectors.mean(0)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    groups = sorted(linked(vectors, flags.threshold), key=len, reverse=True)
    lines: list[list[object]] = [["group", "name", "split", "class", "similarity"]]
    strips = []
    for number, rows in enumerate(groups, 1):
        alike = vectors[rows] @ vectors[rows[0]]
        for row, one in zip(rows.tolist(), alike.tolist(), strict=True):
            lines.append([number, found.names[row], found.splits[row], found.classes[row], f"{one:.4f}"])
        if len(strips) < STRIPS:
            cells = [Cell(int(r), (f"{s:.3f}", str(found.names[r]))) for r, s in zip(rows, alike, strict=True)][:CELLS]
            strips.append((f"group {number}: {len(rows)} images", cells))
    write_csv(Path(flags.out), lines)
    images = sum(map(len, groups))
    print(f"{len(groups):,} groups at {flags.threshold:g}, {images:,} of {len(found):,} images; {flags.out}")
    for title, cells in strips[:5]:
        print(printable(f"  {title}: {', '.join(str(found.names[cell.row]) for cell in cells[:3])}"))
    if groups and len(groups[0]) > MOST * len(found):
        print(f"note: the largest group holds {len(groups[0]) / len(found):.0%} of all; give a higher --threshold")
    write_sheet(found, strips, flags)
    return 0


def linked(vectors: np.ndarray, threshold: float) -> Iterator[np.ndarray]:
    """Rows of each group of two or more of (N, D) unit vectors. Never more than ELEMENTS similarities at once."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    group, count = np.arange(len(vectors)), max(1, ELEMENTS // len(vectors))
    for start in range(0, len(vectors), count):
        close = vectors[start : start + count] @ vectors[start:].T >= threshold  # those before were compared before
        first, second = (part + start for part in np.nonzero(close))
        first, second = group[first], group[second]
        if (first != second).any():
            shape = (len(vectors), len(vectors))
            pairs = coo_matrix((np.ones(len(first), bool), (first, second)), shape)
            group = connected_components(pairs, directed=False)[1][group]
    order = np.argsort(group, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        if len(rows) > 1:
            yield rows


if __name__ == "__main__":
    run_command("tools.duplicates", main)
