"""The renderer's own CUDA launches, bound and compiled for GPUs that are not here."""

import os

import pytest
import torch

pytest.importorskip("triton")

from saccade.losses.registry import methods
from saccade.pipelines import render
from saccade.pipelines.draw import draw
from saccade.pipelines.operations import Blur, Grey, Jitter, Solarise
from saccade.pipelines.render import Photos, appearance
from saccade.pipelines.views import Crop, View, Views
from tests.cuda.offline import pretending
from tests.pipelines.oracle import drawn, pictures

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="a GPU runs them itself: tests/pipelines/test_kernels_cuda.py"
    ),
]
CAPABILITIES = {"A100": 80, "H100": 90, "B200": 100}
REGISTERS = 128  # of a thread: two programs of 256 threads share a multiprocessor
STRONG = (Jitter(0.8, 0.8, 0.8, 0.2), Grey(0.3))
RECIPES = {
    "derived and blurred": Views(
        (View("weak", 224), View("strong", 224, operations=(*STRONG, Blur(), Solarise(0.3)), parent="weak"))
    ),
    "cubic": Views((View("view", 96, Crop(interpolation="bicubic"), operations=(*STRONG, Solarise(0.3))),)),
}
KERNELS = {"_cut", "_before_contrast", "_after_contrast", "_blur"}


@pytest.fixture
def on_triton(monkeypatch):
    monkeypatch.setattr(render, "choose_backend", lambda backend, device: "triton")


def assert_fit(launches):
    assert {launch.kernel for launch in launches} <= KERNELS
    for launch in launches:
        assert launch.stack == 0, f"{launch.kernel} spills {launch.stack} bytes a thread"
        assert launch.registers <= REGISTERS, f"{launch.kernel} takes {launch.registers} registers"


@pytest.mark.parametrize("capability", CAPABILITIES.values(), ids=CAPABILITIES)
def test_every_kernel_compiles_and_fits_into_registers(capability, on_triton):
    with pretending(capability) as gpu:
        for recipe in RECIPES.values():
            images = pictures(5, 41, 25)
            render.render(images, recipe, drawn(recipe, images), torch.bfloat16, backend="triton")
    assert {launch.kernel for launch in gpu.launched} == KERNELS
    assert_fit(gpu.launched)


def test_a_view_takes_two_to_five_launches_whatever_the_batch(on_triton):
    counts = {}
    with pretending(90) as gpu:
        for batch in (2, 7):
            for name, recipe in RECIPES.items():
                images, before = pictures(batch, 41, 25), len(gpu.launched)
                render.render(images, recipe, drawn(recipe, images), torch.bfloat16, backend="triton")
                counts[name, batch] = len(gpu.launched) - before
                assert all(launch.grid[0] == batch for launch in gpu.launched[before:])
    assert [counts[name, 2] for name in RECIPES] == [counts[name, 7] for name in RECIPES] == [6, 3]


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES.values(), ids=CAPABILITIES)
def test_every_dtype_layout_and_kind_of_source_compiles(capability, on_triton):
    recipe, images = RECIPES["derived and blurred"], pictures(4, 32, 32)
    params = drawn(recipe, images)
    flat = images.permute(0, 2, 3, 1).reshape(-1)
    photos = Photos(flat, torch.arange(4) * 3 * 32 * 32, torch.tensor([[32, 32]]).expand(4, 2).contiguous())
    with pretending(capability) as gpu:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            render.render(photos, recipe, params, dtype, backend="triton")
            render.render(images, recipe, params, dtype, index=torch.tensor([3, 1, 0, 2]), backend="triton")
            for image in (images, images.permute(0, 2, 3, 1).contiguous(), images.float() / 255):
                appearance(image, recipe["strong"], params["strong"], recipe, dtype, backend="triton")
    assert_fit(gpu.launched)


@pytest.mark.slow
def test_every_published_recipe_compiles_for_hopper(on_triton):
    with pretending(90) as gpu:
        for method in methods().values():
            for data in method.published:
                views = method.recipe(data, None).views
                images = pictures(2, 64, 64)
                params = draw(views, 0, 0, torch.arange(2), torch.full((2, 2), 64))
                render.render(images, views, params, torch.bfloat16, backend="triton")
    assert_fit(gpu.launched)


def test_an_empty_batch_launches_nothing(on_triton):
    recipe, images = RECIPES["derived and blurred"], pictures(1, 32, 32)[:0]
    with pretending(90) as gpu:
        views = render.render(images, recipe, drawn(recipe, images), backend="triton")
    assert not gpu.launched and all(len(view) == 0 for view in views.values())
