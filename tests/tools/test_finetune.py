"""saccade finetune and predict: easy classes are learned, what is written is what was tested, labels are as few as
asked, and a stop costs no fold that was done."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize_scalar
from torch import nn

from saccade.base.errors import UserError
from saccade.evaluation.calibration import best_temperature, calibration_error, crossed
from saccade.evaluation.classifier import read_classifier
from saccade.models.backbone import load_backbone
from saccade.tools import finetune, predict, tuning
from tests.present import present
from tests.test_eval import MEAN, STD, write_images, write_run


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "STEPS", 1)  # epochs are as many as a test asks for


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    write_images(folder / "train.npz", 64, 0)
    write_images(folder / "test.npz", 40, 1)
    write_images(folder / "alone.npz", 24, 2)
    write_run(folder / "run", str(folder / "train.npz"))
    return folder


def tuned(place, out, *flags, data="train.npz"):
    code = finetune.main([str(place / data), "--from", str(place / "run"), "--out", str(out), *map(str, flags)])
    assert code == 0
    return json.loads((out / "finetuned.json").read_text())


def by_hand(folder, file):
    """Softmax of the written network, on an .npz."""
    classifier = present(read_classifier(folder))
    with np.load(file) as arrays, torch.no_grad():
        pixels = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2) / 255
        features = load_backbone(folder)[0](
            (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        )
        scores = features @ classifier.weight.T + classifier.bias
        return (scores / classifier.temperature).softmax(1), arrays["labels"]


@pytest.mark.parametrize("flags", [("--epochs", 6, "--lr", 0.002), ("--head-only",)], ids=["whole", "head"])
def test_what_is_written_was_tested_on_the_split_beside(place, tmp_path, flags):
    found = tuned(place, tmp_path / "out", *flags)
    shares, labels = by_hand(tmp_path / "out", place / "test.npz")
    right = int((shares.argmax(1).numpy() == labels).sum())
    assert (found["right"], found["images"]) == (right, 40) and found["top1"] > 90 and found["chance"] == 25
    assert found["interval"][0] < found["top1"] <= found["interval"][1] and found["labels"] == 64
    assert found["calibration_error"] < 20 and 0 <= found["nll"] < 1


def test_a_head_leaves_the_backbone_and_a_whole_network_does_not(place, tmp_path):
    before = load_backbone(place / "run")[0].state_dict()
    for name, flags in (("head", ("--head-only", "--epochs", 2)), ("whole", ("--epochs", 1))):
        tuned(place, tmp_path / name, *flags)
        after = load_backbone(tmp_path / name)[0].state_dict()
        assert all(torch.equal(before[k], v) for k, v in after.items()) == (name == "head")


def test_few_labels_without_a_split_are_tested_in_folds_and_a_stop_keeps_those_done(place, tmp_path, monkeypatch):
    flags = ("--head-only", "--shots", 5, "--folds", 4)
    whole = tuned(place, tmp_path / "unbroken", *flags, data="alone.npz")
    assert (whole["labels"], whole["images"]) == (20, 20) and "in 4 folds" in whole["tested_on"]
    fits, fit = [], tuning.fit_head

    def stopped(*given):
        fits.append(len(given[2]))
        if len(fits) == 3:
            raise KeyboardInterrupt
        return fit(*given)

    monkeypatch.setattr(tuning, "fit_head", stopped)
    with pytest.raises(KeyboardInterrupt):
        tuned(place, tmp_path / "broken", *flags, data="alone.npz")
    again = tuned(place, tmp_path / "broken", *flags, data="alone.npz")
    assert fits == [15, 15, 15, 15, 15, 20]  # the third is done again; the last one is on all labels
    assert {k: again[k] for k in ("right", "nll", "temperature")} == {
        k: whole[k] for k in ("right", "nll", "temperature")
    }


def test_labels_that_were_not_drawn_are_tested_on(place, tmp_path):
    found = tuned(place, tmp_path / "out", "--head-only", "--shots", 2, data="alone.npz")
    assert (found["labels"], found["images"]) == (8, 16) and "the other labelled images" in found["tested_on"]


def test_an_unreadable_image_is_neither_right_nor_wrong(place, tmp_path, capsys):
    photos = tmp_path / "photos"
    for k in range(24):
        file = photos / ("red", "blue")[k % 2] / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 24), [(200, 9 * k, 30), (30, 9 * k, 200)][k % 2]).save(file)
    file.write_bytes(b"no image")
    for name, flags in (("folds", ()), ("split", ("--val-data", photos))):
        found = tuned(place, tmp_path / name, "--head-only", *flags, data=photos)
        assert (found["labels"], found["images"]) == (
            23,
            23,
        ) and "unreadable  1 of 24 images, left out: blue/23.png" in capsys.readouterr().err


def test_deep_images_are_shown_as_in_training_whatever_lies_beside_them(place, tmp_path):
    rng, photos, part = np.random.default_rng(0), tmp_path / "photos", tmp_path / "part"
    part.mkdir()
    for k in range(24):
        file = photos / ("dark", "bright")[k % 2] / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, (1000, 4000)[k % 2], (20, 24)).astype(np.uint16)
        Image.fromarray(pixels).save(file)
    (part / "0.png").write_bytes((photos / "dark" / "0.png").read_bytes())
    tuned(place, tmp_path / "out", "--head-only", data=photos)
    found = {}
    for name, folder in (("all", photos), ("part", part)):
        table = tmp_path / f"{name}.csv"
        assert predict.main([str(folder), "--from", str(tmp_path / "out"), "--out", str(table)]) == 0
        found[name] = next(row for row in csv.DictReader(table.open()) if row["name"].endswith("0.png"))
    assert (found["all"]["label"], found["all"]["confidence"]) == (found["part"]["label"], found["part"]["confidence"])


def test_folds_hold_each_image_once_and_each_class_evenly():
    labels = np.repeat(np.arange(3), (20, 7, 1))
    fold = tuning.folds_of(labels, 5, seed=0)
    counts = np.stack([np.bincount(fold[labels == c], minlength=5) for c in range(3)])
    assert counts.sum(1).tolist() == [20, 7, 1] and (np.ptp(counts, axis=1) <= 1).all()
    assert np.ptp(np.bincount(fold)) <= 1 and not np.array_equal(fold, tuning.folds_of(labels, 5, seed=1))


def test_a_table_of_labels_and_random_weights(tmp_path, capsys):
    rows = []
    for k in range(24):
        colour = [(200, 30, 30), (30, 30, 200)][k % 2]
        Image.new("RGB", (20 + k, 24), colour).save(tmp_path / f"{k}.png") if k else None
        rows += [(f"{k}.png", ("red", "blue")[k % 2])] if 0 < k < 17 else []
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *rows])
    (tmp_path / "0.png").write_bytes(b"no image")
    out = tmp_path / "out"
    flags = [
        "--labels",
        str(tmp_path / "labels.csv"),
        "--from",
        "none",
        "--backbone",
        "test_resnet",
        "--image-size",
        "32",
    ]
    assert finetune.main([str(tmp_path), *flags, "--head-only", "--folds", "2", "--out", str(out)]) == 0
    found = json.loads((out / "finetuned.json").read_text())
    assert found["labels"] == 16 and found["classes"] == ["blue", "red"] and found["top1"] == 100
    capsys.readouterr()
    table = tmp_path / "predictions.csv"
    few = ["--pipeline", "reference", "--workers", "0"]
    assert predict.main([str(tmp_path), "--labels", "none", "--from", str(out), "--out", str(table), *few]) == 0
    assert "1 unreadable ones left out, such as 0.png" in capsys.readouterr().out
    with table.open() as file:
        said = {row["name"]: row["label"] for row in csv.DictReader(file)}
    assert said == {f"{k}.png": ("red", "blue")[k % 2] for k in range(1, 24)}


def test_predictions_are_the_networks_softmax(place, tmp_path, capsys):
    tuned(place, tmp_path / "out", "--head-only", "--epochs", 3)
    table = tmp_path / "p.csv"
    assert predict.main([str(place / "test.npz"), "--from", str(tmp_path / "out"), "--out", str(table)]) == 0
    shares, labels = by_hand(tmp_path / "out", place / "test.npz")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == shares.argmax(1).tolist()
    assert np.allclose([float(row["confidence"]) for row in rows], shares.amax(1), atol=1e-4)
    right = 100 * (shares.argmax(1).numpy() == labels).mean()
    assert f"{right:.1f} % right" in capsys.readouterr().out


def test_few_predictions_are_printed_and_those_on_what_it_learned_from_are_told(place, tmp_path, capsys):
    tuned(place, tmp_path / "out", "--head-only", "--epochs", 3)
    record = tmp_path / "out" / "finetuned.json"
    learned = json.loads(record.read_text())["data"]
    capsys.readouterr()
    for data, seen in ((learned, True), (str(place / "test.npz"), False)):
        table = tmp_path / f"{seen}.csv"
        assert predict.main([data, "--from", str(tmp_path / "out"), "--out", str(table)]) == 0
        assert ("it was trained on some of these" in capsys.readouterr().out) == seen
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    table = tmp_path / "one.csv"
    assert predict.main([str(tmp_path / "one.png"), "--from", str(tmp_path / "out"), "--out", str(table)]) == 0
    with table.open() as file:
        [row] = csv.DictReader(file)
    assert f"one.png: {row['label']}, {100 * float(row['confidence']):.1f} % sure" in capsys.readouterr().out


def sure_logits():
    """Logits of 300 images, right six times of ten and surer than that, with their labels."""
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(300, 6, generator=generator)
    return logits, torch.where(torch.rand(300, generator=generator) < 0.6, logits.argmax(1), torch.arange(300) % 6)


def by_scipy(logits, labels):
    loss = nn.functional.cross_entropy
    return minimize_scalar(lambda t: loss(logits / t, labels).item(), bounds=(0.05, 20), method="bounded").x


def test_the_temperature_is_the_minimum_that_scipy_finds():
    assert best_temperature(*sure_logits()) == pytest.approx(by_scipy(*sure_logits()), rel=0.03)


def test_what_is_reported_was_calibrated_on_other_images():
    logits, labels = sure_logits()
    shares = crossed(logits, labels)
    for here, there in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        theirs = (logits[here] / by_scipy(logits[there], labels[there])).softmax(1)
        assert torch.allclose(shares[here].float(), theirs, atol=0.02)
    assert crossed(logits[:1], labels[:1]).sum() == pytest.approx(1)


def test_the_calibration_error_is_that_of_a_histogram():
    logits, labels = sure_logits()
    shares = logits.softmax(1)
    sure, right = shares.amax(1).numpy(), (shares.argmax(1) == labels).numpy()
    expected = 0.0
    for low in range(10):
        inside = (sure >= low / 10) & (sure < (low + 1) / 10 + (low == 9))
        if inside.any():
            expected += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
    assert calibration_error(shares, labels) == pytest.approx(100 * expected, abs=0.01)
    assert calibration_error(crossed(logits, labels), labels) < 100 * expected  # calibrating helps


def test_bad_input_is_one_sentence_before_anything_is_made(place, tmp_path):
    write_images(tmp_path / "plain.npz", 8, 0, labelled=False)
    run, train = str(place / "run"), str(place / "train.npz")
    cases = (
        ([train, "--from", "none"], "--from none needs --backbone"),
        ([train, "--from", str(tmp_path / "absent")], "no such run folder"),
        ([train, "--from", run, "--fraction", "1.5"], "above 0, up to 1"),
        ([train, "--from", run, "--fraction", "0.5", "--shots", "2"], "give one of them"),
        ([train, "--from", run, "--shots", "500"], "fewer shots"),
        ([train, "--from", run, "--folds", "3"], "there are images to test on"),
        ([train, "--from", run, "--folds", "1"], "--folds 1 is too few"),
        ([str(tmp_path / "plain.npz"), "--from", run], "has no labels"),
        ([train, "--from", run, "--lr", "0"], "no learning rate"),
    )
    for flags, says in cases:
        with pytest.raises(UserError, match=says):
            finetune.main([*flags, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="it has no classifier; make one with saccade finetune"):
        predict.main([train, "--from", run, "--out", str(tmp_path / "p.csv")])
    with pytest.raises(UserError, match=r"ending in \.csv"):
        predict.main([train, "--from", run, "--out", str(tmp_path / "p.txt")])
