"""python -m tools.parity: do executors show equal views? Pixels against `reference`, draws against torchvision."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.base.machine import git_commit, versions
from saccade.base.program import command_parser
from saccade.pipelines.build import build_pipeline, choose_executor, dali_installed
from saccade.pipelines.data import open_data
from saccade.pipelines.draw import ViewParams, draw
from saccade.pipelines.embedded import textures
from saccade.pipelines.operations.registry import find_operation
from saccade.pipelines.order import Order
from saccade.pipelines.pipeline import Batch
from saccade.pipelines.sources import ArraySource, FolderSource, Source
from saccade.pipelines.views import View, Views
from saccade.runs.pictures import save_png
from saccade.tools.parity_cases import cases_of, method_recipes, operations, pil_has, tolerance
from saccade.tools.parity_draws import SIGNIFICANT, DrawTest, compare_draws

_SMALL, _PHOTO = 32, 224  # pixels of the views of single operations, for resident and for photos


@dataclass(frozen=True)
class Row:
    """One executor and operation. mean, largest: absolute pixel difference to reference, 0 to 255."""

    executor: str
    operation: str
    mean: float
    largest: float
    allowed_mean: float
    allowed_largest: float
    reason: str

    @property
    def excess(self) -> float:
        """How much of the tolerance is used; above 1 it is exceeded."""
        return max(self.mean / self.allowed_mean, self.largest / self.allowed_largest)


@dataclass(frozen=True)
class Worst:
    """The view that is furthest off, as (3, S, S) in [0, 1]."""

    title: str
    expected: Tensor
    shown: Tensor


Render = Callable[[Source, Views], Batch]


EXAMPLES = {
    "": "on photos made from the embedded textures",
    "--data PHOTOS --picture worst.png": "on yours, with the worst view beside the reference's",
}


def parser() -> argparse.ArgumentParser:
    command = command_parser("python -m tools.parity", main.__doc__ or "", EXAMPLES)
    command.add_argument(
        "--data", help="a folder of photos or tar shards (default: photos made from the embedded textures)"
    )
    command.add_argument(
        "--operation",
        action="append",
        default=[],
        metavar="NAME",
        help="compare this operation alone: its name, or path/to/file.py:Class of your own (may be given again)",
    )
    command.add_argument(
        "--executor",
        action="append",
        default=[],
        metavar="NAME",
        help="compare this executor alone: its name, or path/to/file.py:Class of your own (may be given again)",
    )
    command.add_argument("--images", type=int, default=8, help="how many images are compared (default: 8)")
    command.add_argument("--json", metavar="FILE", help="also write the table as JSON")
    command.add_argument("--picture", metavar="FILE", help="also draw the worst view and its difference map")
    return command


def main(argv: list[str] | None = None) -> int:
    """Compares every executor with `reference` from the same parameters, and the drawn parameters with torchvision's.
    The columns are mean / largest difference on a scale of 0 to 255; the exit code is 1 if a tolerance is exceeded."""
    flags = parser().parse_args(argv)
    if flags.images < 1:
        raise UserError(f"--images {flags.images} compares nothing; give 1 or more.")
    with tempfile.TemporaryDirectory() as folder:
        sources = make_sources(Path(folder), flags.data, flags.images)
        if flags.operation:
            small, photos = (cases_of(map(find_operation, flags.operation), size) for size in (_SMALL, _PHOTO))
        else:
            small = {**operations(_SMALL), **method_recipes(1, 64)}
            photos = {**operations(_PHOTO), **method_recipes(65, 1024)}
        chosen = [named_executor(name, sources) for name in flags.executor]
        rows, worst = compare(sources, small, photos, {name: (kind, render) for name, kind, render in chosen})
    tests = [] if flags.operation or flags.executor else compare_draws()
    show(rows, tests)
    if flags.json:
        content = {
            "data": flags.data or "embedded",
            "images": flags.images,
            "versions": versions(),
            "commit": git_commit(),
            "pixels": [asdict(row) for row in rows],
            "draws": [asdict(test) for test in tests],
        }
        write_atomically(Path(flags.json), lambda f: f.write((json.dumps(content, indent=1) + "\n").encode()))
    if flags.picture and worst:
        save_png(picture(worst), Path(flags.picture))
    failed = [f"{row.executor} {row.operation}" for row in rows if row.excess > 1] + [
        t.parameter for t in tests if t.p < SIGNIFICANT
    ]
    print(
        f"outside of tolerance: {', '.join(failed)}"
        if failed
        else "all within tolerance (docs/parity.md says why it is what it is)"
    )
    return 1 if failed else 0


# --- what is compared -------------------------------------------------------------------------------------------------


def make_sources(folder: Path, data: str | None, images: int) -> dict[str, Source]:
    """kind -> the same images: `small` as an array, `photos` as files, `beton`."""
    if data is None:
        _make_photos(folder / "photos", images)
        small = textures("test")[0][:images]
    else:
        given = open_data(data)[0]
        if not given.reader.gives_files:
            raise UserError(
                f"--data {data}: a folder of image files or tar shards is needed, {given.name} holds pixels."
            )
        small = _copy_photos(given, folder / "photos", images)
    sources = {"small": ArraySource("small", small), "photos": FolderSource(folder / "photos")}
    from saccade.tools.convert import main as convert

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        convert([str(folder / "photos"), str(folder / "photos.beton")])
    return {**sources, "beton": open_data(str(folder / "photos.beton"))[0]}


def _make_photos(folder: Path, images: int) -> None:
    """JPEGs of 4:2:0 colour with structure of every size, the last one grey: textures on textures."""
    folder.mkdir()
    tiles = textures("test")[0]
    for k in range(images):
        rows = [np.concatenate(list(tiles[100 * k + 13 * row : 100 * k + 13 * row + 13]), axis=1) for row in range(10)]
        fine = np.concatenate(rows).astype(np.float32)
        coarse = Image.fromarray(tiles[k]).resize(fine.shape[1::-1], Image.Resampling.BICUBIC)
        photo = Image.fromarray((0.35 * fine + 0.65 * np.asarray(coarse)).round().astype(np.uint8))
        photo = photo if k % 2 else photo.transpose(Image.Transpose.ROTATE_90)
        (photo.convert("L") if k == images - 1 else photo).save(folder / f"{k:03}.jpg", quality=90)


def _copy_photos(source: Source, folder: Path, images: int) -> np.ndarray:
    """The encoded files of evenly spread images, and those images as (N, 32, 32, 3)."""
    folder.mkdir()
    small = []
    for k, i in enumerate(np.unique(np.linspace(0, len(source) - 1, images).astype(int))):
        pixels, used = source.read_or_replace(int(i))
        suffix, data = Path(source.name_of(used)).suffix or ".jpg", source.encoded(used)
        if data is None:
            raise UserError(f"{source.name} holds pixels; parity needs files of photos.")
        (folder / f"{k:03}{suffix}").write_bytes(data)
        small.append(np.asarray(Image.fromarray(pixels).resize((_SMALL, _SMALL), Image.Resampling.BOX)))
    return np.stack(small)


def executors() -> dict[str, tuple[str, Render]]:
    """name -> (kind of source, how it renders); those of the GPU where there is one."""

    def dali_cuts(source: Source, recipe: Views) -> Batch:
        from saccade.pipelines.dali import DaliPipeline

        return _first(DaliPipeline(source, recipe, _order(source), threads=2, cuts=True))

    found: dict[str, tuple[str, Render]] = {
        "resident": ("small", _built("resident")),
        "threads": ("photos", _built("threads")),
        "ffcv": ("beton", _built("ffcv")),
        "pil": ("photos", render_with_pil),
    }
    if dali_installed():
        found |= {"dali": ("photos", _built("dali")), "dali cuts": ("photos", dali_cuts)}
    if torch.cuda.is_available():
        found |= {
            "resident cuda": ("small", _built("resident", "cuda")),
            "threads cuda": ("photos", _built("threads", "cuda")),
            "ffcv cuda": ("beton", _built("ffcv", "cuda")),
        }
        found |= {"dali cuda": ("photos", _built("dali", "cuda"))} if dali_installed() else {}
    return found


def _built(executor: str, device: str = "cpu") -> Render:
    return lambda source, recipe: _first(build_pipeline(source, recipe, _order(source), executor, device, workers=2))


def named_executor(name: str, sources: dict[str, Source]) -> tuple[str, str, Render]:
    """(its name, the kind of source that it is compared on, how it renders) of an executor of ours or of the user's."""
    known = executors()
    if name in known:
        return name, *known[name]
    refusals = []
    for kind in ("photos", "beton", "small"):
        try:
            choose_executor(name, sources[kind])
            return name.rpartition(":")[2], kind, _built(name)
        except UserError as error:
            refusals.append(error)
    raise refusals[0]


