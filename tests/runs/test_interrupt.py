"""Real signals, as launchers and schedulers send them: noted while training, one wish a second, exit codes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saccade.base.errors import Stopped
from saccade.base.processes import SIGNALS, become_worker
from saccade.runs.interrupt import SAME_WISH, Interrupt


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_while_training_and_the_handlers_come_back(number):
    found = signal.signal(number, signal.SIG_DFL)  # nohup starts a suite with some ignored
    try:
        with Interrupt() as interrupt:
            interrupt.saves()
            signal.raise_signal(number)
            signal.raise_signal(number)  # as torchrun and accelerate pass it on: the same wish
            assert interrupt.code == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, 75)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, found)


def test_a_second_wish_stops_at_once_and_none_counts_when_all_is_saved(monkeypatch):
    with Interrupt() as interrupt:
        interrupt.saves()
        signal.raise_signal(signal.SIGTERM)
        time.sleep(SAME_WISH + 0.05)
        with pytest.raises(Stopped, match="SIGTERM; stopped at once") as stopped:
            signal.raise_signal(signal.SIGINT)
        assert stopped.value.code == 143
        interrupt.done()
        signal.raise_signal(signal.SIGINT)


def test_before_there_is_anything_to_save_the_first_one_stops():
    with Interrupt(), pytest.raises(Stopped, match="SIGUSR1; nothing was begun"):
        signal.raise_signal(signal.SIGUSR1)


def test_a_signal_that_nohup_took_away_stays_away():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            interrupt.saves()
            signal.raise_signal(signal.SIGHUP)
            assert interrupt.code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


LAUNCHED = """
import sys, time
from saccade.runs.interrupt import Interrupt
with Interrupt() as interrupt:
    interrupt.saves()
    print("trains", flush=True)
    while not interrupt.code:
        time.sleep(0.01)
open(sys.argv[1], "w").write(str(interrupt.code))
"""


def test_a_launcher_that_dies_does_not_leave_the_run_behind(tmp_path):
    launch = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
    said = tmp_path / "code"
    launcher = subprocess.Popen([sys.executable, "-c", launch, LAUNCHED, str(said)], stdout=subprocess.PIPE)
    assert launcher.stdout is not None and launcher.stdout.readline() == b"trains\n"
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 20
    while not said.exists() or not said.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert said.read_text() == "75"


def test_a_worker_takes_no_signal_but_its_pools_and_ends_with_its_run(tmp_path):
    worker = os.fork()
    if worker == 0:  # the run, which has a worker
        inner = os.fork()
        if inner == 0:
            become_worker()
            (tmp_path / "ready").touch()
            time.sleep(60)
        (tmp_path / "pid").write_text(str(inner))
        time.sleep(60)
    deadline = time.monotonic() + 20
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    inner = int((tmp_path / "pid").read_text())
    for number in set(SIGNALS) - {signal.SIGTERM}:
        os.kill(inner, number)
    time.sleep(0.1)
    assert "python" in Path(f"/proc/{inner}/cmdline").read_text()
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    while _runs(inner):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
