"""The cluster kit: the batch script with stand-ins for SLURM's commands, the other files by their form."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from saccade.runs.checkpoint import load_checkpoint
from tests.runs.nursery import until

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = {
    "srun": """
        while [[ $1 == --* ]]; do shift; done
        for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks+=($!); done
        worst=0
        for task in "${tasks[@]}"; do wait $task; code=$?; ((code > worst)) && worst=$code; done
        exit $worst""",
    "scontrol": """
        [[ $1 == show ]] && echo 127.0.0.1 || echo "$@" >> "$QUEUE\"""",
    "saccade": """
        exec "$PYTHON" -m saccade.cli "$@\"""",
}


def test_the_batch_script_is_one_and_the_image_has_what_it_copies():
    assert subprocess.run(["bash", "-n", str(ROOT / "examples" / "slurm.sbatch")], check=False).returncode == 0
    copied = {line.split()[1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY")}
    assert copied == {"."} and (ROOT / "constraints.txt").exists()
    left_out = (ROOT / ".dockerignore").read_text().split()
    assert not {"constraints.txt", "pyproject.toml", "setup.py", "README.md"} & set(left_out)


@pytest.mark.slow
def test_a_job_that_is_told_to_stop_is_queued_again_and_goes_on(tmp_path):
    (tmp_path / "bin").mkdir()
    for name, script in STAND_INS.items():
        (tmp_path / "bin" / name).write_text("#!/bin/bash" + script + "\n")
        (tmp_path / "bin" / name).chmod(0o755)
    images = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(80) % 4)
    out, queue = tmp_path / "resa-seed3", tmp_path / "queue"
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "QUEUE": str(queue),
        "DATA": str(tmp_path / "images.npz"),
        "RUNS": str(tmp_path),
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_NTASKS": "2",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "x",
    }
    flags = [
        "--backbone",
        "test_resnet",
        "--batch-size",
        "16",
        "--log-every",
        "1",
        "--eval-every",
        "0",
        "--steps",
        "60",
    ]
    job = ["bash", str(ROOT / "examples" / "slurm.sbatch"), *flags]
    with subprocess.Popen(job, env=environment, stdout=subprocess.DEVNULL) as first:
        assert until(
            lambda: (out / "metrics.jsonl").exists() and '"step": 2' in (out / "metrics.jsonl").read_text(), 90
        )
        for process in _tasks(out):
            os.kill(process, signal.SIGUSR1)
        assert first.wait(60) == 75
    assert queue.read_text() == f"requeue {os.getpid()}\n" and load_checkpoint(out)["step"] < 60
    assert subprocess.run(job, env=environment, stdout=subprocess.DEVNULL, timeout=120, check=False).returncode == 0
    assert load_checkpoint(out)["step"] == 60 and queue.read_text().count("requeue") == 1


def _tasks(out: Path) -> list[int]:
    """The processes of the run that writes to `out`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if "saccade.cli" in words and str(out) in words:
            found.append(int(folder.name))
    return found
