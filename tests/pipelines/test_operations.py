"""Each batched operation against torchvision's functional one, sample by sample, in float64."""

import colorsys

import pytest
import torch
import torchvision.transforms.functional as F

from saccade.pipelines.operations import Blur, Grey, Jitter, Solarise
from saccade.pipelines.operations.jitter import shift_hue
from saccade.pipelines.operations.operation import on_chosen
from saccade.pipelines.render import normalise
from saccade.pipelines.resize import crop_resize
from tests.pipelines.oracle import pictures
from tests.reference_values import load_reference

COUNT = 64
# The same formulas in the same precision: only the order of additions differs (up to 1e-15 each, some hundred of them).
CLOSE = {"rtol": 0, "atol": 1e-12}
# torchvision's adjust_hue computes in float32 whatever it is given: up to 1.04e-6 off colorsys (ours: 1e-15, below).
CLOSE_HUE = {"rtol": 0, "atol": 2e-6}


@pytest.fixture
def image():
    return pictures(COUNT, 13, 18).double() / 255


def uniform(low, high, seed=0):
    return low + (high - low) * torch.rand(COUNT, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def jittering(brightness, contrast, saturation, hue, order):
    return {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue, "order": order}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [1, 7, 13, 32])
def test_crop_resize_is_resized_crop(interpolation, size):
    pixels, generator = pictures(COUNT, 37, 29).double() / 255, torch.Generator().manual_seed(size)
    height = torch.randint(1, 38, (COUNT,), generator=generator)
    width = torch.randint(1, 30, (COUNT,), generator=generator)
    top, left = (uniform(0, 1, 1) * (38 - height)).long(), (uniform(0, 1, 2) * (30 - width)).long()
    box, flip = torch.stack([top, left, height, width], dim=1), uniform(0, 1, 3) < 0.5
    out = crop_resize(pixels, box, flip, size, interpolation)
    for n in range(COUNT):
        expected = F.resized_crop(
            pixels[n],
            *box[n].tolist(),
            size=[size, size],
            interpolation=F.InterpolationMode(interpolation),
            antialias=True,
        ).clamp(0, 1)
        torch.testing.assert_close(out[n], F.hflip(expected) if flip[n] else expected, **CLOSE)


def test_full_box_of_the_same_size_is_the_image():
    pixels = pictures(5, 24, 24)
    box = torch.tensor([[0, 0, 24, 24]]).expand(5, 4)
    for interpolation in ("bilinear", "bicubic"):
        out = crop_resize(pixels, box, torch.zeros(5, dtype=torch.bool), 24, interpolation)
        torch.testing.assert_close(out, pixels.float() / 255, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("operation", "adjust", "low", "high"),
    [
        (0, F.adjust_brightness, 0.0, 2.0),
        (1, F.adjust_contrast, 0.0, 2.0),
        (2, F.adjust_saturation, 0.0, 2.0),
        (3, F.adjust_hue, -0.5, 0.5),
    ],
)
def test_one_jitter_operation_is_torchvisions(image, operation, adjust, low, high):
    factors = [torch.ones(COUNT, dtype=torch.float64)] * 3 + [torch.zeros(COUNT, dtype=torch.float64)]
    factors[operation] = uniform(low, high)
    out = Jitter().apply(image, jittering(*factors, order=torch.arange(4, dtype=torch.uint8).expand(COUNT, 4)))
    for n in range(COUNT):
        tolerance = CLOSE_HUE if operation == 3 else CLOSE
        torch.testing.assert_close(out[n], adjust(image[n], factors[operation][n].item()).double(), **tolerance)


def test_jitter_applies_each_samples_own_order(image):
    factors = uniform(0.2, 1.8, 1), uniform(0.2, 1.8, 2), uniform(0.2, 1.8, 3), uniform(-0.2, 0.2, 4)
    order = torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(n)) for n in range(COUNT)]).byte()
    out = Jitter().apply(image, jittering(*factors, order))
    adjust = F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue
    for n in range(COUNT):
        expected = image[n]
        for operation in order[n].tolist():
            expected = adjust[operation](expected, factors[operation][n].item())
        torch.testing.assert_close(out[n], expected.double(), **CLOSE_HUE)


