"""SIGKILL at every kind of moment, to real runs of every kind that are then continued: they end as if nothing had been.

`--resume auto` after each kill; at the end the network, the optimizer, every logged loss and every kNN are those of a
run that nobody touched, bit for bit.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.runs.checkpoint import load_checkpoint
from saccade.tools.convert import main as convert
from tests.runs.nursery import Nursery, Run, meeting, until

FLAGS = ["--backbone", "test_resnet", "--image-size", "16", "--batch-size", "16", "--log-every", "1"]
FLAGS += ["--eval-every", "1", "--checkpoint-every", "3", "--steps", "12"]
QUEUE = ["--set", "options.queue_size=64", "--recipe", "cifar10"]
CASES = {  # name: flags, processes
    "stec, resident": (["--method", "stec", "--data", "images.npz"], 1),
    "ressl, queue and teacher, reference with workers": (
        ["--method", "ressl", "--data", "photos", "--pipeline", "reference", "--workers", "2", *QUEUE],
        1,
    ),
    "moco-v2, queue and shuffled groups, resident, two processes": (
        ["--method", "moco-v2", "--data", "images.npz", *QUEUE],
        2,
    ),
    "cacr-queue, ffcv of a .beton": (
        ["--method", "cacr-queue", "--data", "photos.beton", "--pipeline", "ffcv", *QUEUE],
        1,
    ),
    "byol, teacher, dali of tar shards": (["--method", "byol", "--data", "shards", "--pipeline", "dali"], 1),
    "rsa, teacher, accumulated, reference of shards, two processes": (
        ["--method", "rsa", "--data", "shards", "--pipeline", "reference", "--workers", "0", "--accumulate", "2"],
        2,
    ),
    "moco-v3, teacher, resident": (["--method", "moco-v3", "--data", "images.npz"], 1),
    "cacr-momentum, teacher, reference of a .beton": (
        ["--method", "cacr-momentum", "--data", "photos.beton", "--pipeline", "reference", "--workers", "0"],
        1,
    ),
    "resa, teacher, reference without workers": (
        ["--method", "resa", "--data", "photos", "--pipeline", "reference", "--workers", "0"],
        1,
    ),
}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 4
    images = (rng.integers(0, 60, (80, 32, 32, 3)) + labels[:, None, None, None] * 45).astype(np.uint8)
    np.savez(folder / "images.npz", images=images, labels=labels)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / "photos" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((40 + i % 7, 36)).save(folder / "photos" / str(label) / f"{i}.jpg", quality=95)
    return folder


class Chain:
    """A run of one or two processes that is killed and started again with the same command."""

    def __init__(self, nursery: Nursery, flags: list[str], processes: int, out: Path) -> None:
        self._nursery, self.processes, self.out = nursery, processes, out
        self._argv = [*FLAGS, *flags, "--out", str(out), "--resume", "auto"]
        self.log = out.with_suffix(".log")
        self._random = random.Random(str(out.name))
        self.kills: list[str] = []

    def more(self, *flags: str) -> None:
        self._argv += flags

    def start(self) -> list[Run]:
        if self.processes == 1:
            return [self._nursery.start(self._argv, self.log)]
        shared = meeting(self.processes)
        return [self._nursery.start(self._argv, self.log, RANK=str(r), **shared) for r in range(self.processes)]

    def finish(self) -> None:
        codes = [run.wait() for run in self.start()]
        assert codes == [0] * self.processes, self.log.read_text()[-3000:]

    def kill(self, moment: str) -> None:
        """Start it, wait for the moment and kill one of its processes; the others end by themselves."""
        runs, before = self.start(), len(self.lines())
        reached = MOMENTS[moment](self, before, lambda: any(run.code is not None for run in runs))
        victims = runs if moment == "loading" else [self._random.choice(runs)]  # before they have met: a node's end
        if victims[0].code is None:
            for victim in victims:
                victim.kill()
            self.kills.append(f"{moment}{'' if reached else ', missed'}")
        for run in runs:
            run.wait(40)

    def lines(self) -> list[dict]:
        try:
            text = (self.out / "metrics.jsonl").read_text()
        except OSError:
            return []
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def files(self, pattern: str) -> set[str]:
        return {path.name for path in self.out.glob(pattern)}

    def sleep(self, most: float) -> None:
        until(lambda: False, self._random.uniform(0, most))


def _loading(chain: Chain, before: int, ended: Callable[[], bool]) -> bool:
    chain.sleep(0.6)
    return True


def _epoch(chain: Chain, before: int, ended: Callable[[], bool]) -> bool:
    until(lambda: len(chain.lines()) > before or ended(), 60)
    chain.sleep(0.2)
    return not ended()


def _write(chain: Chain, before: int, ended: Callable[[], bool]) -> bool:
    known = chain.files("checkpoints/.*")
    until(lambda: bool(chain.files("checkpoints/.*") - known) or ended(), 60, every=0)
    return not ended()


def _evaluation(chain: Chain, before: int, ended: Callable[[], bool]) -> bool:
    def measuring() -> bool:
        lines = chain.lines()
        return len(lines) > before and "loss" in lines[-1] and lines[-1]["step"] % 5 == 0

    until(lambda: measuring() or ended(), 60, every=0.0005)
    return not ended()


def _last(chain: Chain, before: int, ended: Callable[[], bool]) -> bool:
    known = chain.files(".backbone*") | chain.files(".summary*")
    until(lambda: bool((chain.files(".backbone*") | chain.files(".summary*")) - known) or ended(), 60, every=0)
    return not ended()


MOMENTS = {"loading": _loading, "epoch": _epoch, "write": _write, "evaluation": _evaluation, "last write": _last}


def assert_same(whole: Path, pieces: Path) -> None:
    one, other = load_checkpoint(whole), load_checkpoint(pieces)
    for part in ("learner", "optimizer", "pipeline"):
        assert_equal(one[part], other[part], part)
    told = [
        {(r["step"], name): r[name] for r in lines for name in ("loss", "knn_top1") if name in r}
        for lines in (
            [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()] for out in (whole, pieces)
        )
    ]
    assert told[0] == told[1]


def assert_equal(a: object, b: object, name: str) -> None:
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor) and torch.equal(a, b), name
    elif isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys(), name
        for key in a:
            assert_equal(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, list | tuple):
        assert isinstance(b, list | tuple) and len(a) == len(b), name
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_equal(*pair, f"{name}[{i}]")
    else:
        assert a == b, name


def chains(nursery: Nursery, data: Path, flags: list[str], processes: int, tmp_path: Path) -> tuple[Chain, Chain]:
    flags = [str(data / word) if (data / word).exists() else word for word in flags]
    return tuple(Chain(nursery, flags, processes, tmp_path / name) for name in ("whole", "killed"))  # pyright: ignore


def test_a_run_killed_at_three_moments_ends_as_if_nothing_had_been(nursery, data, tmp_path):
    whole, killed = chains(nursery, data, [*CASES["stec, resident"][0], "--renderer", "torch"], 1, tmp_path)
    whole.finish()
    for moment in ("epoch", "write", "last write"):
        killed.kill(moment)
    killed.finish()
    assert killed.kills == ["epoch", "write", "last write"]
    assert_same(whole.out, killed.out)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_another_number_of_processes(nursery, data, tmp_path):
    whole, killed = chains(
        nursery, data, CASES["moco-v2, queue and shuffled groups, resident, two processes"][0], 1, tmp_path
    )
    for chain in (whole, killed):
        chain.more("--steps", "20")
    whole.finish()
    killed.kill("write")
    killed.processes = 2
    killed.kill("epoch")
    killed.processes = 4
    killed.finish()
    one, other = ({r["step"]: r["loss"] for r in chain.lines() if "loss" in r} for chain in (whole, killed))
    assert other == pytest.approx(one, rel=1e-4) and len(one) == 20


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_of_any_kind_survives_seven_kills(nursery, data, tmp_path, case):
    if not (data / "shards").exists():
        assert convert([str(data / "photos"), str(data / "shards"), "--to", "wds"]) == 0
        assert convert([str(data / "photos"), str(data / "photos.beton"), "--to", "beton"]) == 0
    whole, killed = chains(nursery, data, *CASES[case], tmp_path)
    whole.finish()
    for moment in ("loading", "epoch", "write", "epoch", "evaluation", "write", "last write"):
        killed.kill(moment)
    killed.finish()
    print(f"{case}: {killed.kills}")
    assert len(killed.kills) >= 6 and "Traceback" not in killed.log.read_text()
    assert_same(whole.out, killed.out)
