"""What torch.compile writes for a GPU of each student, without one: how many kernels, and channels-last throughout."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import fake_cuda

ROOT = Path(__file__).resolve().parents[2]
METHODS = {"simclr": 6, "byol": 6, "resa": 6, "cacr-momentum": 6, "ressl": 8}  # kernels a convolution, today's


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_students_code_has_few_kernels_and_no_planar_map(method, tmp_path):
    environment = fake_cuda.environment(tmp_path)
    if environment is None:
        pytest.skip("a GPU is here, or no CUDA build of torch, or no C compiler")
    command = [sys.executable, "-m", "tests.cuda.inductor_code", "test_resnet", method]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    forward, backward = json.loads(done.stdout)[method]
    assert forward["convolutions"] and backward["convolutions"] == forward["convolutions"] and forward["maps"]
    for code in (forward, backward):
        few = METHODS[method] * code["convolutions"] + 4
        assert code["kernels"] <= few, "a kernel of its own for what should be fused"
        assert code["planar"] == []
