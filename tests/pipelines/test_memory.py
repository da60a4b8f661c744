"""What is held at once is bounded: by the memory there is, whatever the data."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.base import machine
from saccade.base.machine import available_memory
from saccade.pipelines import build, reference
from saccade.pipelines.build import build_pipeline, choose_executor
from saccade.pipelines.order import Order
from saccade.pipelines.sources import FolderSource
from saccade.pipelines.sources.beton import ALLOCATION, FIELD, HEADER, IMAGE, IMAGE_FIELD, RAW, VERSION, BetonSource
from saccade.pipelines.views import View, Views
from tests.images import PHOTOS

TWO = Views((View("a", 32), View("b", 32)))


def sparse_beton(file: Path, images: int, side: int) -> Path:
    """Raw black images that take no room on the disk."""
    header, field, rows = np.zeros(1, HEADER), np.zeros(1, FIELD), np.zeros(images, np.dtype([("", IMAGE)], align=True))
    size, first = 3 * side * side, 1 << 24
    rows["f0"]["mode"], rows["f0"]["width"], rows["f0"]["height"] = RAW, side, side
    rows["f0"]["data_ptr"] = first + size * np.arange(images)
    field["type_id"], field["name"][0, :5] = IMAGE_FIELD, np.frombuffer(b"image", np.uint8)
    table = np.zeros(images, ALLOCATION)
    table["sample_id"], table["ptr"], table["size"] = np.arange(images), rows["f0"]["data_ptr"], size
    header["version"], header["num_fields"], header["page_size"] = VERSION, 1, 1 << 21
    header["num_samples"], header["alloc_table_ptr"] = images, first + size * images
    with open(file, "wb") as out:
        for part in (header, field, rows):
            out.write(part.tobytes())
        out.seek(first + size * images)
        out.write(table.tobytes())
    return file


def test_a_beton_larger_than_memory_and_swap_is_opened_and_read(tmp_path):
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    side = 1024
    file = sparse_beton(tmp_path / "x.beton", int(2.5 * most / (3 * side * side)), side)
    if file.stat().st_blocks * 512 > 1 << 30:
        pytest.skip("this file system has no sparse files")
    source = BetonSource(file)
    with build_pipeline(source, TWO, Order(len(source), 4), workers=2) as pipeline:
        batches = [batch for batch, _ in zip(pipeline, range(20), strict=False)]
    assert file.stat().st_size > 2 * most and len(batches) == 20
    assert all((batch.views["b"] == batch.views["b"].amin((0, 2, 3), keepdim=True)).all() for batch in batches)


@pytest.mark.parametrize("executor", ["reference", "dali"])
def test_a_batch_of_large_images_is_decoded_in_pieces_and_is_the_same(executor, monkeypatch):
    if executor == "dali":
        pytest.importorskip("nvidia.dali")
    source, order = FolderSource(PHOTOS), Order(12, 12, seed=1)
    with build_pipeline(source, TWO, order, executor, workers=1) as pipeline:
        whole = next(iter(pipeline))
    if executor == "reference":
        monkeypatch.setattr(reference, "_DECODED_BYTES", 500_000)
    else:
        monkeypatch.setattr("saccade.pipelines.dali._BYTES", 500_000)
    with build_pipeline(source, TWO, order, executor, workers=1) as pipeline:
        pieces = next(iter(pipeline))
    for name in TWO.names:
        assert torch.equal(whole.views[name], pieces.views[name])
        assert torch.equal(whole.params[name].box, pieces.params[name].box)
    assert whole.label is not None and pieces.label is not None
    assert torch.equal(whole.index, pieces.index) and torch.equal(whole.label, pieces.label)


def test_auto_holds_a_set_in_memory_only_where_all_processes_of_the_machine_can(tmp_path, monkeypatch):
    for k in range(8):
        Image.new("RGB", (64, 64), (k, k, k)).save(tmp_path / f"{k}.png")
    source = FolderSource(tmp_path)
    monkeypatch.setattr(build, "available_memory", lambda: 2.0 * 8 * 64 * 64 * 3)
    assert choose_executor("auto", source).executor == "resident"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_executor("auto", source).executor != "resident"


@pytest.mark.parametrize(
    ("path", "files"),
    [
        ("0::/job/step", {"job/memory.max": 9, "job/memory.current": 5, "job/memory.stat": "anon 1\ninactive_file 2"}),
        (
            "4:memory:/elsewhere",
            {
                "memory/memory.limit_in_bytes": 9,
                "memory/memory.usage_in_bytes": 5,
                "memory/memory.stat": "total_inactive_file 2",
            },
        ),
    ],
    ids=["version 2, the limit a level up", "version 1 in a container"],
)
def test_free_memory_is_what_the_cgroups_leave_with_cached_files_given_up(path, files, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.write_text(f"7:cpu:/x\n{path}\n")
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    monkeypatch.setattr(machine, "OWN_CGROUPS", own)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    assert available_memory() == 9 - 5 + 2
