"""What neighbours, duplicates and cluster share: a table of vectors, the pictures behind its names, sheets of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from saccade.base.errors import UserError
from saccade.base.text import printable
from saccade.evaluation.embeddings import Embeddings
from saccade.evaluation.options import Usual, add_overwrite_flag
from saccade.pipelines.sources import BadImage
from saccade.pipelines.sources.open import open_dataset
from saccade.pipelines.sources.options import Options
from saccade.runs.pictures import save_png, thumbnail, write
from saccade.runs.record import check_local

PLAIN, SAME, OTHER = (120, 120, 120), (0, 114, 178), (213, 94, 0)  # frames; told apart by colour-blind eyes too
SIDE, _GAP, _TITLE, _LINE, _LETTERS, _FRAME = 112, 12, 26, 14, 18, 3


@dataclass(frozen=True)
class Cell:
    """A picture by its row in the table, lines below it, the colour of its frame; picture: instead of the row's."""

    row: int
    caption: tuple[str, ...]
    frame: tuple[int, int, int] = PLAIN
    picture: Image.Image | None = None


def add_table_flags(command: argparse.ArgumentParser, sheet: str) -> None:
    command.add_argument("--in", dest="table", required=True, metavar="FILE", help="what saccade embed has written")
    command.add_argument("--data", help="where the pictures are, for the sheet (default: as a .parquet says)")
    command.add_argument("--data-dir", default="data", help="where cifar10, cifar100 and stl10 lie (default: data)")
    command.add_argument("--sheet", default=Usual(sheet), help=f"the sheet of pictures (default: {sheet})")
    add_overwrite_flag(command)


def write_sheet(found: Embeddings, strips: Sequence[tuple[str, Sequence[Cell]]], flags: argparse.Namespace) -> None:
    """The strips as a PNG, or a line that says why there is none."""
    place = flags.data or found.made.get("data")
    if not strips:
        return
    if not isinstance(place, str):
        print(f"no sheet of pictures: {found.path.name} does not say where they are; give --data")
        return
    if not flags.data:
        check_local(place, "--data", found.path)
    wanted = {cell.row for _, cells in strips for cell in cells if cell.picture is None}
    pictures = opened(found, wanted, place, flags.data_dir)
    save_png(drawn(strips, pictures), Path(flags.sheet))
    missing = len(wanted) - len(pictures)
    print(printable(f"{flags.sheet}: {len(strips)} rows" + (f"; {missing} not found in {place}" if missing else "")))


def opened(found: Embeddings, rows: Iterable[int], place: str, data_dir: str) -> Mapping[int, Image.Image]:
    """The pictures of these rows, small; those that are not there, or cannot be read, are left out."""
    wanted = {(str(found.splits[row]), str(found.names[row])): row for row in rows}
    splits = {split for split, _ in wanted}
    pictures = {}
    for split, source in open_dataset(place, Options(data_dir=data_dir)).splits.items():
        for i in range(len(source)) if split in splits or splits == {""} else ():
            key = printable(source.key_of(i))
            row = wanted.get((split, key), wanted.get(("", key)))
            if row is not None and row not in pictures:
                try:
                    pictures[row] = thumbnail(source.read(i), SIDE)
                except BadImage:
                    continue
    return pictures


def drawn(strips: Sequence[tuple[str, Sequence[Cell]]], pictures: Mapping[int, Image.Image]) -> Image.Image:
    """Strip below strip: a title, then its cells from left to right."""
    lines = max((len(cell.caption) for _, cells in strips for cell in cells), default=0)
    height = _TITLE + SIDE + 2 * _FRAME + lines * _LINE + _GAP
    columns, step = max(len(cells) for _, cells in strips), SIDE + 2 * _FRAME + _GAP
    width = max(columns * step + _GAP, 2 * _GAP + max(8 * len(title) for title, _ in strips))
    sheet = Image.new("RGB", (width, len(strips) * height + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (title, cells) in enumerate(strips):
        y = k * height + _GAP // 2
        write(pen, (_GAP, y + 4), title, 14)
        for column, cell in enumerate(cells):
            x, top = _GAP + column * step, y + _TITLE
            pen.rectangle((x, top, x + SIDE + 2 * _FRAME - 1, top + SIDE + 2 * _FRAME - 1), fill=cell.frame)
            pen.rectangle((x + _FRAME, top + _FRAME, x + _FRAME + SIDE - 1, top + _FRAME + SIDE - 1), fill="white")
            picture = cell.picture or pictures.get(cell.row)
            if picture:
                free = (SIDE - picture.width) // 2, (SIDE - picture.height) // 2
                sheet.paste(picture, (x + _FRAME + free[0], top + _FRAME + free[1]))
            for number, line in enumerate(cell.caption):
                under = top + SIDE + 2 * _FRAME + number * _LINE + 2
                write(pen, (x, under), short(line), 11, fill=(60, 60, 60))
    return sheet


def short(text: str) -> str:
    """Its end: what tells files of one folder apart."""
    return text if len(text) <= _LETTERS else "..." + text[3 - _LETTERS :]


def sklearn() -> Any:
    """scikit-learn, or a sentence."""
    try:
        import sklearn.cluster
        import sklearn.metrics
    except ImportError as error:
        raise UserError("this needs scikit-learn; pip install 'saccade[answers]'.") from error
    return sklearn
