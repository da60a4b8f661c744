"""Streams without a GPU: fakes that keep a log of what a host would have queued, waited for and let go."""

import contextlib
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from saccade.pipelines import build, prefetch
from saccade.pipelines.build import dali_installed
from saccade.pipelines.draw import ViewParams
from saccade.pipelines.ffcv import FfcvPipeline
from saccade.pipelines.order import Order
from saccade.pipelines.pipeline import Batch, Pipeline
from saccade.pipelines.prefetch import UntilRead, prefetched
from saccade.pipelines.reference import ReferencePipeline
from saccade.pipelines.resident import ResidentPipeline
from saccade.pipelines.sources import ArraySource, FolderSource
from saccade.pipelines.sources.beton import BetonSource
from saccade.pipelines.threads import ThreadsPipeline
from saccade.pipelines.views import Crop, View, Views
from tests.pipelines.files import beton_with, picture, stored

CUDA = torch.device("cuda", 0)
RECIPE = Views((View("weak", 16, Crop((0.2, 1.0))), View("small", 8, Crop((0.2, 1.0)))))
needs_dali = pytest.mark.skipif(not dali_installed(), reason="NVIDIA DALI is not installed")


class Event:
    """Passed as soon as somebody waits for it, or says so."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.passed = name, log, False

    def query(self) -> bool:
        return self.passed

    def synchronize(self) -> None:
        if not self.passed:
            self.log.append(f"host waits for {self.name}")
        self.passed = True


class Stream:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.events = name, log, []

    def record_event(self) -> Event:
        self.events.append(Event(f"{self.name} {len(self.events)}", self.log))
        return self.events[-1]

    def wait_event(self, event: Event) -> None:
        self.log.append(f"{self.name} waits for {event.name}")


class FakeCuda:
    """torch.cuda's streams: `main`, and `side`, which prefetching makes."""

    def __init__(self, monkeypatch) -> None:
        self.log: list[str] = []
        self.main, self.side = Stream("main", self.log), Stream("side", self.log)
        self.current = self.main
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(prefetch, "_side_stream", lambda device: self.side)

    @contextlib.contextmanager
    def on(self, stream: Stream):
        before, self.current = self.current, stream
        yield
        self.current = before


