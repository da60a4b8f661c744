"""benchmarks.work: the arithmetic of its counts, and a network whose work is known."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import fake_cuda
from benchmarks.operators import Operator
from benchmarks.work import Machine, pieces, seconds, work

ROOT = Path(__file__).resolve().parents[2]


def operator(name, reads, writes, region="network", flops=0):
    return Operator(f"aten::{name}", region, "bfloat16", flops, reads, writes, 1)


STEP = [
    operator("convolution", {1: 100, 2: 10}, {3: 100}, flops=5000),
    operator("native_batch_norm", {3: 100}, {4: 100}),
    operator("relu", {4: 100}, {5: 100}),
    operator("add", {5: 100, 1: 100}, {6: 100}),
    operator("convolution", {6: 100, 2: 10}, {7: 100}, flops=5000),
    operator("sum", {7: 100}, {8: 1}, region="loss"),
]


def test_what_stays_inside_a_fused_run_is_not_moved():
    eager, fused = list(pieces(STEP, compiled=False)), list(pieces(STEP, compiled=True))
    assert [p.bytes for p in eager] == [210, 200, 200, 300, 210, 101]
    assert [p.bytes for p in fused] == [210, 100 + 100 + 100 + 100, 210, 101]  # the norm reads its input twice
    assert [p.launches for p in fused] == [1, 2, 1, 1]
    counted = work(STEP)
    assert counted.flops == 10_000 and counted.launches == 6 and counted.launches_compiled == 5


def test_a_step_takes_as_long_as_its_slowest_part_says():
    machine = Machine(bf16=1e3, fp32=1, memory=100, kernel=0.5, eager=1.0, compiled=0.25)
    device, host = seconds(STEP, True, machine)
    assert device == 5 + 4 + 5 + 1.01 and host == 4 * 0.25 + 1.0


@pytest.mark.slow
def test_a_resnets_work_is_what_is_known_of_it(tmp_path):
    if fake_cuda.environment(tmp_path) is None:
        pytest.skip("a GPU is here, or no CUDA build of torch, or no C compiler")
    out = tmp_path / "work.json"
    command = [sys.executable, "-m", "benchmarks.work", "--only", "simclr", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    small, large = json.loads(out.read_text())["steps"]
    assert small["flops"] / small["batch_size"] / 2 / 3 == pytest.approx(1.11e9, rel=0.01)  # 0.56 G multiply-adds
    assert large["flops"] / large["batch_size"] / 2 / 3 == pytest.approx(8.2e9, rel=0.02)  # 4.1 G
    assert "predicted images/s" in done.stdout and small["launches_compiled"] < small["launches"] / 2
