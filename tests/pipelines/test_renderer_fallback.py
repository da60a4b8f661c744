"""A compiled renderer that fails here: "auto" goes on with torch, saying so once; any other choice is an error."""

import pytest
import torch

from saccade.base.errors import UserError
from saccade.pipelines import render as renderer
from saccade.pipelines import render_cpu
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.operations import Blur, Jitter, Solarise
from saccade.pipelines.order import Order
from saccade.pipelines.render import appearance, choose_backend, render
from saccade.pipelines.sources import ArraySource
from saccade.pipelines.views import View, Views
from tests.pipelines.oracle import drawn, pictures

RECIPE = Views(
    (
        View("weak", 16),
        View("strong", 16, operations=(Jitter(0.4, 0.4, 0.4, 0.1), Blur(kernel_size=5), Solarise(0.5)), parent="weak"),
    )
)


@pytest.fixture(autouse=True)
def _nothing_failed_yet(monkeypatch):
    monkeypatch.setattr(renderer, "_FAILED", set())


def broken(*_, **__):
    raise RuntimeError("a line of the driver's\nno C compiler was found")


def break_numba(monkeypatch):
    monkeypatch.setattr(render_cpu, "_kernel", broken)


def break_triton(monkeypatch):
    """Kernels that fail as they would on a GPU, where "auto" takes triton."""

    class Kernels:
        cut = finish = staticmethod(broken)

    monkeypatch.setattr(renderer, "_triton", Kernels)
    monkeypatch.setattr(
        renderer,
        "choose_backend",
        lambda backend, device: "torch" if backend == "torch" or "triton" in renderer._FAILED else "triton",
    )


@pytest.mark.parametrize("breaks", [break_numba, break_triton])
def test_auto_renders_by_torch_and_says_so_once(breaks, monkeypatch, capsys):
    images = pictures(3, 20, 24)
    params = drawn(RECIPE, images)
    expected = render(images, RECIPE, params, backend="torch")
    breaks(monkeypatch)
    for _ in range(2):
        for name, view in render(images, RECIPE, params).items():
            assert torch.equal(view, expected[name])
    again = appearance(images[..., :20], RECIPE["strong"], params["strong"], RECIPE)
    assert torch.equal(again, appearance(images[..., :20], RECIPE["strong"], params["strong"], RECIPE, backend="torch"))
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("WARNING: the ") and "RuntimeError: no C compiler was found" in said[0]


def test_auto_chooses_torch_from_then_on(monkeypatch):
    images = pictures(2, 16, 16)
    assert choose_backend("auto", images.device) == "numba"
    break_numba(monkeypatch)
    render(images, RECIPE, drawn(RECIPE, images))
    assert choose_backend("auto", images.device) == "torch"


def test_a_renderer_asked_for_is_not_replaced(monkeypatch):
    break_numba(monkeypatch)
    images = pictures(2, 16, 16)
    with pytest.raises(
        UserError, match=r"--renderer numba does not work on this cpu .*no C compiler.*use auto or torch"
    ):
        render(images, RECIPE, drawn(RECIPE, images), backend="numba")


def test_an_error_of_the_input_is_no_failure_of_the_renderer(capsys):
    images = pictures(2, 16, 16)
    with pytest.raises(IndexError):
        render(images, RECIPE, drawn(RECIPE, images), index=torch.tensor([0, 2]))
    with pytest.raises(KeyError):  # torch fails too
        render(images, RECIPE, {})
    assert choose_backend("auto", images.device) == "numba" and not capsys.readouterr().err


@pytest.mark.parametrize("name", ["auto", "torch", "numba"])
def test_a_pipeline_renders_by_the_renderer_asked_for(name, monkeypatch):
    source = ArraySource("noise", pictures(8, 16, 16).permute(0, 2, 3, 1).numpy())
    used = []
    monkeypatch.setattr(renderer, "_render", lambda *a: used.append(a[5]) or {"weak": a[0], "strong": a[0]})
    with build_pipeline(source, RECIPE, Order(8, 4), renderer=name) as pipeline:
        list(pipeline)
    assert used == 2 * [{"auto": "numba"}.get(name, name)]


def test_a_renderer_that_cannot_run_there_is_refused():
    source = ArraySource("noise", pictures(8, 16, 16).permute(0, 2, 3, 1).numpy())
    with pytest.raises(UserError, match="'triton' runs on cuda"):
        build_pipeline(source, RECIPE, Order(8, 4), renderer="triton")
    with pytest.raises(UserError, match="renders by torchvision"):
        build_pipeline(source, RECIPE, Order(8, 4), "reference", renderer="torch")