@pytest.fixture
def cuda(monkeypatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def batch_of(number: int) -> Batch:
    return Batch({}, {}, torch.tensor([number]), None)


# --- prefetching -----------------------------------------------------------------------------------------------------


def test_the_next_batch_is_queued_on_its_own_stream_before_this_one_is_used(cuda):
    def made():
        for k in range(3):
            cuda.log.append(f"{cuda.current.name} makes {k}")
            yield batch_of(k)

    for batch in prefetched(made(), CUDA):
        cuda.log.append(f"{cuda.current.name} trains on {int(batch.index)}")
    assert cuda.log == [
        "side makes 0",
        "main waits for side 0",
        "side makes 1",
        "main trains on 0",
        "main waits for side 1",
        "side makes 2",
        "main trains on 1",
        "main waits for side 2",
        "main trains on 2",
    ]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_leaving_early_closes_what_makes_the_batches(cuda, device):
    closed = []

    def made():
        try:
            for k in range(9):
                yield batch_of(k)
        finally:
            closed.append(True)

    going = prefetched(made(), torch.device(device))
    next(going)
    going.close()
    assert closed


def test_the_position_is_that_of_the_batch_in_use_not_of_the_one_made_ahead(cuda):
    class Counting(Pipeline):
        def _batches(self, epoch, shards):
            for shard in shards:
                made.append(len(shard))
                yield Batch({}, {}, shard, None)

    made = []
    pipeline = Counting(ArraySource("noise", np.zeros((12, 8, 8, 3), np.uint8)), RECIPE, Order(12, 4), CUDA)
    for k, batch in enumerate(pipeline):
        assert pipeline.state_dict()["seen"] == (4 * k + 4) % 12
        assert torch.equal(batch.index, pipeline.order.batches(0)[k]) and len(made) == min(k + 2, 3)


def executor(name: str, folder) -> Pipeline:
    """Each executor over eight pictures, on the CPU."""
    order = Order(8, 4)
    if name == "resident":
        return ResidentPipeline(ArraySource("noise", np.zeros((8, 20, 20, 3), np.uint8)), RECIPE, order)
    if name == "ffcv":
        beton_with(folder / "x.beton", [(stored(picture(k), "JPEG"), 48, 48) for k in range(8)])
        return FfcvPipeline(BetonSource(folder / "x.beton"), RECIPE, order)
    for k in range(8):
        (folder / f"{k}.jpg").write_bytes(stored(picture(k), "JPEG"))
    if name in ("reference", "threads"):
        return (ReferencePipeline if name == "reference" else ThreadsPipeline)(FolderSource(folder), RECIPE, order)
    from saccade.pipelines.dali import DaliPipeline

    return DaliPipeline(FolderSource(folder), RECIPE, order)


@pytest.mark.parametrize("name", ["resident", pytest.param("dali", marks=needs_dali), "ffcv", "threads", "reference"])
def test_every_executor_works_on_the_side_stream(name, tmp_path, cuda, monkeypatch):
    """Whatever an executor does for a batch, on whatever device, it does while the side stream is current."""
    assert name in build.EXECUTORS
    seen = []
    original = Batch.__init__

    def noted(batch, *args, **kwargs):
        original(batch, *args, **kwargs)
        seen.append(cuda.current.name)

    monkeypatch.setattr(Batch, "__init__", noted)
    with executor(name, tmp_path) as pipeline:
        work = pipeline._batches
        monkeypatch.setattr(pipeline, "_batches", lambda *a: on_cpu(pipeline, work(*a)))
        pipeline.device = CUDA  # for the contract's loop; the executor itself stays on the CPU
        used = [cuda.current.name for _ in pipeline]
    assert seen == ["side", "side"] and used == ["main", "main"]


def on_cpu(pipeline: Pipeline, batches):
    """The executor's generator, which sees a CPU while it runs."""
    while True:
        pipeline.device = torch.device("cpu")
        batch = next(batches, None)
        pipeline.device = CUDA
        if batch is None:
            return
        yield batch


# --- memory that is not torch's --------------------------------------------------------------------------------------


class Memory:
    """Something that can be asked whether it was let go."""

    def __init__(self, pixels: torch.Tensor | None = None) -> None:
        self.pixels = pixels


def test_memory_is_held_until_the_event_after_its_reading_has_passed(cuda):
    held = UntilRead(CUDA)
    memory: list[Any] = [Memory() for _ in range(3)]
    watched = [weakref.ref(m) for m in memory]
    alive = lambda: [w() is not None for w in watched]  # noqa: E731
    held.hold(memory[0])
    held.hold(memory[1])
    memory[:2] = [None, None]
    assert alive() == [True, True, True]
    cuda.main.events[1].passed = True  # streams are in order: the second cannot pass before the first
    cuda.main.events[0].passed = True
    held.hold(memory[2])
    memory[2] = None
    assert alive() == [False, False, True]
    held.wait()
    assert alive() == [False, False, False] and cuda.log == ["host waits for main 2"]


def test_a_host_far_ahead_waits_for_the_oldest(cuda):
    held = UntilRead(CUDA)
    watched = []
    for _ in range(prefetch._MOST_HELD + 2):
        memory = Memory()
        watched.append(weakref.ref(memory))
        held.hold(memory)
    del memory
    assert [w() is None for w in watched[:3]] == [True, True, False]
    assert cuda.log == ["host waits for main 0", "host waits for main 1"]


def test_on_a_cpu_nothing_is_held():
    memory = Memory()
    watched = weakref.ref(memory)
    UntilRead(torch.device("cpu")).hold(memory)
    del memory
    assert watched() is None


@needs_dali
@pytest.mark.slow
def test_dali_gets_its_buffer_back_only_after_the_render_has_read_it(tmp_path, cuda, monkeypatch):
    """The executor as on a GPU whose stream stands still: nothing it was given may die before the stream goes on."""
    from saccade.pipelines import dali
    from saccade.pipelines.dali_graph import Graph

    for k in range(12):
        (tmp_path / f"{k}.jpg").write_bytes(stored(picture(k), "JPEG"))
    handed, result = [], Graph.result

    def watched(graph):
        cut = {name: Memory(view) for name, view in result(graph).items()}
        handed.extend(weakref.ref(view) for view in cut.values())
        return cut

    monkeypatch.setattr(Graph, "result", watched)
    monkeypatch.setattr(dali, "appearance", lambda cut, *_: cut.pixels.clone())
    monkeypatch.setattr(ViewParams, "to", lambda params, *_, **__: params)
    pipeline = dali.DaliPipeline(FolderSource(tmp_path), RECIPE, Order(12, 4), cuts=True)
    monkeypatch.setattr(pipeline, "_labels", lambda numbers: None)
    built = Graph(RECIPE, torch.device("cpu"), 4, 1, True)
    monkeypatch.setattr(pipeline, "_build", lambda: built)
    pipeline.device, pipeline._until_read = CUDA, UntilRead(CUDA)

    with pipeline:
        for k, _ in enumerate(pipeline):
            gc.collect()
            if k == 0:  # two chunks are rendered, their kernels are queued, none has run
                assert len(handed) == 4 and all(m() is not None for m in handed)
                cuda.side.events[
                    0
                ].passed = True  # recorded after the first render; the next says that its batch is made
            if k == 1:  # the third was held, and the first's event has passed
                assert [m() is not None for m in handed] == [False] * 2 + [True] * 4
    gc.collect()
    assert all(m() is None for m in handed)  # the end of the epoch waits for the rest


@needs_dali
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: only there may DALI write what is still to be read")
def test_views_are_right_where_the_render_waits_behind_a_long_kernel(tmp_path, monkeypatch):
    from saccade.pipelines.dali import DaliPipeline

    for k in range(64):
        (tmp_path / f"{k:02}.jpg").write_bytes(stored(picture(k, side=256), "JPEG", quality=95))
    render = DaliPipeline._render

    def late(pipeline, chunk, cut):
        torch.cuda._sleep(100_000_000)  # some 50 ms in which DALI is done with the next chunks
        return render(pipeline, chunk, cut)

    def views(device: str) -> list[torch.Tensor]:
        with DaliPipeline(FolderSource(tmp_path), RECIPE, Order(64, 4), device, threads=4, cuts=True) as pipeline:
            return [batch.views["weak"].cpu() for batch in pipeline]

    expected = views("cpu")
    monkeypatch.setattr(DaliPipeline, "_render", late)
    for ours, theirs in zip(views("cuda"), expected, strict=True):
        assert (ours - theirs).abs().mean() < 0.01  # two JPEG decoders; another picture differs by 0.3
