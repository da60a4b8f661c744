"""python -m tools.cluster --in x.parquet: groups of images of a kind, found without labels."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.files import write_csv
from saccade.base.program import command_parser
from saccade.base.text import printable
from saccade.evaluation.embeddings import Embeddings, read_embeddings
from saccade.evaluation.options import Usual, check_numbers, check_out
from saccade.tools.answers import OTHER, PLAIN, SAME, Cell, add_table_flags, short, sklearn, write_sheet

EXAMPLES = {
    "--in photos.parquet --k 20": "cluster.csv, sizes, and a sheet of the nearest to each centre",
    "--in photos.parquet": "as many clusters as there are classes, and how pure they are",
}
USUAL, STARTS, MANY, CELLS = 20, 4, 100_000, 8


def parser() -> argparse.ArgumentParser:
    command = command_parser("python -m tools.cluster", main.__doc__ or "", EXAMPLES)
    add_table_flags(command, "cluster.png")
    command.add_argument("--k", type=int, help=f"clusters (default: as many as classes, or {USUAL})")
    command.add_argument("--seed", type=int, default=0, help="of the first centres (default: 0)")
    command.add_argument(
        "--out", default=Usual("cluster.csv"), help="name and cluster of each image (default: cluster.csv)"
    )
    return command


def main(argv: list[str] | None = None) -> int:
    """k-means of the vectors at unit length (scikit-learn; in small batches above 100,000 images). Where there are
    labels: purity, the share of images whose class is their cluster's commonest, and NMI, the normalised mutual
    information, which guessing does not raise with many clusters as much."""
    flags = parser().parse_args(argv)
    check_numbers(flags, ("k",), least=2)
    check_numbers(flags, ("seed",), least=0)
    check_out(flags, sheet=(".png",), out=(".csv",))
    library = sklearn()
    found = read_embeddings(Path(flags.table))
    known = found.classes != ""
    k = flags.k or (len(np.unique(found.classes[known])) if known.any() else min(USUAL, len(found)))
    if not 2 <= k <= len(found):
        raise UserError(f"--k {k}: {flags.table} holds {len(found):,} images; give 2 to {len(found):,}.")
    vectors = found.unit()
    kind = library.cluster.MiniBatchKMeans if len(found) > MANY else library.cluster.KMeans
    done = kind(k, n_init=STARTS, random_state=flags.seed).fit(vectors)
    cluster, centres = done.labels_, done.cluster_centers_
    away = distances(vectors, centres[cluster])
    lines: list[list[object]] = [["name", "split", "class", "cluster", "distance"]]
    for row in range(len(found)):
        told = [found.names[row], found.splits[row], found.classes[row]]
        lines.append([*told, int(cluster[row]), f"{away[row]:.4f}"])
    write_csv(Path(flags.out), lines)
    strips, right = described(found, cluster, away, k)
    if known.any():
        nmi = library.metrics.normalized_mutual_info_score(found.classes[known], cluster[known])
        print(f"purity {100 * right / known.sum():.1f} %, NMI {nmi:.3f}, of {int(known.sum()):,} labelled images")
    print(f"{flags.out}: {len(found):,} images in {k} clusters")
    write_sheet(found, strips, flags)
    return 0


def distances(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N,) of each vector to its centre, a part at a time."""
    parts = 1 + len(vectors) // 4096
    pairs = zip(np.array_split(vectors, parts), np.array_split(centres, parts), strict=True)
    return np.concatenate([np.linalg.norm(some - their, axis=1) for some, their in pairs])


def described(found: Embeddings, cluster: np.ndarray, away: np.ndarray, k: int) -> tuple[list, int]:
    """Print a line for each cluster, the largest first; their strips, and how many images are of the commonest class
    of their cluster."""
    strips, right = [], 0
    print(f"{'cluster':>8}{'images':>8}  commonest class")
    for number in np.argsort(-np.bincount(cluster, minlength=k), kind="stable").tolist():
        rows = np.flatnonzero(cluster == number)
        rows = rows[np.argsort(away[rows], kind="stable")]
        kinds = Counter(kind for kind in found.classes[rows].tolist() if kind)
        best, most = next(iter(kinds.most_common(1)), ("", 0))
        right += most
        share = f"{best} ({most / kinds.total():.0%})" if best else ""
        print(printable(f"{number:>8}{len(rows):>8,}  {share}"))
        cells = []
        for row in rows[:CELLS].tolist():
            kind = str(found.classes[row])
            frame = PLAIN if not (best and kind) else SAME if kind == best else OTHER
            cells.append(Cell(row, (short(kind or str(found.names[row])),), frame))
        strips.append((f"cluster {number}: {len(rows)} images" + (f", {share}" if best else ""), cells))
    return strips, right


if __name__ == "__main__":
    run_command("tools.cluster", main)
