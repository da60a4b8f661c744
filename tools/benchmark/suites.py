"""What is measured where the user names nothing: three kinds of work, on images of known size."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from saccade.base.errors import UserError
from saccade.losses.recipe import NORMALISATION
from saccade.losses.registry import find_method
from saccade.pipelines.data import open_data
from saccade.pipelines.operations import Blur, Grey, Jitter
from saccade.pipelines.sources import ArraySource, FolderSource, Source
from saccade.pipelines.views import Crop, View, Views

SUITES = ("cifar", "photos", "multicrop")


@dataclass(frozen=True)
class Work:
    """A recipe over a source. data: what the rows call the images; is_decoded_once: a row of its own is for images that
    were decoded before it is timed."""

    recipe_name: str
    recipe: Views
    data: str
    source: Source
    batch_size: int
    betons: dict[str, Source] = field(default_factory=dict)  # the same images as .beton by format, for ffcv
    is_decoded_once: bool = False

    @property
    def image_size(self) -> int:
        return max(view.size for view in self.recipe)


def build_suite(
    name: str,
    scratch: Path,
    batch_size: int | None,
    image_size: int | None,
    quick: bool,
    copies: int = 6,
    data: str | None = None,
) -> Work:
    """One of SUITES: CIFAR-10 to 2 x 32 px (S-TEC's recipe), photos to 2 x 224, photos to 2 x 224 + 6 x 96.

    copies: how often each of the photos is in the set, so that an epoch is long enough; once for `quick`.
    data: real images (photos: a folder); without it made-up ones of the same size, called synthetic.
    """
    if name == "cifar":
        recipe = find_method("stec").recipe("cifar10", image_size).views
        source = open_data(data)[0] if data else noise(25_000, 32)
        return Work(f"cifar10 {describe(recipe)}", recipe, source.name, source, batch_size or (128 if quick else 512))
    recipe = photo_recipe(image_size or 224, crops=6 if name == "multicrop" else 0)
    source = photos(scratch, 1 if quick else copies, data)
    return Work(
        f"{name} {describe(recipe)}",
        recipe,
        source.name,
        source,
        batch_size or (16 if quick else 64),
        as_betons(source, scratch),
        is_decoded_once=True,
    )


def photo_recipe(size: int, crops: int = 0) -> Views:
    """MoCo v2's two views (crop 0.2-1, jitter, grey, blur), and SwAV's small ones where `crops` are wanted."""
    operations = (Jitter(0.4, 0.4, 0.4, 0.1), Grey(0.2), Blur(0.5, (0.1, 2.0)))
    base = View("view", size, Crop((0.2, 1.0)), operations=operations)
    small = replace(base, name="small", size=round(size * 96 / 224), crop=Crop((0.05, 0.2)))
    return Views(base.times(2) + (small.times(crops) if crops else ()), *NORMALISATION["imagenet"])


def describe(recipe: Views) -> str:
    """E.g. "2x224+6x96"."""
    sizes = [view.size for view in recipe]
    return "+".join(f"{sizes.count(s)}x{s}" for s in dict.fromkeys(sizes))


def noise(count: int, size: int, classes: int = 10) -> ArraySource:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ArraySource(f"synthetic {size}x{size}", images, rng.integers(0, classes, count))


def photos(scratch: Path, copies: int, data: str | None = None) -> FolderSource:
    """A folder's JPEGs, each `copies` times; without `data` 108 synthetic ones of 512x384."""
    folder = scratch / f"photos{copies}"
    if not folder.exists():
        for k, encoded in enumerate(_jpegs(Path(data)) if data else _synthetic_jpegs(108)):
            for copy in range(copies):
                path = folder / f"class{k % 6}" / f"{k:03d}-{copy}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded)
    source = FolderSource(folder)
    source.name = f"photos of {data}" if data else "synthetic photos 512x384"
    return source


def _jpegs(folder: Path) -> list[bytes]:
    found = FolderSource(folder).files if folder.is_dir() else []
    files = [file for file in found if file.suffix.lower() in (".jpg", ".jpeg")]
    if not files:
        raise UserError(f"--photos {folder}: a folder with JPEG files is needed.")
    return [file.read_bytes() for file in files]


def _synthetic_jpegs(count: int) -> list[bytes]:
    """About 60 kB each, as a photo of this size has."""
    rng, encoded = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize(
            (512, 384), Image.Resampling.BICUBIC
        )
        grain = rng.integers(-12, 13, (384, 512, 1))
        buffer = io.BytesIO()
        Image.fromarray((np.asarray(coarse).astype(int) + grain).clip(0, 255).astype(np.uint8)).save(
            buffer, "JPEG", quality=88
        )
        encoded.append(buffer.getvalue())
    return encoded


def as_betons(source: FolderSource, scratch: Path) -> dict[str, Source]:
    """The folder as .beton, its JPEGs kept and as raw pixels; what needs a package that is missing is left out."""
    from saccade.tools.convert import main as convert

    made = {}
    for form, flags in {"jpg": [], "raw": ["--store", "raw"]}.items():
        target, told = scratch / f"{source.folder.name}-{form}.beton", io.StringIO()
        try:
            if not target.exists():
                with redirect_stdout(told), redirect_stderr(told):
                    convert([str(source.folder), str(target), *flags])
            made[form] = open_data(str(target))[0]
        except (UserError, ImportError):
            continue
    return made
