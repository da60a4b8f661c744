"""The Triton renderer against torchvision: on the GPU where there is one, else in Triton's interpreter."""

import os
import re
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version

from saccade.pipelines.draw import ViewParams
from saccade.pipelines.operations import Blur, Grey, Jitter, Solarise
from saccade.pipelines.render import Photos, appearance, render
from saccade.pipelines.views import Crop, View, Views
from tests.pipelines.oracle import changed, drawn, pictures, views_of
from tests.reference_values import load_reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
runs_triton = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no GPU; see the interpreter's test below")
TOLERANCE = 1e-5  # in [0, 1], as in test_render.py

JITTER, GREY, SOLARISE = Jitter(0.8, 0.8, 0.8, 0.2), Grey(0.3), Solarise(0.3)
STRONG = (JITTER, GREY, SOLARISE)
RECIPES = {
    "derived views": Views(
        (View("weak", 32), View("strong", 32, operations=(JITTER, GREY, Blur(), SOLARISE), parent="weak")),
        (0.4, 0.5, 0.6),
        (0.2, 0.3, 0.25),
    ),
    "no blur, several blocks, cubic": Views(
        (View("view", 37, Crop((0.05, 1.0), interpolation="bicubic"), operations=STRONG),)
    ),
    "blur without jitter": Views((View("view", 9, operations=(Blur(1.0, (0.1, 3.0), 5), Solarise(0.5))),)),
    "geometry alone": Views((View("view", 21, Crop((0.01, 1.0), (0.2, 5.0))),)),
}


def moved(params):
    return {name: p.to(DEVICE) for name, p in params.items()}


def assert_views(actual, expected, recipe):
    for name in recipe.names:
        error = (actual[name].cpu().double() - expected[name]).abs() * torch.tensor(recipe.std)[:, None, None]
        assert error.max() < TOLERANCE, f"{name}: off by {error.max():.2g}"
        assert actual[name].is_contiguous(memory_format=torch.channels_last)


@runs_triton
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_torchvisions(name):
    recipe = RECIPES[name]
    images = pictures(5, 41, 25)
    params = drawn(recipe, images)
    expected = views_of(images, recipe, params)
    for arranged in (images, images.contiguous(memory_format=torch.channels_last))[: 2 if DEVICE == "cuda" else 1]:
        assert_views(render(arranged.to(DEVICE), recipe, moved(params), backend="triton"), expected, recipe)


@runs_triton
def test_photos_of_different_sizes_and_samples_by_index():
    recipe = RECIPES["no blur, several blocks, cubic"]
    images = [pictures(1, *size)[0] for size in ((50, 33), (1, 70), (20, 20))]
    flat = [image.permute(1, 2, 0).reshape(-1) for image in images]
    end = torch.tensor([len(f) for f in flat]).cumsum(0)
    size = torch.tensor([image.shape[1:] for image in images])
    params = drawn(recipe, images)
    photos = Photos(torch.cat(flat).to(DEVICE), (end - 3 * size.prod(1)).to(DEVICE), size.to(DEVICE))
    assert_views(render(photos, recipe, moved(params), backend="triton"), views_of(images, recipe, params), recipe)
    images, index = pictures(5, 32, 32), torch.tensor([4, 0, 4])
    params = drawn(recipe, images[index])
    views = render(images.to(DEVICE), recipe, moved(params), index=index.to(DEVICE), backend="triton")
    assert_views(views, views_of(images[index], recipe, params), recipe)


@runs_triton
def test_appearance_takes_every_layout_and_leaves_it_alone():
    recipe, images = RECIPES["derived views"], pictures(4, 32, 32)
    params, view = drawn(recipe, images)["strong"], recipe["strong"]
    expected = appearance(images.double() / 255, view, params, recipe, backend="torch")
    for image in (images, images.permute(0, 2, 3, 1).contiguous(), images.float() / 255):
        image = image.to(DEVICE)
        before = image.clone()
        out = appearance(image, view, params.to(DEVICE), recipe, backend="triton")
        assert (out.cpu() - expected).abs().max() < TOLERANCE / min(recipe.std)
        assert torch.equal(image, before)
    half = appearance(images.to(DEVICE), view, params.to(DEVICE), recipe, torch.float16, backend="triton")
    assert half.dtype == torch.float16 and (half.cpu() - expected).abs().max() < 4e-3  # 2^-9: values reach 4