def test_shift_hue_turns_the_circle_of_hsv_exactly():
    levels = torch.tensor([0.0, 0.3, 0.5, 1.0], dtype=torch.float64)
    cube = torch.cartesian_prod(levels, levels, levels)  # greys, primaries and what lies between
    for shift in (-0.5, -1 / 3, -1e-7, 0.0, 1 / 6, 0.25, 0.5):
        out = shift_hue(cube.T.reshape(1, 3, 1, -1), torch.tensor([shift], dtype=torch.float64))
        for rgb, turned in zip(cube.tolist(), out.view(3, -1).T, strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
            expected = torch.tensor(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value), dtype=torch.float64)
            torch.testing.assert_close(turned, expected, **CLOSE)


def test_grey_is_rgb_to_grayscale_of_the_chosen(image):
    chosen = torch.arange(COUNT) % 3 == 0
    out = on_chosen(Grey().apply, image, {"chosen": chosen})
    for n in range(COUNT):
        torch.testing.assert_close(out[n], F.rgb_to_grayscale(image[n], 3) if chosen[n] else image[n], **CLOSE)


@pytest.mark.parametrize("taps", [1, 3, 13, 23])
def test_blur_is_gaussian_blur(image, taps):
    sigma = uniform(0.1, 2.5)
    out = Blur(kernel_size=taps).apply(image, {"sigma": sigma})
    for n in range(COUNT):
        torch.testing.assert_close(out[n], F.gaussian_blur(image[n], [taps, taps], [sigma[n].item()] * 2), **CLOSE)


def test_blur_of_sigma_zero_is_the_image(image):
    assert torch.equal(Blur(kernel_size=5).apply(image, {"sigma": torch.zeros(COUNT)}), image)


def test_solarise_is_solarize_of_the_chosen(image):
    image[0, :, 0, :3] = torch.tensor([0.5, 127 / 255, 128 / 255])
    chosen = torch.arange(COUNT) % 3 == 0
    out = on_chosen(Solarise().apply, image, {"chosen": chosen})
    for n in range(COUNT):
        assert torch.equal(out[n], F.solarize(image[n], 0.5) if chosen[n] else image[n])


def test_normalise_is_normalize(image):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    torch.testing.assert_close(normalise(image, mean, std), F.normalize(image, list(mean), list(std)), **CLOSE)
    assert torch.equal(normalise(image, (0.0,) * 3, (1.0,) * 3), image)


def test_operations_leave_their_input_as_it_was(image):
    before, yes, factor = image.clone(), torch.ones(COUNT, dtype=torch.bool), uniform(0.5, 1.5)
    crop_resize(image, torch.tensor([[1, 2, 5, 6]]).expand(COUNT, 4), yes, 8)
    order = torch.tensor([[3, 1, 0, 2]]).byte().expand(COUNT, 4)
    drawn = {"chosen": yes, **jittering(factor, factor, factor, factor - 1, order), "sigma": factor}
    for operation in (Jitter(), Grey(), Blur(), Solarise()):
        operation.apply(image, drawn)
        on_chosen(operation.apply, image, drawn | {"chosen": torch.arange(COUNT) % 2 == 0})
    normalise(image, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert torch.equal(image, before)


@pytest.mark.parametrize("case", ["stec_blur_solarize_case1", "stec_blur_solarize_case2"])
def test_blur_and_solarise_equal_the_stec_reference(case):
    ref = load_reference(case)
    sigma = torch.where(ref["applied"], ref["sigma"], torch.zeros_like(ref["sigma"]))
    # float32 images, float32 sums in another order: two units in the last place at 1.0.
    blurred = Blur(kernel_size=int(ref["kernel_size"])).apply(ref["images"], {"sigma": sigma})
    torch.testing.assert_close(blurred, ref["blurred"], rtol=0, atol=2.5e-7)
    solarised = on_chosen(Solarise().apply, ref["images"], {"chosen": ref["solarize_selected"]})
    assert torch.equal(solarised, ref["solarized"])
