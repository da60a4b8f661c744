"""The processes around this one: who started it, what it starts, what they are told, and their end."""

from __future__ import annotations

import os
import re
import select
import signal
import threading
import time
from pathlib import Path

LAUNCHERS = ("accelerate", "torchrun", "torch.distributed", "deepspeed", "mpirun", "mpiexec", "srun", "slurmstepd")
SUPERVISORS = ("python", "timeout", "supervisord", "pt_elastic")  # with what they start; a shell leaves it running

REQUEUE = 75  # sysexits.h's EX_TEMPFAIL: what was learned is saved, start the same command again
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143} | dict.fromkeys(
    (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU), REQUEUE
)  # all that ask a process to end and can be caught, with the exit code of a run that they end


def launcher() -> int | None:
    """The process that started this one, if it is one that a run should not outlive: no shell, terminal or init."""
    parent = os.getppid()
    words = command_line(parent)
    named = words[0].split("/")[-1] if words else ""
    if named.startswith((*LAUNCHERS, *SUPERVISORS)) or any(name in word for word in words[:3] for name in LAUNCHERS):
        return parent
    return None


def command_line(process: int) -> list[str]:
    """The words of a process's command; none where there is no such process, or the system does not tell."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def asked_processes() -> int:
    """How many processes whoever started this one meant to start, by what they leave in the environment, or wrote."""
    names = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
    asked = [os.environ.get(name, "") for name in names]
    asked.append(_asked_of_accelerate(command_line(os.getppid())))
    return max([1, *(int(number) for number in asked if number.isdecimal())])


def local_processes() -> int:
    """How many processes of this run share the machine, by what their launcher leaves in the environment; else 1."""
    names = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")
    given = [os.environ.get(name, "") for name in names]
    return max([1, *(int(number) for number in given if number.isdecimal())])


def _asked_of_accelerate(words: list[str]) -> str:
    """What `accelerate launch` was told: with --cpu it starts one process whatever that was, and says nothing."""
    command = " ".join(words)
    if "accelerate" not in command:
        return ""
    if written := re.search(r"--num[_-]processes[= ](\d+)", command):
        return written[1]
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    named = re.search(r"--config[_-]file[= ](\S+)", command)
    try:
        config = Path(named[1] if named else f"{home}/accelerate/default_config.yaml").read_text(errors="replace")
    except OSError:
        return ""
    return found[1] if (found := re.search(r"^num_processes: (\d+)", config, re.MULTILINE)) else ""


def descriptor(process: int | None) -> int | None:
    """Something to select on for the end of `process`; None where the system has no such thing."""
    if process is None or not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(process)
    except OSError:
        return None


def become_worker() -> None:
    """Called in a forked worker, which holds nothing to save: a scheduler signals every process of a job, and its run
    decides what that means. SIGTERM, by which its pool ends it, is obeyed; it ends at once when its run has ended.

    No PR_SET_PDEATHSIG: that comes with the end of the thread that forked.
    """
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), name="parent", daemon=True).start()


def _end_with(parent: int) -> None:
    held = descriptor(parent)
    while os.getppid() == parent:
        if held is None:
            time.sleep(1)
        else:
            select.select([held], [], [])
            break
    os._exit(1)  # nothing of the run's is held any longer
