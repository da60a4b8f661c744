"""Small images made on the spot, and the containers they come in, written without the project's own writers."""

import io
import tarfile

import numpy as np
from PIL import Image

from saccade.pipelines.sources.beton import ALLOCATION, FIELD, HEADER, IMAGE

SIDE = 48  # pixels


def picture(seed: int = 0, side: int = SIDE) -> Image.Image:
    """Smooth colours, so that a JPEG keeps them."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )


def stored(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tar_with(path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_idx(shard) -> None:
    with tarfile.open(shard) as tar:
        lines = [f"{m.name.partition('.')[2]} {m.offset_data} {m.size} {m.name}" for m in tar]
    shard.with_suffix(".idx").write_text(f"v1.2 {len(lines)}\n" + "\n".join(lines) + "\n")


def beton_with(path, images: list[tuple[bytes, int, int]], version: int = 2) -> None:
    """A .beton of JPEG bytes and the (height, width) that its table says; from FFCV's layout, without our writer."""
    fields = np.zeros(1, FIELD)
    fields["type_id"], fields["name"][0, :5] = 2, np.frombuffer(b"image", np.uint8)
    rows = np.zeros(len(images), np.dtype([("", IMAGE)], align=True))
    start = -(-(HEADER.itemsize + fields.nbytes + rows.nbytes) // 4096) * 4096
    table, at, body = np.zeros(len(images), ALLOCATION), start, b""
    for k, (data, height, width) in enumerate(images):
        rows["f0"][k] = (0, width, height, at)
        table[k] = (k, at, len(data))
        body += data
        at += len(data)
    header = np.array([(version, 1, 4096, len(images), at)], HEADER)
    front = header.tobytes() + fields.tobytes() + rows.tobytes()
    path.write_bytes(front.ljust(start, b"\0") + body + table.tobytes())
