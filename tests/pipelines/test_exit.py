"""A script that ends in the middle of an epoch, with its pipelines open, ends at once and says nothing."""

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from saccade.pipelines import render_cpu
from saccade.pipelines.draw import draw
from saccade.pipelines.render import render
from saccade.pipelines.views import View, Views
from tests.images import PHOTOS

EXECUTORS = [e for e in ("resident", "threads", "ffcv", "dali", "reference") if e != "dali" or find_spec("nvidia.dali")]
SCRIPT = """
import sys
import numpy as np
from PIL import Image
from saccade import View, Views
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.data import open_data
from saccade.tools.convert import main

photos, scratch, executors = sys.argv[1], sys.argv[2], sys.argv[3:]
if "ffcv" in executors:
    main([photos, scratch + "/x.beton"])
going = []
for executor in executors:
    source = open_data(scratch + "/x.beton" if executor == "ffcv" else photos)[0]
    if executor == "resident":
        source = source.subset([0])
    many = source.subset(np.arange(480) % len(source))
    views = Views(View("aggressive", 160).times(2))
    pipeline = build_pipeline(many, views, batch_size=48, device="cpu", executor=executor, workers=2)
    steps = iter(pipeline)
    next(steps), next(steps)
    going.append(steps)
print("in the middle")
"""


def ends(executors: list[str], scratch: Path) -> float:
    """Seconds from the script's last line to its end."""
    command = [sys.executable, "-c", SCRIPT, str(PHOTOS), str(scratch), *executors]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None and script.stderr is not None
        for line in script.stdout:
            if line == "in the middle\n":
                break
        started = time.monotonic()
        code, said = script.wait(60), script.stderr.read()
    assert code == 0 and not said, said
    return time.monotonic() - started


def test_a_script_that_leaves_every_executor_in_an_epoch_ends_silently(tmp_path):
    assert ends(EXECUTORS, tmp_path) < 20


@pytest.mark.slow
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_script_that_leaves_one_executor_in_an_epoch_ends_silently(tmp_path, executor):
    assert ends([executor], tmp_path) < 10


def test_a_batch_that_is_rendered_while_the_interpreter_ends_is_rendered_by_one_thread(monkeypatch, capsys):
    class Ended:
        def submit(self, *_):
            raise RuntimeError("cannot schedule new futures after shutdown")

    views, pixels = Views(View("a", 8).times(2)), torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8)
    params = draw(views, 0, 0, torch.arange(9), torch.full((9, 2), 16))
    expected = render(pixels, views, params, threads=1)
    monkeypatch.setattr(render_cpu, "_pool", lambda threads: Ended())
    found = render(pixels, views, params, threads=4)
    assert all(torch.equal(found[name], expected[name]) for name in views.names) and not capsys.readouterr().err
