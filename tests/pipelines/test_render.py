"""Whole recipes on every CPU backend against torchvision in float64, the contract of the output, and PIL's rounding."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageOps

from saccade.base.errors import UserError
from saccade.pipelines.operations import Blur, Grey, Jitter, Solarise
from saccade.pipelines.operations.blur import stec_blur
from saccade.pipelines.render import Photos, appearance, render
from saccade.pipelines.views import Crop, View, Views, evaluation_views
from tests.pipelines.oracle import changed, drawn, pictures, views_of
from tests.reference_values import load_reference

# In [0, 1]: about 80 units in the last place of float32 at 1.0. Four colour operations round 2-6 units each, and gains
# of up to 1.8 then multiply what the earlier ones left. Normalised views carry it divided by their std.
TOLERANCE = 1e-5
BACKENDS = ["torch", "numba"]
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

RECIPES = {
    "resa": Views(
        (
            View("weak", 32, Crop((0.2, 1.0))),
            View(
                "strong",
                32,
                Crop((0.2, 1.0), interpolation="bicubic"),
                operations=(Jitter(0.4, 0.4, 0.2, 0.1), Grey(0.2), Blur(0.5), Solarise(0.2)),
            ),
        ),
        **IMAGENET,
    ),
    "ressl": Views(
        (
            View("weak", 24, Crop((0.2, 1.0))),
            View(
                "strong",
                24,
                Crop((0.2, 1.0)),
                operations=(Jitter(0.4, 0.4, 0.4, 0.1), Grey(0.2), Blur(0.5, (0.1, 2.0), 5)),
            ),
        )
    ),
    "rsa": Views(
        (
            *View("weak", 32, Crop((0.2, 1.0))).times(2),
            *(
                View(
                    f"strong_{i}", 32, operations=(Jitter(0.4, 0.4, 0.4, 0.1), Grey(0.2), Blur(0.5)), parent=f"weak_{i}"
                )
                for i in range(2)
            ),
        ),
        **IMAGENET,
    ),
    "stec": Views(
        View("view", 96, operations=(Jitter(0.8, 0.8, 0.8, 0.2), Grey(0.2), stec_blur(96), Solarise(0.2))).times(2)
    ),
    "evaluation": evaluation_views(28, **IMAGENET, fraction=0.875),
    "odd": Views(
        (
            View("tiny", 1),
            View("odd", 17, operations=(Jitter(1.0, 1.0, 1.0, 0.5, p=1.0), Blur(1.0, (0.1, 9.0), 33))),
            View("cubic", 45, Crop((0.01, 1.0), interpolation="bicubic"), operations=(Grey(1.0),)),
        )
    ),
}
COLOUR = (Jitter(0.4, 0.4, 0.2, 0.1), Grey(0.2), Blur())
MULTI_CROP = Views(
    (
        *View("global", 224, Crop((0.32, 1.0)), operations=COLOUR).times(2),
        *View("local", 96, Crop((0.05, 0.32), interpolation="bicubic"), operations=(*COLOUR, Solarise(0.2))).times(2),
    ),
    **IMAGENET,
)


def assert_views(actual, expected, recipe):
    assert list(actual) == list(recipe.names)
    for name in recipe.names:
        error = (actual[name].double() - expected[name]).abs() * torch.tensor(recipe.std)[:, None, None]
        assert error.max() < TOLERANCE, f"{name}: off by {error.max():.2g}"


@cache
def expected_views(name, size):
    recipe, images = RECIPES[name], pictures(10, *size)
    params = drawn(recipe, images)
    return images, params, views_of(images, recipe, params)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(32, 32), (96, 96), (41, 30)])
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_torchvisions(name, size, backend):
    images, params, expected = expected_views(name, size)
    assert_views(render(images, RECIPES[name], params, backend=backend), expected, RECIPES[name])


def photos_of(images):
    flat = [image.permute(1, 2, 0).reshape(-1) for image in images]
    end = torch.tensor([len(f) for f in flat], dtype=torch.int64).cumsum(0)
    size = torch.tensor([image.shape[1:] for image in images], dtype=torch.int64).view(-1, 2)
    return Photos(torch.cat(flat or [torch.empty(0, dtype=torch.uint8)]), end - 3 * size.prod(1), size)


@pytest.mark.parametrize("backend", BACKENDS)
def test_multi_crop_of_photos_of_different_sizes_is_torchvisions(backend):
    images = [pictures(1, *size, seed=i)[0] for i, size in enumerate([(384, 512), (500, 333), (60, 80), (7, 300)])]
    params = drawn(MULTI_CROP, images)
    views = render(photos_of(images), MULTI_CROP, params, backend=backend)
    assert_views(views, views_of(images, MULTI_CROP, params), MULTI_CROP)


BOXES = [
    (0, 0, 1, 1),
    (10, 19, 1, 1),
    (0, 0, 1, 20),
    (5, 3, 1, 9),
    (0, 7, 11, 1),
    (0, 0, 11, 20),
    (2, 4, 8, 8),
    (10, 0, 1, 20),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [1, 3, 8, 11, 33])
def test_extreme_boxes_are_torchvisions(size, interpolation, backend):
    images = pictures(len(BOXES) * 2, 11, 20)
    recipe = Views((View("view", size, Crop(interpolation=interpolation)),))
    params = drawn(recipe, images)
    params = {
        "view": replace(
            params["view"], box=torch.tensor(BOXES * 2), flip=torch.arange(2).repeat_interleave(len(BOXES)).bool()
        )
    }
    assert_views(render(images, recipe, params, backend=backend), views_of(images, recipe, params), recipe)


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_cases_are_torchvisions(backend):
    random = np.random.default_rng(0)
    for case in range(20):
        size, height, width = (int(n) for n in random.integers((2, 1, 1), 28))
        taps = int(random.integers(1, size)) * 2 + 1
        view = View(
            "view",
            size,
            Crop((0.01, 1.0), (0.2, 5.0), ("bilinear", "bicubic")[case % 2]),
            operations=(Jitter(1, 1, 1, 0.5), Grey(0.3), Blur(0.7, (0.01, 4.0), taps), Solarise(0.5)),
        )
        recipe, images = Views((view,)), pictures(3, height, width, seed=case)
        params = drawn(recipe, images, seed=case)
        # Gains of 2 in brightness, contrast and saturation make single pixels worse than published recipes do.
        view = render(images, recipe, params, backend=backend)["view"].double()
        assert (view - views_of(images, recipe, params)["view"]).abs().max() < 4 * TOLERANCE, f"case {case}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_views_are_channels_last_of_the_dtype_asked_for(dtype, backend):
    recipe, images = RECIPES["rsa"], pictures(6, 32, 32)
    params = drawn(recipe, images)
    exact = render(images, recipe, params, backend=backend)
    for name, view in render(images, recipe, params, dtype, backend=backend).items():
        assert view.shape == (6, 3, 32, 32) and view.dtype == dtype
        assert view.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(view, exact[name].to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [0, 1])
def test_empty_batch_and_single_sample(count, backend):
    for name in ("rsa", "odd"):
        recipe, images = RECIPES[name], pictures(5, 32, 32)[:count]
        params = drawn(recipe, images)
        views = render(images, recipe, params, backend=backend)
        photos = render(photos_of(list(images)), recipe, params, backend=backend)
        for view in recipe:
            assert views[view.name].shape == (count, 3, view.size, view.size)
            torch.testing.assert_close(photos[view.name], views[view.name], rtol=0, atol=1e-6)
            again = appearance(views[view.name], view, params[view.name], recipe, backend=backend)
            assert again.shape == views[view.name].shape


LAYOUTS = {
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every second sample": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "inside a larger image": lambda x: F.pad(x, [3, 2, 5, 4])[:, :, 2:-4, 3:-5],
    "mirrored channels and rows": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "channels first of all": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_of_the_source_changes_nothing(layout, backend):
    recipe, images = RECIPES["resa"], pictures(8, 20, 26)
    params, expected = drawn(recipe, images), None
    arranged = LAYOUTS[layout](images)
    assert torch.equal(arranged, images)
    expected = render(images, recipe, params, backend=backend)
    for name, view in render(arranged, recipe, params, backend=backend).items():
        torch.testing.assert_close(view, expected[name], rtol=0, atol=1e-5)
    assert torch.equal(arranged, images), "the caller's pixels were changed"


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_of_a_set_are_taken_by_index(backend):
    recipe, images, index = RECIPES["rsa"], pictures(10, 32, 32), torch.tensor([7, 0, 7, 3])
    params = drawn(recipe, images[index])
    expected = render(images[index], recipe, params, backend=backend)
    for name, view in render(images, recipe, params, index=index, backend=backend).items():
        torch.testing.assert_close(view, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_renders_as_its_samples_do(backend):
    recipe, images = RECIPES["resa"], pictures(9, 32, 32)
    params = drawn(recipe, images)
    whole = render(images, recipe, params, backend=backend)
    for n in range(9):
        single = render(images[n : n + 1], recipe, {k: p[n : n + 1] for k, p in params.items()}, backend=backend)
        for name in recipe.names:
            torch.testing.assert_close(single[name][0], whole[name][n], rtol=0, atol=2e-6 if backend == "torch" else 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_appearance_finishes_views_cut_elsewhere(backend):
    recipe = RECIPES["stec"]
    view, images = recipe["view_0"], pictures(12, 96, 96)
    params = drawn(recipe, images)["view_0"]
    whole = replace(params, box=torch.tensor([[0, 0, 96, 96]]).expand(12, 4), flip=torch.zeros(12, dtype=torch.bool))
    expected = {"view_0": views_of(images, Views((view,)), {"view_0": whole})["view_0"]}
    floats = images.float() / 255
    for image in (
        images.permute(0, 2, 3, 1).contiguous(),
        images,
        floats,
        floats.contiguous(memory_format=torch.channels_last),
        images.double() / 255,
    ):
        before = image.clone()
        out = appearance(image, view, params, recipe, backend=backend)
        assert out.is_contiguous(memory_format=torch.channels_last) and out.dtype == torch.float32
        assert_views({"view_0": out}, expected, Views((view,)))
        assert torch.equal(image, before), "the caller's image was changed"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_choice_the_recipe_does_not_have_is_not_executed(backend):
    strong, plain = RECIPES["resa"]["strong"], View("strong", 32)
    images = pictures(8, 32, 32)
    params = drawn(Views((strong,)), images)
    image = images.float() / 255
    out = appearance(image, plain, params["strong"], Views((plain,)), backend=backend)
    torch.testing.assert_close(out, image, rtol=0, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["stec_blur_solarize_case1", "stec_blur_solarize_case2"])
def test_blur_and_solarise_equal_the_stec_reference(case, backend):
    ref = load_reference(case)
    images, count = ref["images"], len(ref["images"])
    view = View("view", images.shape[-1], operations=(Blur(kernel_size=int(ref["kernel_size"])), Solarise(0.5)))
    recipe, none = Views((view,)), torch.zeros(count, dtype=torch.bool)
    params = drawn(recipe, images)["view"]
    sigma = torch.where(ref["applied"], ref["sigma"], torch.zeros(count))
    columns = {"blur.sigma": sigma, "blur.chosen": ref["applied"], "solarise.chosen": none}
    blurred = changed(params, columns)
    # float32 sums in another order: two units in the last place at 1.0
    out = appearance(images, view, blurred, recipe, backend=backend)
    torch.testing.assert_close(out, ref["blurred"], rtol=0, atol=2.5e-7)
    columns = {"blur.sigma": torch.zeros(count), "blur.chosen": none, "solarise.chosen": ref["solarize_selected"]}
    solarised = changed(params, columns)
    out = appearance(images, view, solarised, recipe, backend=backend)
    torch.testing.assert_close(out, ref["solarized"], rtol=0, atol=1e-7)


def pil_view(pixels, view, params):
    """As a PIL data loader makes it: uint8 after every operation."""
    top, left, height, width = params.box[0].tolist()
    filter_ = Image.Resampling.BICUBIC if view.crop.interpolation == "bicubic" else Image.Resampling.BILINEAR
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    image = image.crop((left, top, left + width, top + height)).resize((view.size, view.size), filter_)
    image = ImageOps.mirror(image) if params.flip else image
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    if params.chosen("jitter"):
        drawn = params.values("jitter", 0)
        for k in drawn["order"]:
            image = adjust[k](image, (drawn["brightness"], drawn["contrast"], drawn["saturation"], drawn["hue"])[k])
    image = F.to_grayscale(image, 3) if params.chosen("grey") else image
    image = ImageOps.solarize(image, 128) if params.chosen("solarise") else image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).double() / 255


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_geometry_is_pils_to_one_rounding(interpolation):
    recipe = Views((View("view", 32, Crop(interpolation=interpolation)),))
    images = pictures(40, 48, 40) // 2 + 64  # away from black and white, where PIL cuts its first cubic pass
    params = drawn(recipe, images)
    out = render(images, recipe, params)["view"].double()
    pil = torch.stack([pil_view(x, recipe["view"], params["view"][n : n + 1]) for n, x in enumerate(images)])
    error = 255 * (out - pil).abs()
    # PIL rounds after each of its two passes: half a level each, the first weighted (cubic: up to 1.3).
    assert error.max() < 1.3 and error.mean() < 0.35, (error.max(), error.mean())


def test_colour_differs_from_pils_only_by_its_uint8_rounding():
    view = View("view", 32, operations=(Jitter(0.4, 0.4, 0.4, 0.1), Grey(0.2), Solarise(0.2)))
    recipe, images = Views((view,)), pictures(60, 48, 40)
    params = drawn(recipe, images)
    out = render(images, recipe, params)["view"].double()
    pil = torch.stack([pil_view(x, view, params["view"][n : n + 1]) for n, x in enumerate(images)])
    error = 255 * (out - pil).abs()
    # Half a level for each of six roundings and truncations, and hue in 256 steps; see the measured figures in docs.
    assert error.mean() < 1.5 and error.flatten().quantile(0.99) < 8, (error.mean(), error.max())


def test_unknown_or_misplaced_backend_is_refused():
    recipe, images = RECIPES["evaluation"], pictures(2, 32, 32)
    for backend in ("cupy", "triton"):
        with pytest.raises(UserError, match=backend):
            render(images, recipe, drawn(recipe, images), backend=backend)
