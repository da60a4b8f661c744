"""What makes a step fast, checked without a clock: no waiting for the device, channels-last, no fresh memory."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from saccade.losses.registry import find_method, methods
from saccade.pipelines.draw import draw
from saccade.pipelines.order import Order
from saccade.pipelines.prefetch import prefetched, tensors
from saccade.pipelines.resident import ResidentPipeline
from saccade.tools.benchmark.suites import noise
from saccade.tools.benchmark.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select"}


class Calls(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def trainer_of(method: str, batch: int = 16) -> Trainer:
    argv = ["--method", method, "--data", "textures", "--backbone", "test_resnet", "--batch-size", str(batch)]
    return Trainer([*argv, "--device", "cpu"])


@pytest.mark.parametrize("method", list(methods()))
def test_no_operator_of_a_step_waits_for_the_device(method):
    """On a GPU each of WAITING stops the host until the device has caught up; an index by a mask is nonzero there."""
    trainer = trainer_of(method)
    batch = next(iter(trainer.pipeline))
    trainer.step(batch)  # state is made
    with Calls() as calls:
        trainer.step(batch)
    assert len(calls.names) > 100
    assert not WAITING & set(calls.names), sorted(WAITING & set(calls.names))


@pytest.mark.parametrize("method", ["stec", "resa"])
def test_every_convolution_sees_channels_last(method):
    trainer = trainer_of(method)
    seen = []

    def look(module: nn.Conv2d, inputs: tuple) -> None:
        seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        if module.kernel_size != (1, 1):  # of a 1 x 1 kernel both layouts are the same memory
            seen.append(module.weight.is_contiguous(memory_format=torch.channels_last))

    for module in trainer.learner.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(look)
    trainer.step(next(iter(trainer.pipeline)))
    assert len(seen) > 10 and all(seen)


def test_parameters_drawn_for_many_batches_are_those_of_one():
    recipe = find_method("stec").recipe("cifar10", 32).views
    pipeline = ResidentPipeline(noise(9000, 32), recipe, Order(9000, 700, seed=3))
    for batch in pipeline:
        alone = draw(recipe, 3, 0, batch.index, torch.tensor([32, 32]).expand(len(batch.index), 2))
        for name, params in alone.items():
            for column, value in params.columns().items():
                assert torch.equal(value, batch.params[name].columns()[column]), (name, column)


def test_prefetching_changes_no_batch():
    recipe = find_method("stec").recipe("cifar10", 32).views
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ahead = ResidentPipeline(noise(64, 32), recipe, Order(64, 16), device)
    plain = ResidentPipeline(noise(64, 32), recipe, Order(64, 16), device)
    made = list(plain._batches(0, plain.order.batches(0)))
    for a, b in zip(prefetched(ahead._batches(0, ahead.order.batches(0)), device), made, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
    assert len(list(tensors(made[0]))) == 2 + 2 * (3 + 6 + 1) + 2  # views, parameters, index and label


FAULTS = """
import resource, sys
import numpy as np
from saccade.base.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(3):
    np.ones(64 << 20, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    np.ones(64 << 20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_freed_memory_is_used_again_without_page_faults():
    def faults(mode: str) -> int:
        command = [sys.executable, "-c", FAULTS, mode]
        return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)

    pages = 3 * (64 << 20) // resource.getpagesize()
    plain, kept = faults("plain"), faults("kept")
    assert plain > 20 * max(kept, 1) and kept < pages // 100


def test_joint_views_share_a_forward_and_so_batch_norm():
    def loss(method: str, *flags: str) -> float:
        argv = ["--method", method, "--data", "textures", "--recipe", "cifar10", "--backbone", "test_resnet"]
        torch.manual_seed(0)
        trainer = Trainer([*argv, "--image-size", "32", "--batch-size", "8", "--device", "cpu", *flags])
        batch = next(iter(trainer.pipeline))
        return float(trainer.model(batch.views, batch.params, batch.label)["loss"].detach())

    assert loss("simclr") == loss("simclr", "--joint-views")  # SimCLR's own way
    assert abs(loss("simclr") - loss("simclr", "--no-joint-views")) > 1e-4
    assert loss("rsa") == loss("rsa", "--no-joint-views")
    assert abs(loss("rsa") - loss("rsa", "--joint-views")) > 1e-6