def at_the_edges(images, taps):
    """24 samples, one for each order of the jitter, every other parameter at an end of its range or at identity."""
    count = 24
    rows, columns = images.shape[2:]
    boxes = [[0, 0, 1, 1], [rows - 1, columns - 1, 1, 1], [3, 0, 1, columns], [0, 2, rows, 1], [0, 0, rows, columns]]

    def cycled(*values, dtype=torch.float32):
        return torch.tensor(values, dtype=dtype).repeat(
            -(-count // len(values)), *[1] * (torch.tensor(values).ndim - 1)
        )[:count]

    sigma = cycled(0.0, 0.1, 2.0, 1e-2, float(taps))
    return ViewParams(
        source=torch.tensor([[rows, columns]]).expand(count, 2).contiguous(),
        box=cycled(*boxes, dtype=torch.int64),
        flip=cycled(False, True, True, dtype=torch.bool),
        drawn={
            "jitter": {
                "chosen": cycled(True, dtype=torch.bool),
                "brightness": cycled(0.0, 1.0, 2.0, 1e-3, 1.8),
                "contrast": cycled(2.0, 0.0, 1.0, 1.8),
                "saturation": cycled(1.0, 2.0, 0.0),
                "hue": cycled(0.5, -0.5, 0.0, 0.25, -0.1),
                "order": torch.tensor(list(permutations(range(4))), dtype=torch.uint8),
            },
            "grey": {"chosen": cycled(False, False, True, False, dtype=torch.bool)},
            "blur": {"chosen": sigma > 0, "sigma": sigma},
            "solarise": {"chosen": cycled(False, True, dtype=torch.bool)},
        },
    )


@runs_triton
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_every_order_and_the_ends_of_every_range(interpolation):
    operations = (JITTER, GREY, Blur(1.0, (0.1, 5.0), 5), SOLARISE)
    view = View("view", 6, Crop(interpolation=interpolation), operations=operations)
    recipe, images = Views((view,)), pictures(24, 7, 8, seed=3)
    params = {"view": at_the_edges(images, taps=5)}
    assert_views(
        render(images.to(DEVICE), recipe, moved(params), backend="triton"), views_of(images, recipe, params), recipe
    )


@runs_triton
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_never_and_always(p):
    operations = Jitter(0.4, 0.4, 0.4, 0.5, p=p), Grey(p), Blur(p, (0.1, 2.0), 3), Solarise(p)
    recipe = Views((View("view", 9, flip=p, operations=operations),))
    images = pictures(3, 12, 15)
    params = drawn(recipe, images)
    happened = [params["view"].flip, *(params["view"].chosen(key) for key in recipe["view"].keyed)]
    assert len(happened) == 5 and all(bool(column.all()) == bool(p) == bool(column.any()) for column in happened)
    assert_views(
        render(images.to(DEVICE), recipe, moved(params), backend="triton"), views_of(images, recipe, params), recipe
    )


@runs_triton
def test_empty_batch():
    recipe, images = RECIPES["derived views"], pictures(1, 32, 32)[:0]
    views = render(images.to(DEVICE), recipe, moved(drawn(recipe, images)), backend="triton")
    assert all(view.shape == (0, 3, 32, 32) for view in views.values())


@runs_triton
@pytest.mark.parametrize("case", ["stec_blur_solarize_case1", "stec_blur_solarize_case2"])
def test_blur_and_solarise_equal_the_stec_reference(case):
    ref = load_reference(case)
    images, none = ref["images"], torch.zeros(len(ref["images"]), dtype=torch.bool)
    view = View("view", images.shape[-1], operations=(Blur(kernel_size=int(ref["kernel_size"])), Solarise(0.5)))
    params = drawn(Views((view,)), images)["view"]
    sigma = torch.where(ref["applied"], ref["sigma"], torch.zeros(len(images)))
    blurred = changed(params, {"blur.sigma": sigma, "solarise.chosen": none})
    out = appearance(images.to(DEVICE), view, blurred.to(DEVICE), Views((view,)), backend="triton")
    # The fixtures' README: an independent convolution in float32 matched them to 5e-7.
    torch.testing.assert_close(out.cpu(), ref["blurred"], rtol=0, atol=5e-7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: what a host waits for shows only there")
def test_no_host_synchronisation():
    recipe, images = RECIPES["derived views"], pictures(8, 32, 32).cuda()
    params = {name: p.to("cuda") for name, p in drawn(recipe, images.cpu()).items()}
    for backend in ("triton", "torch"):
        render(images, recipe, params, backend=backend)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            render(images, recipe, params, backend=backend)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the tests above run here themselves")
def test_kernels_in_tritons_interpreter():
    triton = pytest.importorskip("triton")
    if Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"):
        pytest.skip(
            "the interpreter of triton 3.6 (torch 2.11) takes int() of a one-element array, which numpy 2.4 refuses"
        )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-o",
            "addopts=--import-mode=importlib",
            "-p",
            "no:cacheprovider",
            "-rA",
            __file__,
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    passed = set(re.findall(r"^PASSED .*::(\w+)", done.stdout, re.MULTILINE))
    meant = {name for name, test in globals().items() if runs_triton.mark in getattr(test, "pytestmark", ())}
    assert meant and passed == meant, f"not run: {meant - passed}"


@pytest.mark.slow  # compiles
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
def test_kernels_compile_for_hopper_without_one():
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from saccade.pipelines import kernels_cuda

    floats = dict.fromkeys(("factors", "sums", "sigma"), "*fp32")
    integers = dict.fromkeys(("sample_stride", "channel_stride", "column_stride", "reach"), "i32")
    types = {
        **floats,
        **integers,
        "buffer": "*u8",
        "offset": "*i64",
        "box": "*i64",
        "order": "*u8",
        **dict.fromkeys(("flip", "grey", "solarise"), "*i8"),
    }
    kernels = [("_cut", {"SUPPORT": n}, "*u8", "*fp32") for n in (1, 2)]
    kernels += [("_before_contrast", {}, image, "*fp32") for image in ("*u8", "*fp32")]
    for last, out in ((True, "*bf16"), (False, "*fp32")):
        kernels += [("_after_contrast", {"BLOCKS": 64, "JITTER": j, "LAST": last}, "*fp32", out) for j in (True, False)]
    kernels += [("_blur", {"VERTICAL": last}, "*fp32", "*fp16" if last else "*fp32") for last in (True, False)]
    for name, constants, image, out in kernels:
        kernel, constants = getattr(kernels_cuda, name), {"SIZE": 224, "BLOCK": kernels_cuda.BLOCK, **constants}
        known = {**types, "image": image, "out": out, "row_stride": "*i64" if name == "_cut" else "i32"}
        signature = {n: "constexpr" if n in constants else known.get(n, "fp32") for n in kernel.arg_names}
        places = {(kernel.arg_names.index(n),): value for n, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
