"""In a process that `fake_cuda.environment` was made for: Inductor's CUDA code for students, counted, as JSON.

Inductor asks the driver and the device much while it writes code; what it asks is answered here, and nothing compiled.
"""

import copy
import json
import re
import sys
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import torch
import torch._inductor.config
from torch import nn
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.fx_passes import fuse_attention, misc_patterns, pad_mm
from torch._inductor.graph import GraphLowering
from triton.runtime import driver

from benchmarks.fake_cuda import fake_trainer, pretend
from saccade.tools.benchmark.suites import noise
from tests.cuda.offline import StandIn

H100 = {"name": "H100", "major": 9, "minor": 0, "multi_processor_count": 132, "total_memory": 80 << 30, "warp_size": 32}
LIMITS = {"max_threads_per_multi_processor": 2048, "regs_per_multiprocessor": 65536, "L2_cache_size": 50 << 20}
SHARED = {"shared_memory_per_block": 48 << 10, "shared_memory_per_block_optin": 227 << 10, "gcnArchName": ""}
MAPS = re.compile(
    r"empty_strided_cuda\(\((\d+), (\d+), (\d+), (\d+)\), \((\d+), (\d+), (\d+), (\d+)\), torch\.bfloat16"
)


class Written(Exception):
    """The code is there; it is not to be compiled."""


def answer() -> None:
    properties = SimpleNamespace(**H100, **LIMITS, **SHARED, shared_memory_per_multiprocessor=228 << 10)
    torch.cuda.get_device_properties = torch.cuda._get_device_properties = lambda *_: properties
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.get_rng_state, torch.cuda.set_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8), lambda *_: None
    torch._inductor.config.joint_graph_constant_folding = False  # it computes constants on the device
    torch._inductor.config.compile_threads = 1
    for module, name in (
        (fuse_attention, "_sfdp_init"),
        (pad_mm, "_pad_mm_init"),
        (misc_patterns, "_misc_patterns_init"),
    ):
        setattr(module, name, lambda *_, **__: None)  # patterns are traced on tensors of the device
    stand_in = StandIn(90)
    stand_in.get_device_interface = lambda: torch.cuda
    driver.set_active(cast(Any, stand_in))


def code_of(method: str, backbone: str) -> list[str]:
    """The code of the student's forward and backward pass."""
    argv = ["--method", method, "--recipe", "cifar10", "--backbone", backbone, "--image-size", "32"]
    trainer, batch, mode = fake_trainer([*argv, "--batch-size", "16", "--no-compile"], noise(16, 32))
    found: list[str] = []

    def write(self: GraphLowering) -> None:
        found.append(self.codegen()[0].value)
        raise Written

    def inner(graph, inputs, **options):
        try:
            with patch.object(GraphLowering, "compile_to_module", write):
                compile_fx_inner(copy.deepcopy(graph), inputs, **options)
        except Exception as error:
            if "Written" not in repr(error):
                raise

        def run(arguments):
            with mode:
                return graph(*arguments)

        run._boxed_call = True
        return run

    class Net(nn.Module):
        def forward(self, images):
            with torch.autocast("cuda", torch.bfloat16):
                return trainer.learner.student(images).embedding.float().sum()

    with mode:
        backend = lambda graph, inputs: compile_fx(graph, inputs, inner_compile=cast(Any, inner))  # noqa: E731
        torch.compile(Net().train(), dynamic=False, backend=backend)(next(iter(batch.views.values()))).backward()
    return found


def count(code: str) -> dict:
    maps = [tuple(map(int, numbers)) for numbers in MAPS.findall(code)]
    planar = [m for m in maps if m[2] * m[3] > 1 and m[1] > 1 and m[5] != 1]
    return {
        "kernels": len(re.findall(r"triton_\w+\.run\(", code)),
        "convolutions": code.count("extern_kernels.convolution(") + code.count("aten.convolution_backward.default("),
        "maps": len(maps),
        "planar": planar,
    }


if __name__ == "__main__":
    pretend()
    answer()
    json.dump({name: [count(code) for code in code_of(name, sys.argv[1])] for name in sys.argv[2:]}, sys.stdout)
