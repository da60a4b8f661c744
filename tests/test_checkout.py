"""Which code runs: `import saccade` is light, and a checkout refuses to run another checkout's code."""

import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from saccade.base import checkout
from tests.present import present

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_import_saccade_loads_no_package_but_itself():
    code = "import sys; before = set(sys.modules); import saccade; print(*(set(sys.modules) - before))"
    loaded = {name.partition(".")[0] for name in run("-c", code).stdout.split()}
    assert "saccade" in loaded and loaded & set(packages_distributions()) <= {"saccade"}


@pytest.mark.parametrize(
    "command",
    [["train.py", "--help"], ["eval.py", "--help"], ["-m", "tools.recipes"], ["-m", "pytest", "tests/test_cli.py"]],
    ids=lambda command: command[-1] if "pytest" in command else command[0] + command[-1],
)
def test_another_checkouts_code_is_refused_in_one_sentence(command, tmp_path):
    (tmp_path / "saccade").mkdir()
    (tmp_path / "saccade" / "__init__.py").write_text("raise SystemExit('the code of another checkout ran')")
    done = run(*command, PYTHONPATH=str(tmp_path))
    said = [line for line in (done.stdout + done.stderr).splitlines() if line]
    assert done.returncode == 2 and len(said) == 1, said
    assert f"would run the code of {tmp_path / 'saccade'}, not of {ROOT}" in said[0] and "pip install -e" in said[0]


def test_a_saccade_that_is_not_installed_is_said_with_the_way_out(monkeypatch):
    monkeypatch.setattr(checkout, "find_spec", lambda name: None)
    said = present(checkout.foreign())
    assert "not installed" in said and f"pip install -e {ROOT}" in said
