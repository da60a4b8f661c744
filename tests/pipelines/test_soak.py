"""The promises every executor makes: order, epochs, restarts, and nothing left behind when an epoch is left early."""

import gc
import os
import threading
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from saccade.pipelines.build import build_pipeline, dali_installed
from saccade.pipelines.data import open_data
from saccade.pipelines.operations import Blur, Jitter
from saccade.pipelines.order import Order
from saccade.pipelines.sources import FolderSource
from saccade.pipelines.sources.beton import BetonSource
from saccade.pipelines.sources.shards import ShardSource
from saccade.pipelines.views import Crop, View, Views
from tests.pipelines.files import SIDE, beton_with, picture, stored, tar_with

needs_dali = pytest.mark.skipif(not dali_installed(), reason="NVIDIA DALI is not installed")
EXECUTORS = ["resident", "reference", pytest.param("dali", marks=needs_dali), "ffcv", "threads"]
IMAGES = 26
JITTER = Jitter(0.4, 0.4, 0.4, 0.1)
RECIPE = Views(
    (
        View("weak", 24, crop=Crop((0.2, 1.0))),
        View("strong", 24, operations=(JITTER, Blur(kernel_size=5)), parent="weak"),
    )
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same images as a folder, shards and a .beton."""
    folder = tmp_path_factory.mktemp("data")
    files = {f"{k:02}.jpg": stored(picture(k), "JPEG") for k in range(IMAGES)}
    (folder / "photos").mkdir()
    for name, content in files.items():
        (folder / "photos" / name).write_bytes(content)
    names = list(files)
    for shard in range(3):
        tar_with(folder / f"x-{shard}.tar", {name: files[name] for name in names[9 * shard : 9 * shard + 9]})
    beton_with(folder / "x.beton", [(content, SIDE, SIDE) for content in files.values()])
    return folder


def source_for(data, executor: str):
    return BetonSource(data / "x.beton") if executor == "ffcv" else FolderSource(data / "photos")


def pipeline_on(data, executor, batch=4, seed=0, rank=0, ranks=1, workers=0, source=None):
    source = source or source_for(data, executor)
    return build_pipeline(source, RECIPE, Order(IMAGES, batch, seed, rank, ranks), executor, workers=workers)


def seen(batches) -> list[int]:
    return torch.cat([batch.index for batch in batches]).tolist()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_order_is_that_of_reference_and_changes_with_seed_and_epoch(data, executor):
    with pipeline_on(data, executor) as pipeline, pipeline_on(data, executor, seed=1) as other:
        epochs = [seen(pipeline), seen(pipeline)]
        assert epochs == [Order(IMAGES, 4).permutation(e)[:24].tolist() for e in (0, 1)] and epochs[0] != epochs[1]
        assert seen(other) != epochs[0]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_views_are_those_of_reference(data, executor):
    with pipeline_on(data, executor) as pipeline, pipeline_on(data, "reference") as judge:
        for ours, theirs in zip(pipeline, judge, strict=True):
            for name in RECIPE.names:
                assert (ours.views[name] - theirs.views[name]).abs().max() < 0.05 / 255


@needs_dali
@pytest.mark.parametrize("executor", ["resident", "reference", "dali", "threads"])
def test_shards_show_what_the_folder_shows(data, executor):
    shards = open_data(str(data / "x-{0..2}.tar"))[0]
    with pipeline_on(data, executor, source=shards) as pipeline, pipeline_on(data, "reference") as judge:
        for ours, theirs in zip(pipeline, judge, strict=True):
            assert torch.equal(ours.index, theirs.index)
            assert (ours.views["strong"] - theirs.views["strong"]).abs().max() < 0.05 / 255


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_three_epochs_are_of_the_announced_length_and_show_each_sample_once(data, executor, ranks):
    pipelines = [pipeline_on(data, executor, rank=rank, ranks=ranks) for rank in range(ranks)]
    for epoch in range(3):
        shown = [list(pipeline) for pipeline in pipelines]
        assert [len(batches) for batches in shown] == [len(pipelines[0])] * ranks == [6] * ranks
        together = list(chain.from_iterable(seen(batches) for batches in shown))
        assert len(set(together)) == len(together) == 24  # 26 less the remainder
        assert all((pipeline.epoch, pipeline.seen) == (epoch + 1, 0) for pipeline in pipelines)
    for pipeline in pipelines:
        pipeline.close()


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_restart_in_an_epoch_goes_on_with_the_next_unseen_sample(data, executor, ranks):
    with pipeline_on(data, executor) as whole:
        expected = list(whole)
    with pipeline_on(data, executor) as stopped:
        batches = iter(stopped)
        for _ in range(2):
            next(batches)
        state = stopped.state_dict()
        batches.close()
    resumed = [pipeline_on(data, executor, rank=rank, ranks=ranks) for rank in range(ranks)]
    for pipeline in resumed:
        pipeline.load_state_dict(state)
    parts = list(zip(*resumed, strict=True))
    assert len(parts) == 4
    for before, after in zip(expected[2:], parts, strict=True):
        assert torch.equal(before.index, torch.stack([part.index for part in after], 1).flatten())
        for name in RECIPE.names:
            torch.testing.assert_close(
                torch.stack([part.views[name] for part in after], 1).flatten(0, 1),
                before.views[name],
                atol=1e-5,
                rtol=0,
            )
    for pipeline in resumed:
        pipeline.close()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_leaving_early_is_followed_by_the_rest_of_the_epoch(data, executor):
    with pipeline_on(data, executor) as pipeline:
        order = Order(IMAGES, 4).permutation(0)
        for step in range(6):
            batches = iter(pipeline)
            assert next(batches).index.tolist() == order[4 * step : 4 * step + 4].tolist()
            if step % 2:
                batches.close()
            else:
                del batches
        assert (pipeline.epoch, pipeline.seen) == (1, 0)


# --- soak -------------------------------------------------------------------------------------------------------------


def children_of(task: str) -> list[str]:
    try:
        return Path(f"/proc/self/task/{task}/children").read_text().split()
    except (
        FileNotFoundError,
        ProcessLookupError,
    ):  # the thread ended since it was listed; its children moved to another
        return []


def resources() -> dict[str, int]:
    gc.collect()
    children = [pid for task in os.listdir("/proc/self/task") for pid in children_of(task)]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "python threads": threading.active_count(),
        "processes": len(children),
        "files": len(os.listdir("/proc/self/fd")),
        "kB": pages * os.sysconf("SC_PAGE_SIZE") // 1024,
    }


def leave_early(pipeline, times: int) -> None:
    for k in range(times):
        for step, _ in enumerate(pipeline):
            if step == k % 3:
                break


def settled(limit: dict[str, int]) -> dict[str, int]:
    """Resources once threads and processes that were told to stop are gone."""
    for _ in range(50):
        now = resources()
        if all(now[name] <= limit[name] for name in limit if name != "kB"):
            break
        time.sleep(0.1)
    return now


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
@pytest.mark.parametrize("times", [8, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("executor", "workers"),
    [("resident", 0), ("reference", 2), pytest.param("dali", 2, marks=needs_dali), ("threads", 2)],
)
def test_leaving_epochs_early_leaves_nothing_behind(data, executor, workers, times):
    pipeline = pipeline_on(data, executor, workers=workers)
    leave_early(pipeline, 8)  # warm: pools filled, kernels compiled
    before = resources()
    leave_early(pipeline, times)
    after = settled(before)
    print(f"{executor}: {times} epochs left early; before {before}, after {after}")
    for name in ("threads", "python threads", "processes", "files"):
        assert after[name] <= before[name], (name, before, after)
    assert after["kB"] < before["kB"] + 40_000
    pipeline.close()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
@pytest.mark.parametrize("times", [5, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("executor", "workers"),
    [("resident", 0), ("reference", 2), pytest.param("dali", 2, marks=needs_dali), ("threads", 2)],
)
@pytest.mark.slow
def test_closed_pipelines_leave_nothing_behind(data, executor, workers, times):
    def one() -> None:
        with pipeline_on(data, executor, workers=workers) as pipeline:
            leave_early(pipeline, 1)

    for _ in range(3):
        one()
    before = resources()
    for _ in range(times):
        one()
    after = settled(before)
    print(f"{executor}: {times} pipelines opened and closed; before {before}, after {after}")
    for name in ("threads", "python threads", "processes", "files"):
        assert after[name] <= before[name], (name, before, after)
    assert after["kB"] < before["kB"] + 40_000


def test_shard_source_keeps_few_files_open_and_closes_them(data, monkeypatch):
    monkeypatch.setattr("saccade.pipelines.sources.shards._OPEN_FILES", 2)
    before = resources()["files"]
    source = open_data(str(data / "x-{0..2}.tar"))[0]
    assert isinstance(source, ShardSource)
    for i in np.random.default_rng(0).permutation(IMAGES):
        source.read(int(i))
    assert resources()["files"] == before + 2
    source.close()
    assert resources()["files"] == before
