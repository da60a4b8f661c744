"""The compiled CPU renderer as a guest in other programs: threads, forks, read-only installs, bad input."""

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade.pipelines.operations import Blur, Grey, Jitter, Solarise
from saccade.pipelines.render import Photos, appearance, render
from saccade.pipelines.views import View, Views
from tests.pipelines.oracle import changed, drawn, pictures

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (Jitter(0.8, 0.8, 0.8, 0.2), Grey(0.2), Blur(), Solarise(0.2))
RECIPE = Views(View("view", 32, operations=OPERATIONS).times(2))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_number_of_threads_changes_no_bit(threads):
    images = pictures(37, 40, 33)
    params = drawn(RECIPE, images)
    threads(1)
    alone = render(images, RECIPE, params, backend="numba")
    for count in (2, 5, 64):
        threads(count)
        for name, view in render(images, RECIPE, params, backend="numba").items():
            assert torch.equal(view, alone[name])


def test_concurrent_calls_from_python_threads_do_not_disturb_each_other(threads):
    threads(2)
    images = [pictures(20, 32, 32, seed=i) for i in range(4)]
    params = [drawn(RECIPE, x, seed=i) for i, x in enumerate(images)]
    expected = [render(x, RECIPE, p, backend="numba") for x, p in zip(images, params, strict=True)]
    wrong = []

    def work(i):
        for _ in range(20):
            out = render(images[i], RECIPE, params[i], backend="numba")
            if not all(torch.equal(out[name], expected[i][name]) for name in out):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def run_python(code, root=ROOT, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**inherited, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "2", **environment},
    )


DIGEST = """
    import hashlib, torch
    from tests.pipelines.oracle import drawn, pictures
    from tests.pipelines.test_kernels_cpu import RECIPE
    from saccade.pipelines.render import render
    images = pictures(16, 32, 32)
    def digest():
        views = render(images, RECIPE, drawn(RECIPE, images), backend="numba")
        return hashlib.sha256(b"".join(v.numpy().tobytes() for v in views.values())).hexdigest()
"""


@pytest.mark.slow
def test_forked_dataloader_workers_render_after_their_parent_has():
    code = textwrap.dedent(DIGEST) + textwrap.dedent("""
        from torch.utils.data import DataLoader, Dataset
        class Rendered(Dataset):
            def __len__(self): return 4
            def __getitem__(self, n): return digest()
        if __name__ == "__main__":
            torch.set_num_threads(2)
            here = digest()
            loader = DataLoader(Rendered(), batch_size=None, num_workers=2, multiprocessing_context="fork")
            print([x == here for x in loader], digest() == here)
        """)
    done = run_python(code)
    assert done.returncode == 0 and "[True, True, True, True] True" in done.stdout, done.stderr


def test_importing_the_renderer_does_not_import_numba():
    done = run_python("import sys, pipelines.render; assert 'numba' not in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # compiles
def test_two_processes_compiling_into_one_cache_agree_and_the_third_only_loads(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(DIGEST) + "print(digest())"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    files = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*.nb*"))
    assert len(files) == 2, "one index and one compiled function"
    third = run_python(textwrap.dedent(DIGEST) + "print(digest())", NUMBA_CACHE_DIR=str(tmp_path))
    assert {out.strip() for out, _ in outputs} == {third.stdout.strip()} and len(third.stdout.strip()) == 64
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*.nb*")) == files


@pytest.mark.slow  # compiles
def test_read_only_package_compiles_into_the_users_cache(tmp_path):
    package, home = tmp_path / "install", tmp_path / "home"
    ignore = shutil.ignore_patterns("__pycache__", "*.nb*")
    for folder, place in {"pipelines": "saccade/pipelines", "base": "saccade/base", "tests": "tests"}.items():
        shutil.copytree(ROOT / folder, package / place, ignore=ignore)
    shutil.copy(ROOT / "__init__.py", package / "saccade")
    (package / "saccade" / "pipelines" / "__pycache__").write_text("a file: nothing can be kept here, not even by root")
    home.mkdir()
    code = textwrap.dedent(DIGEST) + "print(digest())"
    done = run_python(code, package, HOME=str(home), XDG_CACHE_HOME=str(home / ".cache"))
    assert done.returncode == 0 and len(done.stdout.strip()) == 64, done.stderr
    assert "compiling the CPU renderer" in done.stderr
    assert list(home.rglob("*.nbc")) and not list(package.rglob("*.nbc"))


@pytest.mark.slow  # compiles
def test_renderer_works_where_nothing_can_be_cached(tmp_path):
    (tmp_path / "pipelines").mkdir()
    for module in (ROOT / "pipelines").glob("*.py"):
        shutil.copy(module, tmp_path / "pipelines")
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for occupied in ("pipelines/__pycache__", "home"):
        (tmp_path / occupied).write_text("a file, where a folder would be needed")
    home = str(tmp_path / "home")
    done = run_python(textwrap.dedent(DIGEST) + "print(digest())", tmp_path, HOME=home, XDG_CACHE_HOME=home)
    assert done.returncode == 0 and len(done.stdout.strip()) == 64, done.stderr


def test_a_nan_in_one_image_stays_there():
    image = pictures(6, 32, 32).float() / 255
    view, params = RECIPE["view_0"], drawn(RECIPE, image)["view_0"]
    params = changed(params, {"blur.sigma": torch.full((6,), 1.5)})
    clean = appearance(image, view, params, RECIPE, backend="numba")
    image[2] = float("nan")
    out = appearance(image, view, params, RECIPE, backend="numba")
    assert out[2].isnan().all()
    others = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(out[others], clean[others])


def test_a_crop_outside_its_image_is_refused():
    images = pictures(3, 20, 30)
    params = drawn(RECIPE, images)
    for box in ([0, 0, 21, 5], [0, 26, 5, 5], [-1, 0, 5, 5], [0, 0, 0, 5]):
        wrong = params["view_0"].box.clone()
        wrong[1] = torch.tensor(box)
        with pytest.raises(ValueError, match="sample 1: the crop"):
            render(images, RECIPE, {**params, "view_0": replace(params["view_0"], box=wrong)}, backend="numba")


def test_samples_and_photos_outside_their_buffer_are_refused():
    images = pictures(3, 20, 30)
    params = drawn(RECIPE, images)
    with pytest.raises(IndexError, match="a set of 3 images"):
        render(images, RECIPE, params, index=torch.tensor([0, 1, 3]), backend="numba")
    size = torch.tensor([[20, 30]]).expand(3, 2)
    with pytest.raises(IndexError, match="to 5400 in a buffer of 5399"):
        render(Photos(images.flatten()[:-1], torch.arange(3) * 1800, size), RECIPE, params, backend="numba")


def test_an_image_of_another_size_than_its_view_is_refused():
    images = pictures(3, 20, 30)
    with pytest.raises(ValueError, match="32 px"):
        appearance(images, RECIPE["view_0"], drawn(RECIPE, images)["view_0"], RECIPE, backend="numba")
