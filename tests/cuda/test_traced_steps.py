"""Every method's whole training step on fake CUDA tensors: what a GPU would be told to do, without one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import fake_cuda
from tests.cuda.traced_steps import CASES

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"stec", "resa", "cacr-queue", "accumulated"}  # BatchNorm joint, a teacher, a queue, parts; the others: slow
CONVOLUTION_BACKWARD = "aten::convolution_backward: not channels-last"


def run(names: list[str], folder: Path) -> dict:
    environment = fake_cuda.environment(folder)
    if environment is None:
        pytest.skip("a GPU is here, or no CUDA build of torch, or no C compiler")
    command = [sys.executable, "-m", "tests.cuda.traced_steps", *names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def assert_sound(name: str, step: dict) -> None:
    allowed = [CONVOLUTION_BACKWARD] if step.get("batch_norm", "").startswith("split") else []  # it arranges them anew
    assert [fault for fault in step["faults"] if fault not in allowed] == [], name
    assert step["operators"] > 300, name
    for kind in ("aten::convolution", "aten::addmm"):
        assert set(step["products"][kind]) <= {"bfloat16"}, f"{name}: the networks compute in bf16"
    assert step["products"]["aten::convolution"] and step["updates"] == ["float32"], name
    assert step["parameters"] == ["cuda torch.float32"], name


def test_a_methods_step_stays_on_the_gpu_in_its_dtypes_and_layout_and_is_never_waited_for(tmp_path):
    names = sorted(QUICK)
    for name, step in run(names, tmp_path).items():  # one process: torch is long to import
        assert_sound(name, step)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CASES) - QUICK))
def test_the_others_do_too(name, tmp_path):
    assert_sound(name, run([name], tmp_path)[name])


FAULTY = """
import sys, torch
from benchmarks.fake_cuda import pretend
from benchmarks.operators import Trace
from torch._subclasses.fake_tensor import FakeTensorMode
pretend()
with FakeTensorMode():
    x = torch.zeros(4, 3, 8, 8, device="cuda")
    with Trace() as trace:
        torch.arange(4).cuda(); x.cpu(); x[torch.tensor([1, 0])]
        torch.nn.functional.conv2d(x, torch.zeros(2, 3, 3, 3, device="cuda"))
        x * 2; x + torch.tensor(1.0); x.view(-1); torch.arange(4, device="cuda")
        try:
            x[x > 0]
        except Exception as error:
            print(type(error).__name__)
print(len(trace.faults)); print(*trace.faults, sep="\\n")
"""


@pytest.mark.slow
def test_the_tracer_sees_what_would_stop_a_gpu(tmp_path):
    environment = fake_cuda.environment(tmp_path)
    if environment is None:
        pytest.skip("a GPU is here, or no CUDA build of torch, or no C compiler")
    command = [sys.executable, "-c", FAULTY]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.stdout.splitlines() == [
        "DynamicOutputShapeException",
        "4",
        "aten::_to_copy: a copy from pageable memory",
        "aten::_to_copy: a copy to the CPU",
        "aten::convolution: not channels-last",
        "aten::index: a tensor of the CPU among tensors of the GPU",
    ], done.stdout + done.stderr
