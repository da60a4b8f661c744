"""Several processes agree on a step to stop at, wait for each other, and end together; real ones, which are killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from saccade.models.gather import rank
from saccade.pipelines.build import build_pipeline, of_all_processes
from saccade.pipelines.sources import ArraySource
from saccade.pipelines.views import View, Views
from saccade.runs.checkpoint import load_checkpoint
from saccade.runs.ranks import DIVERGED, LATE, Ranks
from tests.distributed import run_ranks
from tests.runs.nursery import meeting

ROOT = Path(__file__).resolve().parents[2]
WELL = torch.tensor(False)
FLAGS = ["--backbone", "test_resnet", "--batch-size", "16", "--steps", "100000", "--log-every", "5"]


def _together() -> dict:
    with Ranks(torch.device("cpu"), 60) as ranks:
        asked = [ranks.agreed(75 if rank() == 1 and step == 2 else 0, WELL) for step in range(LATE + 4)]
        at_once = ranks.agreed(143 if rank() == 0 else 0, WELL, now=True)
        wrong = [ranks.agreed(0, torch.tensor(rank() == 1 and step == 1)) for step in range(LATE + 3)]
        before = time.monotonic()
        ranks.on_main("sleeping", lambda: time.sleep(0.3))
        after = time.monotonic()
        text = ranks.of_main("a name", f"of process {rank()}")
        executor = ranks.common("choosing", ("resident", "dali")[rank()], of_all_processes)
    return {
        "asked": torch.tensor(asked),
        "wrong": torch.tensor(wrong),
        "at_once": torch.tensor(at_once),
        "before": before,
        "after": after,
        "text": len(text),
        "executor": len(executor),
    }


def test_processes_agree_a_few_steps_late_on_the_same_step_and_wait_for_the_main_one():
    both = run_ranks(_together)
    for found in both:
        assert found["asked"].tolist() == [0] * (LATE + 2) + [75] + [0]
        assert found["wrong"].tolist() == [0] * (LATE + 1) + [DIVERGED] + [0]
        assert (
            int(found["at_once"]) == 143
            and found["after"] > both[0]["before"] + 0.29
            and found["text"] == len("of process 0")
            and found["executor"] == len("dali")
        )


def test_the_executor_is_one_that_every_process_can_use():
    images = ArraySource("x", np.zeros((8, 8, 8, 3), np.uint8))
    for others, wanted in ((["resident"], "resident (8 images"), (["reference", "dali"], "reference (which every")):

        def agree(own: str, others=others) -> str:
            return of_all_processes([own, *others])

        with build_pipeline(images, Views(View("weak", 8).times(2)), batch_size=4, agree=agree) as pipeline:
            assert pipeline.choice.startswith(wanted)
    with build_pipeline(images, Views(View("weak", 8).times(2)), None, "resident", batch_size=4, agree=agree) as asked:
        assert asked.choice == "resident (as asked)"


def test_one_process_does_everything_at_once():
    with Ranks(None, 60) as ranks:
        assert ranks.agreed(75, WELL) == 75 and ranks.on_main("x", lambda: 3) == 3 and ranks.of_main("x", "y") == "y"


class Two:
    """Two machines of one process each, as far as they know, which train."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.out = folder / "run"
        shared = meeting(2)
        self.processes = [
            start([str(ROOT / "train.py"), *FLAGS, "--out", str(self.out), *more], RANK=str(r), **shared)
            for r in range(2)
        ]
        wait_for_steps(self.out)

    def end(self, within: float) -> tuple[list[int], list[str]]:
        said = [process.communicate(timeout=within)[1] for process in self.processes]
        return [process.returncode for process in self.processes], said


def start(command: list[str], **more: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **more}
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def wait_for_steps(out: Path) -> None:
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_text().count('"loss"') < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_signal_to_one_of_two_saves_once_and_ends_both(tmp_path):
    two = Two(tmp_path)
    two.processes[1].send_signal(signal.SIGUSR1)
    codes, said = two.end(30)
    assert codes == [75, 75] and "Traceback" not in "".join(said)
    assert load_checkpoint(two.out)["step"] > 5


@pytest.mark.slow
def test_a_killed_process_ends_the_other_within_seconds_and_by_name(tmp_path):
    two = Two(tmp_path)
    two.processes[1].kill()
    killed = time.monotonic()
    codes, said = two.end(30)
    assert time.monotonic() - killed < 8 and codes == [1, -signal.SIGKILL]
    assert f"process 1 ended (signal 9, SIGKILL); its last words are in {two.out}/ranks/rank-1.txt" in said[0]
    assert "Traceback" not in said[0]


@pytest.mark.slow
def test_a_stopped_process_ends_the_other_after_the_time_that_was_given(tmp_path):
    two = Two(tmp_path, "--rank-timeout", "4")
    two.processes[1].send_signal(signal.SIGSTOP)
    said = two.processes[0].communicate(timeout=60)[1]
    two.processes[1].kill()
    assert two.processes[0].returncode == 1 and "Traceback" not in said
    assert "process 1 has stood still, without a sign of life, for 4 s; its last words are in " in said
    two.end(10)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(
    "launcher",
    [
        ["-m", "accelerate.commands.launch"],
        ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"],
    ],
    ids=["accelerate", "torchrun"],
)
def test_a_signal_to_the_launcher_alone_saves_and_leaves_nobody_behind(tmp_path, launcher, number):
    out = tmp_path / "run"
    process = start([*launcher, "train.py", *FLAGS, "--out", str(out)])
    wait_for_steps(out)
    process.send_signal(number)
    process.wait(timeout=60)
    deadline = time.monotonic() + 30
    while any(
        str(out) in (p / "cmdline").read_text() for p in Path("/proc").glob("[0-9]*") if (p / "cmdline").exists()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert load_checkpoint(out)["step"] > 5
    process.communicate()


@pytest.mark.slow
def test_fewer_processes_than_were_asked_for_are_refused(tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "train.py", *FLAGS]
    process = start([*launch, "--out", str(tmp_path / "run")])
    assert "2 processes were asked for but 1 found each other" in process.communicate(timeout=120)[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_that_never_comes_is_one_sentence():
    shared = meeting(2)
    process = start(["-c", ALONE], RANK="0", **shared)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2 and "the 2 processes did not all come to 127.0.0.1:" in said
    assert "Traceback" not in said


ALONE = """
import sys
from saccade.base.command import run_command
from saccade.runs.ranks import start_processes
run_command("train.py", lambda: start_processes("cpu", -58) and 0)
"""
