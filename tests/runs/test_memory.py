"""Memory that runs out is a sentence with the part that would fit; what a step in parts changes is said as it is."""

import errno
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from saccade import train
from saccade.base.command import exit_code
from saccade.losses.registry import methods
from saccade.models.learner import Learner
from saccade.runs.forecast import probe
from saccade.runs.memory import in_parts, kept_by
from saccade.runs.session import micro_batches
from saccade.tools.benchmark.suites import noise
from saccade.tools.benchmark.trainer import Trainer
from tests.runs.nursery import Nursery

TINY = ["--backbone", "test_resnet", "--device", "cpu", "--eval-every", "0"]
SMALL = [*TINY, "--batch-size", "16", "--image-size", "16"]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), np.uint8)
    np.savez(file := tmp_path_factory.mktemp("data") / "data.npz", images=images)
    return file


@pytest.mark.slow
@pytest.mark.parametrize("steps", ["2", "90"])  # the second is long enough for a forecast
def test_a_process_whose_memory_is_too_small_for_the_batch_names_the_parts_and_goes_on_with_them(
    nursery, data, tmp_path, steps
):
    """A real limit: the system refuses more than so many bytes beside what the process has when it starts."""
    out, log, limit = tmp_path / "run", tmp_path / "log", str(300 << 20)
    flags = ["--data", str(data), "--method", "ressl", "--recipe", "cifar10", *TINY, "--image-size", "32"]
    flags += ["--batch-size", "256", "--out", str(out), "--workers", "0"]
    run = nursery.start([*flags, "--steps", steps], log, MEMORY=limit)
    assert run.wait() == 2 and "Traceback" not in log.read_text()
    said = log.read_text().splitlines()[-1]
    before = "a step of 256 images of 32 pixels" if steps == "90" else "out of memory on cpu in step 1, 256 images"
    assert before in said
    found = re.search(r"give --accumulate (\d+) \(the loss of ressl looks at each image alone and stays the", said)
    assert found is not None and 256 % int(found[1]) == 0
    for _ in range(3):  # "about" so many: the next refusal, if there is one, has more parts
        code = nursery.start([*flags, "--steps", "2", "--accumulate", found[1]], log, MEMORY=limit).wait()
        if code == 0:
            break
        found = re.search(r"give --accumulate (\d+) ", log.read_text().splitlines()[-1]) or found
    else:
        raise AssertionError(log.read_text()[-3000:])


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_memory_that_runs_out_in_a_step_is_preceded_by_a_checkpoint_and_the_run_goes_on_in_parts(
    method, data, tmp_path, capsys, monkeypatch
):
    out, forward = tmp_path / "run", Learner.forward

    def large(self: Learner, views: dict[str, torch.Tensor], *args):
        losses = forward(self, views, *args)
        if self._step == 1 and len(next(iter(views.values()))) > 8:
            torch.empty(1 << 60, dtype=torch.uint8)  # the allocator's own error
        return losses

    monkeypatch.setattr(Learner, "forward", large)
    flags = ["--method", method, "--data", str(data), "--out", str(out), *SMALL, "--steps", "3", "--log-every", "1"]
    assert train.main(flags) == 2
    *_, saved, said = capsys.readouterr().err.splitlines()
    assert saved == f"saved step 1; continue with: saccade train --resume {out}"
    assert "out of memory on cpu in step 2, 16 images at a time; about 8 at a time would fit: give" in said
    assert ("compares the images of a batch with each other, then 8 instead of 16" in said) == (method == "simclr")
    assert "batch norm sees 8 instead of 16" in said
    found = re.search(r"--resume (\S+) --accumulate 2 --allow-changes", said)
    assert found is not None
    assert train.main(["--resume", found[1], "--accumulate", "2", "--allow-changes"]) == 0
    assert f"a step in 2 parts: the loss of {method} " in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_that_runs_out_anywhere_is_one_sentence(error, capsys):
    def run():
        raise error

    assert exit_code("train.py", run) == 2
    said = capsys.readouterr().err
    assert said.startswith("train.py: out of memory (") and said.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError(errno.EIO, "x")])
def test_what_is_not_memory_is_not_called_so(error):
    def run():
        raise error

    with pytest.raises(type(error)):
        exit_code("train.py", run)


CASES = {name: [name, "--recipe", "cifar10"] for name in methods()}
CASES["cacr-queue alone"] = [*CASES["cacr-queue"], "--set", "options.intra_batch=none"]
CASES["stec-byol solarised"] = ["stec-byol", "--recipe", "stl10"]


@pytest.mark.parametrize("case", CASES)
def test_a_step_in_parts_has_the_gradient_of_the_whole_one_exactly_where_the_method_says_so(case):
    """Batch norm aside, which sees a part at a time."""
    trainer = Trainer(["--method", *CASES[case], *SMALL, "--seed", "1"], noise(32, 16))
    batch, session, learner = next(iter(trainer.pipeline)), trainer.session, trainer.learner
    for module in learner.modules():
        if isinstance(module, _BatchNorm):
            module.eval()

    def gradient(parts: int) -> torch.Tensor:
        session.undo()
        for part, _ in micro_batches(batch, parts):
            (session.losses(part)["loss"] / parts).backward()
        return torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])

    learner.begin_step(0)
    whole, parts = gradient(1), gradient(4)
    apart = float((whole - parts).norm() / whole.norm())
    assert apart < 1e-4 if learner.objective.per_image else apart > 1e-2
    assert ("stays the same" in in_parts(session, 4)) == learner.objective.per_image


@pytest.mark.parametrize("method", ["ressl", "resa"])
def test_what_a_pass_would_keep_is_what_one_keeps(method):
    trainer = Trainer(["--method", method, "--recipe", "cifar10", *SMALL], noise(32, 16))
    batch, before = next(iter(trainer.pipeline)), trainer.learner.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    trainer.session._guard.keep()
    assert kept_by(trainer.session, batch) == pytest.approx(probe(trainer.session, 16, 1)[1], rel=0.05)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.learner.state_dict().items())
