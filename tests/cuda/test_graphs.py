"""torch.compile takes student and teacher whole: no break, one graph for each network and size of view."""

from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from saccade.losses.registry import methods
from saccade.tools.benchmark.suites import noise
from saccade.tools.benchmark.trainer import Trainer

QUICK = ("simclr", "ressl", "cacr-momentum")  # joint views; split batch norm, shuffled; a predictor, several sizes
SMALL = [
    "--recipe",
    "cifar10",
    "--backbone",
    "test_resnet",
    "--image-size",
    "32",
    "--batch-size",
    "8",
    "--device",
    "cpu",
]


@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in methods()])
def test_no_graph_breaks_and_none_is_made_anew(method):
    torch._dynamo.reset()
    counters.clear()
    counter, compile_module = CompileCounter(), nn.Module.compile  # takes the graphs and runs them uncompiled
    with patch.object(nn.Module, "compile", lambda self, **options: compile_module(self, backend=counter, **options)):
        trainer = Trainer(["--method", method, *SMALL, "--compile"], noise(32, 32))
    objective, views = trainer.learner.objective, trainer.config.recipe.views
    seen = [(objective.student_views, "student"), (objective.teacher_views, "teacher")]
    expected = {(views[name].size, network) for names, network in seen for name in names}
    batch = next(iter(trainer.pipeline))
    for _ in range(2):
        trainer.step(batch)
        assert counter.frame_count == len(expected)
    assert not counters["graph_break"]
    torch._dynamo.reset()
