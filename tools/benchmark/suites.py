"""What is measured where the user names nothing: three kinds of work, on images of known size."""

from __future__ import annotations

import io
import tarfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from saccade.base.errors import UserError
from saccade.losses.recipe import NORMALISATION
from saccade.losses.registry import find_method
from saccade.pipelines.data import open_data
from saccade.pipelines.sources import ArraySource, Source
from saccade.pipelines.views import Blur, Crop, Jitter, View, Views

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"  # real images beside a developer's checkout
SUITES = ("cifar", "photos", "multicrop")


@dataclass(frozen=True)
class Work:
    """A recipe over a source. data: what the rows call the images."""

    recipe_name: str
    recipe: Views
    data: str
    source: Source
    batch_size: int
    betons: dict[str, Source] = field(default_factory=dict)  # the same images as .beton by format, for ffcv

    @property
    def image_size(self) -> int:
        return max(view.size for view in self.recipe)


def build_suite(
    name: str, scratch: Path, batch_size: int | None, image_size: int | None, quick: bool, copies: int = 6
) -> Work:
    """One of SUITES: CIFAR-10 to 2 x 32 px (S-TEC's recipe), photos to 2 x 224, photos to 2 x 224 + 6 x 96.

    copies: how often each of the 108 photos is in the set, so that an epoch is long enough; once for `quick`.
    """
    if name == "cifar":
        recipe = find_method("stec").recipe("cifar10", image_size).views
        source = cifar_like()
        return Work(f"cifar10 {describe(recipe)}", recipe, source.name, source, batch_size or (128 if quick else 512))
    recipe = photo_recipe(image_size or 224, crops=6 if name == "multicrop" else 0)
    source = photos(scratch, 1 if quick else copies)
    return Work(
        f"{name} {describe(recipe)}",
        recipe,
        source.name,
        source,
        batch_size or (16 if quick else 64),
        as_betons(source, scratch),
    )


def photo_recipe(size: int, crops: int = 0) -> Views:
    """MoCo v2's two views (crop 0.2-1, jitter, grey, blur), and SwAV's small ones where `crops` are wanted."""
    base = View("view", size, Crop((0.2, 1.0)), jitter=Jitter(0.4, 0.4, 0.4, 0.1), grey=0.2, blur=Blur(0.5, (0.1, 2.0)))
    small = replace(base, name="small", size=round(size * 96 / 224), crop=Crop((0.05, 0.2)))
    return Views(base.times(2) + (small.times(crops) if crops else ()), *NORMALISATION["imagenet"])


def describe(recipe: Views) -> str:
    """E.g. "2x224+6x96"."""
    sizes = [view.size for view in recipe]
    return "+".join(f"{sizes.count(s)}x{s}" for s in dict.fromkeys(sizes))


def cifar_like(count: int = 25_000) -> ArraySource:
    """The first half of CIFAR-10 where the checkout has it, else noise of its shape, called so."""
    tar = SHARED / "cifar10" / "cifar10_train_0_webp.tar"
    if tar.exists() and count == 25_000:
        with tarfile.open(tar) as t:
            images = np.concatenate(
                [np.asarray(Image.open(t.extractfile(m))).reshape(-1, 32, 32, 3) for m in t if m.name.endswith(".webp")]
            )
            labels = np.load(io.BytesIO(t.extractfile("labels.npy").read()), allow_pickle=False)
        return ArraySource("cifar10", images, labels)
    return noise(count, 32)


def noise(count: int, size: int, classes: int = 10) -> ArraySource:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ArraySource(f"synthetic {size}x{size}", images, rng.integers(0, classes, count))


def photos(scratch: Path, copies: int) -> Source:
    """108 photos of 512x384 as a folder of JPEGs, each `copies` times; synthetic ones where the checkout has none."""
    folder, tar = scratch / f"photos{copies}", SHARED / "photos" / "trashnet_108.tar"
    name = "photos 512x384" if tar.exists() else "synthetic photos 512x384"
    if not folder.exists():
        for k, encoded in enumerate(_jpegs(tar) if tar.exists() else _synthetic_jpegs(108)):
            for copy in range(copies):
                path = folder / f"class{k % 6}" / f"{k:03d}-{copy}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded)
    source, _ = open_data(str(folder))
    source.name = name
    return source


def _jpegs(tar: Path) -> list[bytes]:
    with tarfile.open(tar) as t:
        return [t.extractfile(m).read() for m in t if m.name.endswith(".jpg")]


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


def as_betons(source: Source, scratch: Path) -> dict[str, Source]:
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