def _order(source: Source) -> Order:
    return Order(len(source), len(source), shuffle=False)


def _first(pipeline) -> Batch:
    with pipeline:
        return next(iter(pipeline))


def compare(
    sources: dict[str, Source],
    small: dict[str, Views],
    photos: dict[str, Views],
    chosen: dict[str, tuple[str, Render]] | None = None,
) -> tuple[list[Row], Worst | None]:
    """A row for each executor and operation, and the view that is furthest off (in terms of its tolerance)."""
    rows, worst, most = [], None, -1.0
    expected: dict[tuple[str, str], Batch] = {}
    for executor, (kind, render) in (chosen or executors()).items():
        source = sources[kind]
        for operation, recipe in (small if kind == "small" else photos).items():
            if executor == "pil" and not all(pil_has(o) for view in recipe for o in view.operations):
                continue
            if (kind, operation) not in expected:
                expected[kind, operation] = _first(
                    build_pipeline(source, recipe, _order(source), "reference", workers=0)
                )
            judge = expected[kind, operation]
            row, found = _compare(executor, operation, recipe, judge, render(source, recipe))
            rows.append(row)
            if executor != "pil" and row.excess > most:
                worst, most = found, row.excess
    return rows, worst


def _compare(executor: str, operation: str, recipe: Views, judge: Batch, batch: Batch) -> tuple[Row, Worst | None]:
    std, mean = (torch.tensor(v)[:, None, None] for v in (recipe.std, recipe.mean))
    total, count, largest, worst = 0.0, 0, -1.0, None
    for view in recipe:
        ours, theirs = (b.views[view.name].float().cpu() * std + mean for b in (batch, judge))
        same = all(
            torch.equal(batch.params[view.name].columns()[name].cpu(), value)
            for name, value in judge.params[view.name].columns().items()
        )
        if not same:
            raise UserError(f"{executor} drew other parameters than reference for {operation}; please report it.")
        difference = (ours - theirs).abs() * 255
        total, count = total + float(difference.double().sum()), count + difference.numel()
        per_image = difference.amax(dim=(1, 2, 3))
        if float(per_image.max()) > largest:
            largest, n = float(per_image.max()), int(per_image.argmax())
            worst = Worst(f"{executor}, {operation}, view {view.name}, image {n}", theirs[n], ours[n])
    allowed = tolerance(executor, operation, recipe)
    return Row(executor, operation, total / count, largest, allowed.mean, allowed.largest, allowed.reason), worst


