"""Who started this process, and how many it meant to start: by what launchers leave behind."""

import pytest

from saccade.base import processes
from saccade.base.processes import asked_processes, launcher

LAUNCH = ["/usr/bin/python3", "/venv/bin/accelerate", "launch"]


def as_child_of(words: list[str], monkeypatch) -> None:
    monkeypatch.setattr(processes, "command_line", lambda process: words)
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("words", "environment", "asked"),
    [
        (["bash"], {}, 1),
        ([*LAUNCH, "train.py"], {}, 1),
        ([*LAUNCH, "--cpu", "--num_processes", "2", "train.py"], {}, 2),
        ([*LAUNCH, "--num-processes=3", "train.py"], {}, 3),
        (["bash"], {"WORLD_SIZE": "4"}, 4),
        (["slurmstepd: [7.0]"], {"SLURM_STEP_NUM_TASKS": "8"}, 8),
        (["mpirun"], {"OMPI_COMM_WORLD_SIZE": "2"}, 2),
    ],
)
def test_the_number_that_was_asked_for(words, environment, asked, monkeypatch, tmp_path):
    as_child_of(words, monkeypatch)
    for name, value in {"HF_HOME": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)
    assert asked_processes() == asked


@pytest.mark.parametrize("flag", [[], ["--config_file", "PLACE"]])
def test_the_number_in_accelerates_own_configuration(flag, monkeypatch, tmp_path):
    place = tmp_path / "accelerate" / "default_config.yaml"
    place.parent.mkdir()
    place.write_text("compute_environment: LOCAL_MACHINE\nnum_machines: 1\nnum_processes: 2\nuse_cpu: true\n")
    as_child_of([*LAUNCH, *(word.replace("PLACE", str(place)) for word in flag), "train.py"], monkeypatch)
    monkeypatch.setenv("HF_HOME", str(tmp_path if not flag else tmp_path / "none"))
    assert asked_processes() == 2


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        (LAUNCH, True),
        (["/usr/bin/python3", "-m", "torch.distributed.run"], True),
        (["/venv/bin/torchrun"], True),
        (["timeout", "60"], True),
        (["-bash"], False),
        (["/bin/zsh"], False),
        (["tmux: server"], False),
        (["/sbin/init"], False),
        ([], False),
    ],
)
def test_a_run_outlives_a_shell_but_no_launcher(words, is_one, monkeypatch):
    as_child_of(words, monkeypatch)
    assert (launcher() is not None) == is_one
