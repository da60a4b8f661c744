"""python -m tools.neighbours QUERY... --in x.parquet: the images that are most like these."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.program import command_parser
from saccade.base.text import did_you_mean, printable
from saccade.evaluation.embeddings import Embeddings, read_embeddings
from saccade.evaluation.evaluate import Settings
from saccade.evaluation.features import extract
from saccade.evaluation.knn import neighbours
from saccade.evaluation.options import check_numbers, check_out
from saccade.evaluation.subject import open_subject
from saccade.models.backbone import shown_share
from saccade.pipelines.sources import ArraySource, BadImage
from saccade.pipelines.sources.decode import decode_bytes
from saccade.runs.pictures import thumbnail
from saccade.runs.record import check_local
from saccade.tools.answers import OTHER, PLAIN, SAME, SIDE, Cell, add_table_flags, write_sheet

EXAMPLES = {
    "cat/004.jpg dog/011.jpg --in photos.parquet": "the ten nearest of each, as a table and a sheet of pictures",
    "~/new.jpg --in photos.parquet --from outputs/RUN --k 5": "of a picture that is not in the table",
}


@dataclass(frozen=True)
class Query:
    """row: in the table, or -1; vector (D,); picture: where it is none of the table's."""

    name: str
    row: int
    vector: np.ndarray
    kind: str = ""
    picture: Image.Image | None = None


def parser() -> argparse.ArgumentParser:
    command = command_parser("python -m tools.neighbours", main.__doc__ or "", EXAMPLES)
    command.add_argument("query", nargs="+", metavar="QUERY", help="names of the table, or picture files")
    add_table_flags(command, "neighbours.png")
    command.add_argument("--k", type=int, default=10, help="neighbours of each (default: 10)")
    command.add_argument(
        "--from", dest="start", metavar="RUN", help="the backbone, for picture files (default: as a .parquet says)"
    )
    return command


def main(argv: list[str] | None = None) -> int:
    """The nearest images by the cosine of their vectors, as a table and as a sheet of pictures: blue frames are of the
    query's class, orange ones of another, grey where there are no labels."""
    flags = parser().parse_args(argv)
    check_numbers(flags, ("k",), least=1)
    check_out(flags, sheet=(".png",))
    found = read_embeddings(Path(flags.table))
    queries = [asked(query, found, flags) for query in flags.query]
    k = min(flags.k, len(found) - any(query.row >= 0 for query in queries))
    if k < 1:
        raise UserError(f"--in {flags.table} holds one image, which has no neighbours.")
    vectors = torch.from_numpy(np.stack([query.vector for query in queries]))
    table = torch.from_numpy(np.array(found.vectors))
    near = [torch.cat(part) for part in zip(*neighbours(table, vectors, min(k + 1, len(found))), strict=True)]
    strips, rows = [], [("query", "", "similarity", "class", "name")]
    for query, similarity, index in zip(queries, *near, strict=True):
        others = [(s, i) for s, i in zip(similarity.tolist(), index.tolist(), strict=True) if i != query.row][:k]
        first = Cell(query.row, ("query", query.kind or query.name), (0, 0, 0), query.picture)
        strips.append((query.name, [first, *(cell(found, query, s, i) for s, i in others)]))
        for rank, (s, i) in enumerate(others, 1):
            rows.append((query.name, str(rank), f"{s:.4f}", str(found.classes[i]), str(found.names[i])))
    widths = [max(len(printable(row[c])) for row in rows) for c in range(5)]
    for row in rows:
        print("  ".join(f"{printable(text):<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
    write_sheet(found, strips, flags)
    return 0


def cell(found: Embeddings, query: Query, similarity: float, i: int) -> Cell:
    kind = str(found.classes[i])
    frame = PLAIN if not (kind and query.kind) else SAME if kind == query.kind else OTHER
    return Cell(i, (f"{similarity:.3f}", kind or str(found.names[i])), frame)


def asked(query: str, found: Embeddings, flags: argparse.Namespace) -> Query:
    """A name of the table, else a picture file."""
    rows = np.flatnonzero(found.names == query)
    if len(rows):
        row = int(rows[0])
        return Query(query, row, found.vectors[row], str(found.classes[row]))
    path = Path(query).expanduser()
    if not path.is_file():
        hint = did_you_mean(query, found.names[:100_000].tolist())
        raise UserError(f"{query}: no name in {flags.table}{hint}, nor a picture file.")
    try:
        pixels = decode_bytes(path.read_bytes())
    except (BadImage, OSError) as error:
        raise UserError(f"{query} cannot be read as a picture ({error}).") from error
    return Query(path.name, -1, vector_of(pixels, found, flags), picture=thumbnail(pixels, SIDE))


def vector_of(pixels: np.ndarray, found: Embeddings, flags: argparse.Namespace) -> np.ndarray:
    """(D,) by the backbone that made the table, shown as the table's images were."""
    place, made = flags.start or found.made.get("from"), found.made
    if not isinstance(place, str):
        raise UserError(f"{flags.table} does not say which backbone made it; give --from RUN for a picture file.")
    if not flags.start:
        check_local(place, "--from", found.path)
    subject, settings = open_subject(Path(place).expanduser()), Settings()
    size = made.get("image_size")
    size = size if isinstance(size, int) and size > 0 else subject.image_size
    subject = subject.at(size)
    crop = made.get("crop_fraction")
    crop = crop if isinstance(crop, float | int) and 0 < crop <= 1 else shown_share(size)
    shown = (subject.image_size, subject.mean, subject.std, crop)
    source = ArraySource("query", np.array(pixels[None]))
    interpolation = "bicubic" if made.get("interpolation") == "bicubic" else "bilinear"
    vector = extract(subject.backbone, source, *shown, settings.device, interpolation=interpolation).features[0].numpy()
    if vector.shape != found.vectors[0].shape:
        raise UserError(
            f"{place} gives {len(vector)} numbers, {flags.table} holds {found.vectors.shape[1]}; give --from with the "
            "backbone that made it."
        )
    return vector


if __name__ == "__main__":
    run_command("tools.neighbours", main)
