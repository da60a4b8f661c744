"""python -m tools.inspect DATA: what is in a data set, before anything is trained on it."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.machine import available_cpus
from saccade.base.program import command_parser
from saccade.base.text import printable
from saccade.evaluation.options import Usual, add_overwrite_flag, check_out
from saccade.pipelines.sources import BadImage, Source
from saccade.pipelines.sources.decode import formats
from saccade.pipelines.sources.open import open_dataset
from saccade.pipelines.sources.options import add_flags, options_of
from saccade.runs.pictures import save_png, thumbnail

EXAMPLES = {
    "PHOTOS": "counts, sizes, types, duplicates, and a sheet of thumbnails in inspect.png",
    "PHOTOS --labels labels.csv --json": "as one JSON object",
    "shards/ --images 1000": "every image counted, 1000 of them opened",
}
_THUMBNAILS, _SIDE, _BARS, _WIDTH = (
    64,
    96,
    40,
    40,
)  # pictures on the sheet and their pixels; classes and columns of bars


def parser() -> argparse.ArgumentParser:
    command = command_parser("python -m tools.inspect", main.__doc__ or "", EXAMPLES)
    command.add_argument("data", metavar="DATA", help="as --data of saccade train takes it")
    add_flags(command)
    command.add_argument("--data-dir", default="data", help="where cifar10, cifar100 and stl10 lie (default: data)")
    command.add_argument("--split", help="look at this split only")
    command.add_argument("--images", type=int, default=10_000, help="images opened, evenly spread (default: 10000)")
    command.add_argument("--out", default=Usual("inspect.png"), help="the sheet of thumbnails (default: inspect.png)")
    add_overwrite_flag(command)
    command.add_argument("--json", action="store_true", help="print one JSON object instead")
    return command


def main(argv: list[str] | None = None) -> int:
    """What is in DATA: counts by class, sizes, types, modes, values, duplicates, unreadable images, a sheet of 64."""
    flags = parser().parse_args(argv)
    if flags.images < 1:
        raise UserError(f"--images {flags.images} looks at nothing; give 1 or more.")
    check_out(flags, out=(".png",))
    data = open_dataset(flags.data, replace(options_of(flags), data_dir=flags.data_dir), flags.split)
    found = {name: look(source, flags.images) for name, source in data.splits.items()}
    save_png(sheet(next(iter(data.splits.values()))), Path(flags.out))
    if flags.json:
        print(json.dumps({"data": flags.data, "kind": data.kind, "splits": found, "sheet": flags.out}))
        return 0
    for name, source in data.splits.items():
        print(printable(f"{name}: {source.describe()}"))
        source.account.show()
        print("\n".join(map(printable, lines(found[name]))))
    print(f"{flags.out}: {min(_THUMBNAILS, len(next(iter(data.splits.values()))))} of the images; crossed: unreadable")
    return 0


def look(source: Source, most: int) -> dict[str, Any]:
    """Plain values: what `most` of the images are, and what is known of all."""
    numbers = np.unique(np.linspace(0, len(source) - 1, most).astype(int)).tolist()
    with ThreadPoolExecutor(available_cpus()) as pool:
        seen = list(pool.map(lambda i: one(source, i), numbers))
    good = [image for image in seen if "unreadable" not in image]
    alike = defaultdict(list)
    for image in good:
        alike[image["hash"]].append(image["name"])
    copies = [names for names in alike.values() if len(names) > 1]
    labels = source.labels if source.labels is not None else np.full(len(source), -1)
    counts = np.bincount(labels[labels >= 0], minlength=len(source.classes or ()))
    sides = np.array([(image["height"], image["width"]) for image in good] or [(0, 0)])
    return {
        "images": len(source),
        "opened": len(seen),
        "unlabelled": int((labels < 0).sum()),
        "classes": {source.classes[k] if source.classes else str(k): int(n) for k, n in enumerate(counts)},
        "account": source.account.to_json(),
        "types": dict(Counter(image["type"] for image in good).most_common()),
        "modes": dict(Counter(image["mode"] for image in good).most_common()),
        "height": [int(f(sides[:, 0])) for f in (np.min, np.median, np.max)],
        "width": [int(f(sides[:, 1])) for f in (np.min, np.median, np.max)],
        "values": [min((i["low"] for i in good), default=0), max((i["high"] for i in good), default=0)],
        "mean": [round(float(v), 4) for v in np.mean([i["mean"] for i in good] or [[0.0] * 3], axis=0)],
        "duplicates": {"images": sum(len(names) - 1 for names in copies), "first": copies[:5]},
        "unreadable": {image["name"]: image["unreadable"] for image in seen if "unreadable" in image},
    }


def one(source: Source, i: int) -> dict[str, Any]:
    """What image i is; "unreadable": why it cannot be used."""
    try:
        stored = source.stored(i)
        kind, mode = ("pixels", "RGB") if isinstance(stored, np.ndarray) else _kind(stored)
        mode = mode if source.channels == 3 else f"{source.channels} channels"
        pixels = source.read(i)
    except BadImage as reason:
        return {"name": source.name_of(i), "unreadable": str(reason)}
    return {
        "name": source.name_of(i),
        "hash": hashlib.sha256(pixels.tobytes() + bytes(str(pixels.shape), "ascii")).hexdigest(),
        "type": kind,
        "mode": mode,
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "low": int(pixels.min()),
        "high": int(pixels.max()),
        "mean": (pixels.mean(axis=(0, 1)) / 255).tolist(),
    }


def _kind(data: bytes) -> tuple[str, str]:
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            return image.format or "unknown", image.mode
    except Exception as error:  # PIL raises anything on a broken file
        raise BadImage(type(error).__name__) from error


def lines(found: dict[str, Any]) -> list[str]:
    """The report as text."""

    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"

    told = [
        f"    opened  {found['opened'] - len(found['unreadable']):,} images",
        f"     types  {listed(found['types'])}; modes {listed(found['modes'])}",
        "      size  width {} to {}, median {}; height {} to {}, median {}".format(
            *(found[side][k] for side in ("width", "height") for k in (0, 2, 1))
        ),
        f"    values  {found['values'][0]} to {found['values'][1]}, mean {found['mean']}",
    ]
    copies = found["duplicates"]
    if copies["images"]:
        first, second = copies["first"][0][:2]
        told.append(f"duplicates  {copies['images']:,} images are pixel by pixel another, such as {first} and {second}")
    if bad := found["unreadable"]:
        few = "; ".join(f"{name} ({why})" for name, why in list(bad.items())[:3])
        told.append(f"unreadable  {len(bad):,} images: {few}{' ...' if len(bad) > 3 else ''}")
    most = max([*found["classes"].values(), 1])
    if found["classes"] and found["unlabelled"]:
        told.append(f" unlabelled  {found['unlabelled']:,} images")
    for name, count in list(found["classes"].items())[:_BARS]:
        told.append(f"{name[:20]:>20} {count:>8,}  {'#' * round(_WIDTH * count / most)}")
    if len(found["classes"]) > _BARS:
        told.append(f"{'...':>20} {len(found['classes']) - _BARS} more classes")
    return told


def sheet(source: Source) -> Image.Image:
    """Evenly spread thumbnails, eight a row, whole images on grey; a cross stands for an unreadable one."""
    numbers = np.unique(np.linspace(0, len(source) - 1, _THUMBNAILS).astype(int)).tolist()
    rows, step = -(-len(numbers) // 8), _SIDE + 4
    canvas = Image.new("RGB", (8 * step + 4, rows * step + 4), (128, 128, 128))
    pen = ImageDraw.Draw(canvas)
    for k, i in enumerate(numbers):
        try:
            image = thumbnail(source.read(i), _SIDE)
        except BadImage:
            x, y = k % 8 * step + 4, k // 8 * step + 4
            pen.line((x, y, x + _SIDE, y + _SIDE), fill=(90, 90, 90))
            pen.line((x, y + _SIDE, x + _SIDE, y), fill=(90, 90, 90))
            continue
        corner = (k % 8 * step + 4 + (_SIDE - image.width) // 2, k // 8 * step + 4 + (_SIDE - image.height) // 2)
        canvas.paste(image, corner)
    return canvas


if __name__ == "__main__":
    run_command("tools.inspect", main)
