"""saccade segment: its numbers are scikit-learn's, a wrong mask is one sentence, and training is worth something."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from saccade import pretrain
from saccade.base.errors import UserError
from saccade.evaluation import segmentation
from saccade.evaluation.segmentation import Counts, compared, iou, largest, summary
from saccade.tools import segment
from tests.test_eval import write_run

COLOURS = np.array([[90, 90, 90], [200, 60, 60], [60, 60, 200]])


def write_shapes(folder, masks, count, seed, size=(24, 32)):
    """Grey grounds with a red square and a blue disc; an edge of 255 round each."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    masks.mkdir(parents=True)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for k in range(count):
        mask = np.zeros(size, np.uint8)
        for label in (1, 2):
            y, x = rng.integers(6, size[0] - 6), rng.integers(8, size[1] - 8)
            away = np.maximum(abs(rows - y), abs(columns - x)) if label == 1 else np.hypot(rows - y, columns - x)
            mask[away < 6] = 255
            mask[away < 5] = label
        pixels = COLOURS[np.where(mask == 255, 0, mask)] + rng.normal(0, 15, (*size, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{k}.jpg", quality=95)
        image = Image.fromarray(mask, "L")
        if k % 2:  # half of them with a palette
            image = image.convert("P")
            image.putdata(mask.ravel().tolist())
        image.save(masks / f"{k}.png")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    write_shapes(tmp_path / "images/train", tmp_path / "masks/train", 24, 0)
    write_shapes(tmp_path / "images/val", tmp_path / "masks/val", 9, 1)
    write_run(tmp_path / "run", str(tmp_path / "images"))
    return tmp_path


def command(place, *more, images="images", masks="masks"):
    paths = (place / "run", "--data", place / images, "--masks", place / masks)
    return segment.main([*map(str, paths), "--workers", "0", "--epochs", "6", *map(str, more)])


def test_the_numbers_are_those_of_scikit_learn(place, capsys, monkeypatch):
    """Of the maps that it predicts, over the centre squares of the masks as they lie there."""
    said, made = [], segmentation.largest
    monkeypatch.setattr(segmentation, "largest", lambda *given: said.append(made(*given)) or said[-1])
    assert command(place, "--no-baselines") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    true = [np.array(Image.open(place / f"masks/val/{k}.png"))[:, 4:28] for k in range(9)]
    counts = np.stack(true).ravel() != 255
    t, p = np.stack(true).ravel()[counts], torch.stack(said).numpy().ravel()[counts]
    assert found["miou"]["value"] == pytest.approx(100 * jaccard_score(t, p, average="macro"), abs=0.005)
    matrix = confusion_matrix(t, p).astype(float)
    each = 100 * np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    assert found["iou"] == pytest.approx(each.tolist(), abs=0.005)
    assert found["pixel_accuracy"]["value"] == pytest.approx(100 * accuracy_score(t, p), abs=0.005)
    assert (found["n_train"], found["n_test"], found["classes"]) == (24, 9, 3)
    assert found["pixels_counted"] == counts.sum()
    low, high = found["miou"]["interval"]
    assert low < found["miou"]["value"] < high
    kept = json.loads((place / "run/evaluations/segment-images.json").read_text())
    assert kept["miou"] == found["miou"]


def test_it_stands_beside_untrained_raw_pixels_and_the_commonest_class(place, capsys):
    assert command(place) == 0
    out = capsys.readouterr().out
    beside = json.loads(out.splitlines()[-1])["beside"]
    masks = [np.array(Image.open(file))[:, 4:28] for file in (place / "masks/val").iterdir()]
    share = np.concatenate([mask[mask != 255] for mask in masks]) == 0
    assert beside["commonest class"]["pixel_accuracy"]["value"] == pytest.approx(100 * share.mean(), abs=0.005)
    assert beside["commonest class"]["miou"]["value"] == pytest.approx(100 * share.mean() / 3, abs=0.005)
    assert set(beside) == {"commonest class", "raw pixels", "untrained"} and "raw pixels" in out
    assert "75.0% of the test images' pixels" in out


def test_scores_are_enlarged_a_few_classes_at_a_time_to_the_same_map(monkeypatch):
    scores = torch.randn(1, 7, 3, 3, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(scores, size=(20, 20), mode="bilinear")[0].argmax(0)
    for most in (1, 3 * 400, 2**26):
        monkeypatch.setattr(segmentation, "SCORES", most)
        assert torch.equal(largest(scores, (20, 20)), wanted)


def test_intervals_cover_what_they_claim():
    """Of the accuracy of images whose share of right pixels is drawn anew each time, about 95 in 100."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(100):
        right = rng.binomial(100, rng.beta(8, 2, 60))
        part = np.stack([right, np.zeros(60, int)], 1)
        low, high = summary(Counts(part, part, np.full((60, 2), [100, 0])))["pixel_accuracy"]["interval"]
        inside += low <= 80 <= high
    assert 88 <= inside <= 99


def test_a_class_that_is_nowhere_has_no_iou():
    counts = Counts(*(part[None] for part in compared(np.zeros((2, 2), int), np.array([[0, 0], [1, 255]]), 3)))
    assert iou(counts)[:2] == pytest.approx([200 / 3, 0]) and np.isnan(iou(counts)[2])
    assert summary(counts)["miou"]["value"] == pytest.approx(100 / 3, abs=0.01)


def test_without_a_split_a_fifth_is_held_out_and_said(place, capsys):
    paths = (place / "run", "--data", place / "images/train", "--masks", place / "masks/train", "--no-baselines")
    (place / "images/val").rename(place / "elsewhere")
    assert segment.main([*map(str, paths), "--workers", "0", "--epochs", "1"]) == 0
    done = capsys.readouterr()
    found = json.loads(done.out.splitlines()[-1])
    assert (found["n_train"], found["n_test"]) == (19, 5) and "5 of its images are held out" in done.err


def test_images_whose_pixels_all_count_for_nothing_are_left_out_and_said(place, capsys):
    Image.new("L", (32, 24), 255).save(place / "masks/train/3.png")
    (place / "images/train/5.jpg").write_bytes(b"broken")
    assert command(place, "--no-baselines") == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["n_train"] == 22 and "2 training images, unreadable or all" in out


def palette(mask):
    image = Image.fromarray(mask, "L").convert("P")
    image.putdata(mask.ravel().tolist())
    return image


ZEROS = np.zeros((24, 32), np.uint8)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (None, r"1 of the 24 images of .*train have no mask, such as 3.jpg: .*3.png is not there"),
        (Image.new("L", (24, 32)), r"3.png is 24 x 32 pixels, and its image 32 x 24"),
        (Image.new("RGB", (32, 24)), r"3.png is a picture in colours \(PIL's mode RGB\)"),
        (Image.new("RGBA", (32, 24)), r"3.png is a picture in colours \(PIL's mode RGBA\)"),
        (Image.fromarray(ZEROS + np.uint8(3)), r"3.png holds class 3, and there are 3 \(--classes\), 0 to 2"),
        (palette(ZEROS + np.uint8(7)), r"3.png holds class 7, and there are 3 .* give --classes 8"),
        (
            Image.fromarray(ZEROS.astype(np.uint16) + np.uint16(300)),
            r"3.png holds the number 300; classes are 0 to 254",
        ),
        (b"broken", r"3.png cannot be read"),
    ],
)
def test_a_wrong_mask_is_one_sentence(place, mask, says):
    file = place / "masks/train/3.png"
    file.unlink()
    if isinstance(mask, bytes):
        file.write_bytes(mask)
    elif mask:
        mask.save(file)
    with pytest.raises(UserError, match=says) as caught:
        command(place, "--classes", 3)
    assert "\n" not in str(caught.value)


def test_other_wrong_input_is_one_sentence(place):
    for k in range(9):
        Image.fromarray(ZEROS + np.uint8(4)).save(place / f"masks/val/{k}.png")
    with pytest.raises(UserError, match=r"val/0.png holds class 4, and there are 3 \(as many as the training masks"):
        command(place)
    for more, says in (
        (("--classes", 1), "--classes 1: give 2 to 255"),
        (("--epochs", 0), "--epochs 0 is not positive"),
        (("--lr", "-1"), "--lr -1.0 is no learning rate"),
    ):
        with pytest.raises(UserError, match=says):
            command(place, *more)
    with pytest.raises(UserError, match=r"--masks .*nowhere: no such folder"):
        command(place, masks="nowhere")
    with pytest.raises(UserError, match="the folder of the images"):
        command(place, masks="images")
    for file in (place / "masks").rglob("*.png"):
        Image.fromarray(ZEROS).save(file)
    with pytest.raises(UserError, match="hold class 0 alone beside 255"):
        command(place)


def write_textures(folder, masks, count, seed, size=32):
    """Stripes that stand, stripes that lie and checks, in any two colours, on noise: no pixel tells which."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    masks.mkdir(parents=True)
    y, x = np.mgrid[:size, :size]
    for k in range(count):
        mask, label = np.zeros((size, size), np.uint8), 1 + k % 3
        top, left = rng.integers(0, size - 17, 2)
        mask[top : top + 18, left : left + 18] = label
        phase = rng.integers(0, 4, 2)
        stands, lies = ((x + phase[0]) // 2 % 2, (y + phase[1]) // 2 % 2)
        pattern = np.choose(label - 1, [stands, lies, stands ^ lies])
        pattern = np.where(mask > 0, pattern, rng.integers(0, 2, (size, size)))
        colours = rng.uniform(0, 255, (2, 3))
        pixels = colours[pattern] + rng.normal(0, 10, (size, size, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{k}.png")
        Image.fromarray(mask).save(masks / f"{k}.png")


@pytest.mark.slow
def test_trained_patches_know_more_than_untrained_ones_and_raw_pixels(tmp_path, monkeypatch, capsys):
    """SimCLR, 300 steps without masks; intervals over 90 images stand apart."""
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    write_textures(tmp_path / "images/train", tmp_path / "masks/train", 360, 0)
    write_textures(tmp_path / "images/val", tmp_path / "masks/val", 90, 1)
    how: dict[str, Any] = {"backbone": "test_resnet", "image_size": 32, "batch_size": 64, "steps": 300, "eval_every": 0}
    how |= {"set": {"backbone.stem": "cifar"}, "device": "cpu", "workers": 0, "no_report": True}
    pretrain(method="simclr", data=str(tmp_path / "images"), recipe="textures", out=str(tmp_path / "run"), **how)
    paths = (tmp_path / "run", "--data", tmp_path / "images", "--masks", tmp_path / "masks")
    assert segment.main([*map(str, paths), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    print(out)
    found = json.loads(out.splitlines()[-1])
    raw, untrained = (found["beside"][name]["miou"] for name in ("raw pixels", "untrained"))
    assert found["miou"]["interval"][0] > max(raw["interval"][1], untrained["interval"][1])
