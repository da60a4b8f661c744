"""benchmarks.gpu: what ends one part ends no other, and the whole report in miniature."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_part import MINIATURE, Bench
from benchmarks.gpu_right import RIGHT, _judged
from benchmarks.gpu_speed import SPEED
from saccade.base.errors import UserError
from saccade.losses.registry import methods
from saccade.tools.benchmark.rows import read_rows

WRITE = """
import json, os, signal, sys, time
name, out = sys.argv[1:3]
row = {"kind": "loader", "recipe": name, "part": name, "device": "cpu", "images_per_second": 1.0}
json.dump([row], open(out, "w"))
"""


def job(name: str, then: str = "", limit: float = 60.0) -> gpu.Job:
    return gpu.Job(name, (sys.executable, "-c", WRITE + then, name), limit)


def records(path: Path) -> list[tuple[str, str, str]]:
    return [(r["part"], r["kind"], r.get("error", "")) for r in json.loads(path.read_text())]


def test_a_part_that_is_killed_hangs_or_fails_ends_alone(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    parts = [
        job("killed", "os.kill(os.getpid(), signal.SIGKILL)"),
        job("failing", "print('CUDA error: an illegal memory access was encountered'); sys.exit(3)"),
        job("hanging", "time.sleep(600)", limit=2.0),
        job("good"),
    ]
    assert gpu.report(out, parts, minutes=5) == 1
    assert records(out) == [
        ("killed", "loader", ""),
        ("killed", "failed", "killed by SIGKILL"),
        ("failing", "loader", ""),
        ("failing", "failed", "exit code 3: CUDA error: an illegal memory access was encountered"),
        ("hanging", "loader", ""),
        ("hanging", "failed", "still at work after 2 s"),
        ("good", "loader", ""),
    ]
    assert "4 parts, 7 rows, 3 of them failed" in capsys.readouterr().out


def test_the_file_is_whole_after_every_part_and_a_second_call_adds_to_it(tmp_path):
    out = tmp_path / "gpu.json"
    seen = str(tmp_path / "seen")
    look = f"import shutil; os.path.exists({str(out)!r}) and shutil.copy({str(out)!r}, {seen!r})"
    assert gpu.report(out, [job("a"), job("b", look)], minutes=5) == 0
    assert records(tmp_path / "seen") == [("a", "loader", "")]
    assert gpu.report(out, [job("b", "sys.exit(1)"), job("c")], minutes=5) == 1
    assert [part for part, kind, _ in records(out) if kind == "loader"] == ["a", "b", "c"]


def test_what_no_time_is_left_for_is_said(tmp_path):
    assert gpu.report(tmp_path / "gpu.json", [job("a")], minutes=0.1) == 1
    assert records(tmp_path / "gpu.json")[0][2].startswith("left out")


def test_a_parts_workers_end_with_it(tmp_path):
    noted = tmp_path / "pid"
    child = f"import subprocess; p = subprocess.Popen(['sleep', '600']); open({str(noted)!r}, 'w').write(str(p.pid))"
    gpu.report(tmp_path / "gpu.json", [job("a", child)], minutes=5)
    status = Path(f"/proc/{noted.read_text()}/status")
    for _ in range(50):
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.1)
    pytest.fail("the worker is still at work")


def test_floor_and_shares_follow_from_the_measured_ceiling():
    step = {
        "kind": "model",
        "device": "NVIDIA H100",
        "part": "stec_cifar10",
        "batch_size": 1000,
        "backbone": "resnet18",
    }
    ceiling = {"kind": "ceiling", "part": "ceilings", "device": "NVIDIA H100", "flop_per_second": 500e12}
    made = gpu.finished([ceiling, {**step, "tflop_per_image": 0.005, "images_per_second": 40_000.0}])[1]
    assert made["floor_ms"] == 10.0 and made["share_of_product"] == 0.4
    assert made["mfu"] == pytest.approx(200 / 989, abs=1e-4)


def test_a_difference_or_a_nan_is_wrong(tmp_path):
    bench = Bench(MINIATURE, torch.device("cpu"), tmp_path, 0.0)
    kinds = [_judged(bench, "a", "b", error, 1e-3).kind for error in (1e-4, 2e-3, float("nan"))]
    assert kinds == ["right", "wrong", "wrong"]


def test_right_comes_first_and_every_part_has_a_limit(capsys):
    assert [*gpu.LIMITS] == [*RIGHT, *SPEED]
    with pytest.raises(UserError, match="--parts nothing is unknown"):
        gpu.main(["x.json", "--parts", "kernels,nothing"])


@pytest.mark.slow
def test_the_whole_report_in_miniature(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: run benchmarks.gpu itself")
    out = tmp_path / "gpu.json"
    assert gpu.main([str(out), "--minutes", "60"]) == 0
    rows = read_rows(out)
    assert {r["part"] for r in rows} == {*RIGHT, *SPEED} and all(r["miniature"] for r in rows)
    assert set(methods()) <= {r["recipe"] for r in rows if r["part"] == "steps"}
    assert {r["part"] for r in rows if "minutes_projected" in r} == {"simclr_cifar10", "rsa_cifar100"}
    assert all(r["largest_update"] > 1e-4 for r in rows if r["part"] == "steps")
