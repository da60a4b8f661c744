"""Large sets of small images of each kind, written fast: what they cost to open is what the images' number costs."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from saccade.pipelines.sources.beton import ALLOCATION, FIELD, HEADER, IMAGE, IMAGE_FIELD, INT_FIELD, RAW

SIDE = 32  # pixels
_PER_FOLDER, _PER_SHARD, _PER_GROUP, _CLASSES = 1_000, 10_000, 1_000, 1_000


def jpeg(seed: int) -> bytes:
    """A JPEG of about 700 bytes."""
    rough = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(rough).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=60)
    return file.getvalue()


def write_folder(place: Path, size: int) -> None:
    """.jpg files, a thousand a class: links to one image of the class."""
    for first in range(0, size, _PER_FOLDER):
        folder = place / f"class{first // _PER_FOLDER:05d}"
        folder.mkdir(parents=True)
        image = folder / f"image_{first:09d}.jpg"
        image.write_bytes(jpeg(first))
        for k in range(first + 1, min(first + _PER_FOLDER, size)):
            os.link(image, folder / f"image_{k:09d}.jpg")
    old = time.time() - 60  # as if written a minute ago
    for folder in (place, *place.iterdir()):
        os.utime(folder, (old, old))


def write_tars(place: Path, size: int) -> None:
    """KEY.jpg and KEY.cls, ten thousand samples a shard, as `tarfile` would write them."""
    place.mkdir()
    image = jpeg(0)
    blocks = [_header("sample000000000.jpg", len(image)), _padded(image)]
    blocks += [_header("sample000000000.cls", 3), _padded(b"000")]
    sample = np.frombuffer(b"".join(blocks), np.uint8)
    second = len(blocks[0]) + len(blocks[1])
    for first in range(0, size, _PER_SHARD):
        numbers = np.arange(first, min(first + _PER_SHARD, size))
        body = np.tile(sample, (len(numbers), 1))
        digits = _digits(numbers, 9)
        for at in (0, second):
            body[:, at + 6 : at + 15] = digits
            total = int(body[0, at + 148 : at + 156].tobytes().split(b"\0")[0], 8) + (digits - ord("0")).sum(1)
            body[:, at + 148 : at + 154] = _digits(total, 6, 8)
        body[:, second + 512 : second + 515] = _digits(numbers % _CLASSES, 3)
        with open(place / f"x-{first // _PER_SHARD:06d}.tar", "wb") as file:
            file.write(body.data)
            file.write(bytes(tarfile.RECORDSIZE))


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _digits(numbers: np.ndarray, count: int, base: int = 10) -> np.ndarray:
    """(N, count) uint8, the numbers as texts with zeros in front."""
    places = base ** np.arange(count - 1, -1, -1)
    return (numbers[:, None] // places % base + ord("0")).astype(np.uint8)


def write_parquet(place: Path, size: int) -> None:
    """{bytes, path} and label, ten thousand rows a file."""
    import pyarrow
    from pyarrow import parquet

    place.mkdir()
    image = jpeg(0)
    for first in range(0, size, _PER_SHARD):
        numbers = range(first, min(first + _PER_SHARD, size))
        images = [{"bytes": image, "path": f"{k}.jpg"} for k in numbers]
        table = pyarrow.table({"image": images, "label": [k % _CLASSES for k in numbers]})
        parquet.write_table(table, place / f"train-{first // _PER_SHARD:06d}.parquet", row_group_size=_PER_GROUP)


def write_beton(place: Path, size: int, length: int = 0) -> None:
    """Raw pixels and labels, as FFCV lays them out: evenly over `length` bytes, of which only the tables and the images
    of a set of up to 20,000 take room on the disk."""
    place.mkdir()
    fields = np.zeros(2, FIELD)
    fields["type_id"] = IMAGE_FIELD, INT_FIELD
    for k, name in enumerate((b"image", b"label")):
        fields["name"][k, : len(name)] = np.frombuffer(name, np.uint8)
    rows = np.zeros(size, np.dtype([("", IMAGE), ("", "<i8")], align=True))
    front = HEADER.itemsize + fields.nbytes + rows.nbytes
    start = -(-front // 4096) * 4096
    stride = max(4096, (length - start) // size // 4096 * 4096)
    at = start + stride * np.arange(size, dtype=np.uint64)
    rows["f0"]["mode"], rows["f0"]["width"], rows["f0"]["height"], rows["f0"]["data_ptr"] = RAW, SIDE, SIDE, at
    rows["f1"] = np.arange(size) % 10
    table = np.zeros(size, ALLOCATION)
    table["sample_id"], table["ptr"], table["size"] = np.arange(size), at, 3 * SIDE * SIDE
    end = start + stride * size
    rng = np.random.default_rng(0)
    with open(place / "train.beton", "wb") as file:
        file.write(np.array([(2, 2, 4096, size, end)], HEADER).tobytes() + fields.tobytes())
        file.write(rows.data)
        for k in range(size if size <= 20_000 else 0):
            file.seek(int(at[k]))
            file.write(rng.integers(0, 256, 3 * SIDE * SIDE, np.uint8).data)
        file.seek(end)
        file.write(table.data)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "folder": write_folder,
    "tar": write_tars,
    "parquet": write_parquet,
    "beton": write_beton,
}
