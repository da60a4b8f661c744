"""Worker processes that die: what they were making is made again, and nothing lies in /dev/shm."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from saccade.base.errors import UserError
from saccade.pipelines.operations import Blur, Jitter
from saccade.pipelines.order import Order
from saccade.pipelines.reference import ReferencePipeline
from saccade.pipelines.sources import ArraySource
from saccade.pipelines.views import View, Views
from saccade.pipelines.workers import Workers

RECIPE = Views((View("a", 16, operations=(Jitter(0.4, 0.4, 0.4, 0.1), Blur(0.5))), View("b", 8)))


def pipeline(workers: int) -> ReferencePipeline:
    pixels = np.random.default_rng(0).integers(0, 256, (240, 20, 24, 3), np.uint8)
    return ReferencePipeline(ArraySource("x", pixels, np.arange(240) % 5), RECIPE, Order(240, 6, 3), workers=workers)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_costs_no_batch(number, capsys, monkeypatch):
    def through_shared_memory(*_):
        raise AssertionError("a tensor went through /dev/shm")

    monkeypatch.setitem(ForkingPickler._extra_reducers, torch.Tensor, through_shared_memory)  # the workers inherit it
    others = set(multiprocessing.active_children())
    with pipeline(2) as going:
        made = []
        for batch in going:
            made.append(batch)
            if len(made) in (1, 4):
                workers = [p for p in multiprocessing.active_children() if p not in others]
                os.kill(workers[0].pid or 0, number)
                workers[0].join(10)  # dead before the rest is asked for, which the other could have made in time
    assert f"died ({number.name})" in capsys.readouterr().err
    wanted = list(pipeline(0))
    assert len(made) == len(wanted) == 40
    for a, b in zip(made, wanted, strict=True):
        assert a.index.equal(b.index) and torch.equal(a.views["a"], b.views["a"])
        assert torch.equal(a.views["b"], b.views["b"]) and a.params["a"].box.equal(b.params["a"].box)
    assert not set(multiprocessing.active_children()) - others


def test_workers_that_always_die_end_with_one_sentence():
    workers = Workers(lambda _: os._exit(3), 1, 0)
    with pytest.raises(UserError, match=r"3 times in a row .* died \(exit code 3\); --workers 0"):
        list(workers.map([0, 1]))
    workers.close()


def test_what_a_worker_raises_is_raised_here():
    def refuse(item: int):
        raise UserError(f"no {item}")

    workers = Workers(refuse, 1, 0)
    with pytest.raises(UserError, match="no 5"):
        list(workers.map([5]))
    workers.close()


def test_tensors_with_room_and_without_arrive_alike():
    def work(item: int):
        return {"x": torch.full((100,), item), "y": torch.full((3,), -item)}, (item, {"z": torch.tensor(item)})

    for room in (0, 800, 10_000):
        workers = Workers(work, 2, room)
        found = [(large["x"].tolist(), large["y"].tolist(), rest) for large, rest in workers.map(range(7))]
        workers.close()
        assert found == [([i] * 100, [-i] * 3, (i, {"z": torch.tensor(i)})) for i in range(7)]


@pytest.mark.slow
def test_workers_end_with_a_run_that_was_killed(tmp_path):
    script = (
        "import multiprocessing, os, time, torch\n"
        "from saccade.pipelines.workers import Workers\n"
        "w = Workers(lambda i: ({}, i), 2, 0)\n"
        "next(w.map(range(100)))\n"
        "print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    workers = [int(pid) for pid in run.stdout.readline().split()]
    run.kill()
    run.wait()
    end = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.2)
    assert len(workers) == 2 and not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_run_with_workers_needs_nothing_of_a_dev_shm_of_64_megabytes(tmp_path):
    """As in Docker: a tmpfs of that size lies there, in a mount namespace of the run's own."""
    images = np.random.default_rng(0).integers(0, 256, (128, 224, 224, 3), np.uint8)
    np.savez(tmp_path / "data.npz", images=images)
    flags = f"--data {tmp_path}/data.npz --out {tmp_path}/run --pipeline reference --workers 2 --batch-size 64"
    flags += " --backbone test_resnet --image-size 224 --steps 2 --eval-every 0 --device cpu"
    start = f"mount -t tmpfs -o size=64m tmpfs /dev/shm && exec {sys.executable} -m saccade.train {flags}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", start], capture_output=True, text=True, timeout=300)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no namespace can be made here")
    assert done.returncode == 0, done.stderr[-2000:]
