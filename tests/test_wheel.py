"""The wheel, built and installed elsewhere: one name, all of its files, every command beside a user's own modules."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (".git", ".venv*", "build", "dist", "*.egg-info", "outputs", "saccade_runs", "site", "__pycache__")
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "clone", ignore=shutil.ignore_patterns(*LEFT_OUT))
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=folder / "clone", capture_output=True, check=True)
    return next(folder.glob("*.whl"))


def test_wheel_holds_one_name_and_every_file_of_the_product(wheel):
    with ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if not name.endswith("/")}
        entries = next(archive.read(name).decode() for name in inside if name.endswith("entry_points.txt"))
    assert {name.partition("/")[0] for name in inside} == {
        "saccade",
        wheel.stem.removesuffix("-py3-none-any") + ".dist-info",
    }
    modules = {name.removeprefix("saccade/") for name in inside if name.startswith("saccade/")}
    clone = wheel.parent / "clone"
    product = [path.relative_to(clone) for path in clone.rglob("*.py") if (path.parent / "__init__.py").exists()]
    rooms = {
        path.as_posix() for path in product if path.parts[0] not in ("tests", "benchmarks", "examples", "docs", "build")
    }
    assert modules == rooms - {"setup.py"} | {"py.typed"}
    assert "saccade = saccade.cli:main" in entries


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """bin/ of a virtual environment that has the wheel, and our site-packages without what is editable there."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    assert {path.name for path in site.iterdir()} == {
        "saccade",
        wheel.stem.removesuffix("-py3-none-any") + ".dist-info",
    }
    ours = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "ours.pth").write_text("\n".join(ours))  # a path's own .pth files, the editable saccade's, are not read
    return folder / "bin"


@pytest.fixture
def users_folder(tmp_path, monkeypatch) -> Path:
    """The current folder of someone whose own project has our rooms' names."""
    for name in ("models", "tools", "base", "runs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('the user\\'s own {name} was imported')")
    for name in ("losses", "train"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the user\\'s own {name} was imported')")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8), np.arange(40) % 4
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=images, labels=labels)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return tmp_path


def run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stdout[-500:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow
def test_every_command_runs_from_a_folder_with_the_users_own_modules(installed, users_folder):
    where = run(installed / "python", "-c", "import saccade; print(saccade.__file__)")
    assert str(installed.parent) in where
    commands = re.findall(r"^  ([a-z]+)  +\S", run(installed / "saccade", "--help"), re.MULTILINE)
    assert {"train", "eval", "convert", "doctor"} <= set(commands)
    for command in commands:
        assert "usage: " in run(installed / "saccade", command, "--help")
    small = ("--data", "train.npz", "--backbone", "test_resnet", "--batch-size", "8", "--steps", "3")
    run(installed / "saccade", "train", "--method", "simclr", *small, "--out", "run")
    assert "top1" in run(installed / "saccade", "eval", "run", "--protocol", "knn")
    run(installed / "python", "-m", "saccade.train", "--resume", "run")
    assert "| simclr |" in run(
        installed / "saccade",
        "survey",
        "--data",
        "train.npz",
        "--methods",
        "simclr",
        "--steps",
        "2",
        "--batch-size",
        "8",
    )