def render_with_pil(source: Source, recipe: Views) -> Batch:
    """The chain the papers ran: PIL images of 8 bits between all operations, PIL's blur, from our parameters."""
    images = [Image.fromarray(source.read_or_replace(i)[0]) for i in range(len(source))]
    sizes = torch.tensor([image.size[::-1] for image in images])
    index = torch.arange(len(source))
    params = draw(recipe, 0, 0, index, sizes)
    views = {
        view.name: torch.stack(
            [_with_pil(image, view, params[view.name][k : k + 1], recipe) for k, image in enumerate(images)]
        )
        for view in recipe
    }
    return Batch(views, params, index, None)


def _with_pil(photo: Image.Image, view: View, params: ViewParams, recipe: Views) -> Tensor:
    interpolation = F.InterpolationMode(recipe.geometry_of(view).crop.interpolation)
    top, left, height, width = params.box[0].tolist()
    image: Any = F.resized_crop(photo, top, left, height, width, [view.size, view.size], interpolation)  # type: ignore
    image = F.hflip(image) if params.flip else image
    for key, operation in view.keyed.items():
        image = operation.with_pil(image, params.values(key, 0)) if params.chosen(key) else image
    return F.normalize(F.to_tensor(image), list(recipe.mean), list(recipe.std))


# --- what is shown ----------------------------------------------------------------------------------------------------


def show(rows: list[Row], tests: list[DrawTest]) -> None:
    """The two tables; a star marks what is outside of its tolerance."""
    names = list(dict.fromkeys(row.executor for row in rows))
    cells = {
        (row.operation, row.executor): f"{row.mean:.3f}/{row.largest:.1f}{'*' if row.excess > 1 else ' '}"
        for row in rows
    }
    whole = any("/" in row.operation for row in rows)
    for title, kind in (("operation, alone", False), *((("method/recipe, whole", True),) if whole else ())):
        print(f"{title:<34}" + "".join(f"{name:>16}" for name in names))
        for operation in dict.fromkeys(row.operation for row in rows if ("/" in row.operation) == kind):
            print(f"{operation:<34}" + "".join(f"{cells.get((operation, name), '-'):>16}" for name in names))
        print()
    reasons = dict.fromkeys(
        (row.executor, f"mean {row.allowed_mean:g}, largest {row.allowed_largest:g}: {row.reason}") for row in rows
    )
    print("allowed  " + "\n         ".join(f"{executor}: {text}" for executor, text in reasons))
    if not tests:
        return print()
    print(f"\n{'draws against torchvision':<34}{'test':>20}{'statistic':>12}{'p':>10}")
    for test in tests:
        print(
            f"{test.parameter:<34}{test.test:>20}{test.statistic:>12.4f}{test.p:>10.3f}"
            f"{'*' if test.p < SIGNIFICANT else ''}"
        )
    print()


def picture(worst: Worst, cell: int = 336) -> Image.Image:
    """reference, executor and their difference, stretched so that the largest is white."""
    difference = (worst.expected - worst.shown).abs().amax(0)
    stretched = (difference / difference.max().clamp(min=1e-6)).expand(3, -1, -1)
    sheet = Image.new("RGB", (3 * (cell + 8) + 8, cell + 44), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    pen.text((8, 4), worst.title, fill="black", font=font)
    titles = ("reference", worst.title.split(",")[0], f"difference, white = {255 * float(difference.max()):.2f} of 255")
    for k, (title, image) in enumerate(zip(titles, (worst.expected, worst.shown, stretched), strict=True)):
        pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        sheet.paste(Image.fromarray(pixels).resize((cell, cell), Image.Resampling.NEAREST), (8 + k * (cell + 8), 40))
        pen.text((8 + k * (cell + 8), 22), title, fill="black", font=font)
    return sheet


if __name__ == "__main__":
    run_command("tools.parity", main)
