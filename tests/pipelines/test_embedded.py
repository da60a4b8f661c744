"""The embedded texture set: the same pixels everywhere, balanced, and nothing a raw pixel could tell."""

import hashlib

import numpy as np
import pytest

from saccade.base.errors import UserError
from saccade.pipelines.embedded import CLASSES, textures


@pytest.fixture(scope="module")
def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {split: textures(split) for split in ("train", "test")}


def knn_top1(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Cosine 20-NN by plain majority, in numpy, independent of the project's own."""
    k = 20
    train, test = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test))
    nearest = np.argpartition(-test @ train.T, k, axis=1)[:, :k]
    votes = np.stack([np.bincount(near, minlength=len(CLASSES)) for near in train_labels[nearest]])
    return float((votes.argmax(1) == test_labels).mean())


def test_shapes_types_and_sizes(splits):
    for split, count in (("train", 6_000), ("test", 1_000)):
        images, labels = splits[split]
        assert images.shape == (count, 32, 32, 3) and images.dtype == np.uint8
        assert labels.shape == (count,) and labels.dtype == np.int64
    assert len(CLASSES) == len(set(CLASSES)) == 10


@pytest.mark.parametrize(("split", "digest"), [("train", "86cedc2f8a866df5"), ("test", "782f7a723761aa5a")])
def test_pixels_are_these_on_every_machine(splits, split, digest):
    images, labels = splits[split]
    assert hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()[:16] == digest


def test_drawing_again_gives_the_same_and_leaves_numpys_global_state_alone(splits):
    state = np.random.get_state  # the global state is what must not move
    before = state(legacy=False)["state"]["key"].copy()
    again, _ = textures("test")
    assert np.array_equal(again, splits["test"][0])
    assert np.array_equal(before, state(legacy=False)["state"]["key"])


def test_every_class_is_equally_frequent_in_every_prefix_of_whole_tens(splits):
    for _images, labels in splits.values():
        for size in (10, 500, len(labels)):
            assert np.bincount(labels[:size], minlength=10).tolist() == [size // 10] * 10


def test_no_two_images_are_equal_across_or_within_the_splits(splits):
    images = np.concatenate([images for images, _ in splits.values()])
    assert len({image.tobytes() for image in images}) == len(images)


def test_raw_pixels_hardly_tell_the_class(splits):
    (train, train_labels), (test, test_labels) = splits["train"], splits["test"]
    flat = [images.reshape(len(images), -1).astype(np.float32) for images in (train, test)]
    assert knn_top1(flat[0], train_labels, flat[1], test_labels) < 0.2


def test_colour_brightness_and_contrast_hardly_tell_the_class(splits):
    """Mean and deviation of each channel, standardised: ten classes, so chance is 10 %."""

    def statistics(images: np.ndarray) -> np.ndarray:
        scaled = images.astype(np.float32) / 255
        return np.concatenate([scaled.mean((1, 2)), scaled.std((1, 2))], axis=1)

    (train, train_labels), (test, test_labels) = splits["train"], splits["test"]
    rows, queries = statistics(train), statistics(test)
    centre, spread = rows.mean(0), rows.std(0)
    assert knn_top1((rows - centre) / spread, train_labels, (queries - centre) / spread, test_labels) < 0.25


@pytest.mark.parametrize("axis", [1, 2], ids=["vertical", "horizontal"])
def test_a_flip_keeps_the_class(splits, axis):
    """Autocorrelation with a memory of upright images only is as right on flipped ones, and far above chance."""

    def autocorrelation(images: np.ndarray) -> np.ndarray:
        grey = images.astype(np.float32).mean(-1)
        grey = (grey - grey.mean((1, 2), keepdims=True)) / grey.std((1, 2), keepdims=True)
        power = np.abs(np.fft.rfft2(grey)) ** 2
        return np.fft.irfft2(power)[:, :12, :].reshape(len(images), -1).astype(np.float32)

    (train, train_labels), (test, test_labels) = splits["train"], splits["test"]
    rows = autocorrelation(train)
    upright = knn_top1(rows, train_labels, autocorrelation(test), test_labels)
    flipped = knn_top1(rows, train_labels, autocorrelation(np.flip(test, axis)), test_labels)
    assert upright > 0.3 and abs(upright - flipped) < 0.05


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(UserError, match=r"'val'.*train, test"):
        textures("val")
