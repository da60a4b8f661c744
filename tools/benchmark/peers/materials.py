"""What a peer is given: the images as it likes them best, and what is to be done to them."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from saccade.base.errors import UserError
from saccade.pipelines.operations import Blur, Grey, Jitter
from saccade.pipelines.sources import FolderSource, Source
from saccade.pipelines.views import Crop, View, Views
from saccade.tools.benchmark.suites import Work

SHARDS = 16


@dataclass(frozen=True)
class Materials:
    """One set of images in every form. files: JPEGs, none where the images are small ones in `array`, an .npy file."""

    recipe: Views
    batch_size: int
    workers: int
    files: tuple[str, ...] = ()
    array: str | None = None
    betons: dict[str, str] = field(default_factory=dict)  # by what they hold: jpg, raw
    shards: tuple[str, ...] = ()

    @property
    def images(self) -> np.ndarray:
        """(N, H, W, 3) uint8: the small ones, mapped."""
        assert self.array is not None
        return np.load(self.array, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.files) or len(self.images)


@dataclass(frozen=True)
class Steps:
    """A view's operations by name; None: it has none."""

    crop: Crop
    jitter: Jitter | None
    grey: Grey | None
    blur: Blur | None


def steps_of(view: View) -> Steps:
    """UserError for what peers are not compared on."""
    names = [operation.name for operation in view.operations]
    if view.parent or not isinstance(view.crop, Crop) or names != [n for n in ("jitter", "grey", "blur") if n in names]:
        raise UserError(
            f"view {view.name!r}: peers are compared on a random crop, jitter, grey and blur in this order."
        )
    jitter, grey, blur = (view.keyed.get(name) for name in ("jitter", "grey", "blur"))
    assert isinstance(jitter, Jitter | None) and isinstance(grey, Grey | None) and isinstance(blur, Blur | None)
    return Steps(view.crop, jitter, grey, blur)


def prepare(work: Work, scratch: Path, workers: int) -> Materials:
    """The images of `work` written in every form below `scratch`."""
    folder = scratch / f"peers-{work.recipe_name.split()[0]}"
    folder.mkdir(exist_ok=True)
    source, form = work.source, {"recipe": work.recipe, "batch_size": work.batch_size, "workers": workers}
    if isinstance(source, FolderSource):
        files = tuple(str(source.folder / source.key_of(i)) for i in range(len(source)))
        betons = {kind: str(scratch / f"{source.folder.name}-{kind}.beton") for kind in work.betons}
        return Materials(**form, files=files, betons=betons, shards=_shards(source, folder))
    array, pixels = folder / "images.npy", source.array()
    if pixels is None:
        raise UserError(f"{source.name} is neither a folder of photos nor decoded images, on which peers are compared.")
    np.save(array, pixels)
    return Materials(**form, array=str(array), betons=_raw_beton(pixels, folder), shards=_shards(source, folder))


def _shards(source: Source, folder: Path) -> tuple[str, ...]:
    """Tar files of JPEGs as they are, or of pixels with PPM's few bytes before them, which is no decoding."""
    from webdataset.writer import ShardWriter

    with ShardWriter(f"{folder}/%03d.tar", maxcount=-(-len(source) // SHARDS), verbose=0) as shards:
        for i in range(len(source)):
            if isinstance(source, FolderSource):
                shards.write({"__key__": f"{i:08d}", "jpg": (source.folder / source.key_of(i)).read_bytes()})
            else:
                encoded = io.BytesIO()
                Image.fromarray(source.read(i)).save(encoded, "PPM")
                shards.write({"__key__": f"{i:08d}", "ppm": encoded.getvalue()})
    return tuple(sorted(map(str, folder.glob("*.tar"))))


def _raw_beton(pixels: np.ndarray, folder: Path) -> dict[str, str]:
    from saccade.tools.convert import main as convert

    np.savez(folder / "images.npz", images=pixels)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            convert([str(folder / "images.npz"), str(folder / "images.beton"), "--store", "raw"])
    except (UserError, ImportError):
        return {}
    return {"raw": str(folder / "images.beton")}
