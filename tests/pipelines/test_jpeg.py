"""The decoder of JPEGs: PIL's pixels to the bit, and no picture of a damaged file."""

import io

import numpy as np
import pytest
from PIL import Image

from saccade.pipelines.jpeg import decode_into
from tests.pipelines.files import picture, stored
from tests.present import present

KINDS = {
    **{f"subsampling {k}": {"subsampling": k} for k in range(3)},
    "progressive": {"progressive": True},
    "quality 5": {"quality": 5},
    "restarts": {"restart_marker_rows": 1},
    "RGB as it is": {"keep_rgb": True},
}


def decoded(data: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    """Into the middle of a larger buffer."""
    whole = np.zeros(14 + np.prod(shape), np.uint8)
    out = whole[7:-7].reshape(shape)
    good = decode_into(np.frombuffer(data, np.uint8), out)
    assert not whole[:7].any() and not whole[-7:].any()
    return out if good else None


@pytest.mark.parametrize("size", [(64, 48), (101, 77), (1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_pil(kind, size):
    image = picture(1, side=128).resize(size)
    data = stored(image, "JPEG", **KINDS[kind])
    with Image.open(io.BytesIO(data)) as judge:
        assert np.array_equal(present(decoded(data, (*size[::-1], 3))), np.asarray(judge.convert("RGB")))


def test_grey_is_three_equal_channels():
    data = stored(picture(2, side=40).convert("L"), "JPEG")
    out = present(decoded(data, (40, 40, 3)))
    assert np.array_equal(out, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_what_pil_must_judge_is_not_decoded():
    whole = stored(picture(3, side=64), "JPEG")
    half = len(whole) // 2
    cases = {
        "cut short": whole[:half],
        "ended in its middle": whole[:half] + b"\xff\xd9" + bytes(half - 2),
        "no image": b"no image" * 20,
        "empty": b"",
        "CMYK": stored(picture(3, side=64).convert("CMYK"), "JPEG"),
    }
    for name, data in cases.items():
        assert decoded(data, (64, 64, 3)) is None, name
    assert decoded(whole, (64, 63, 3)) is None and decoded(whole, (65, 64, 3)) is None
