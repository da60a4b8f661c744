"""Better, worse or no different: against McNemar's exact test; and what a run leaves of it."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from saccade import train
from saccade.evaluation.own_view import nearest_is_own
from saccade.evaluation.verdict import Tried, read_tried, tried, verdict

SMALL = ["--backbone", "test_resnet", "--image-size", "16", "--batch-size", "16", "--steps", "2", "--workers", "0"]


def of(right: torch.Tensor) -> Tried:
    return tried(right, torch.randn(len(right), 8))


def test_what_mcnemar_finds_significant_is_better_and_what_is_far_from_it_is_no_different():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(40, 400))
        base = torch.from_numpy(rng.random(n) < 0.4)
        flip = torch.from_numpy(rng.random(n) < rng.uniform(0, 0.3))
        right = base ^ flip
        word = verdict("kNN", "images", of(right), {"the untrained backbone": of(base)})["learned"].split(" the ")[0]
        only = int((right & ~base).sum()), int((base & ~right).sum())
        p = stats.binomtest(only[0], max(1, sum(only))).pvalue if sum(only) else 1.0
        if p < 0.02:
            assert word == ("better than" if only[0] > only[1] else "worse than")
        elif p > 0.15:
            assert word == "no different from"


def test_the_sentence_names_both_the_images_and_the_intervals():
    right = torch.arange(100) < 60
    found = verdict(
        "kNN top-1",
        "100 test images",
        of(right),
        {"the untrained backbone": of(torch.arange(100) < 20), "raw pixels": of(torch.arange(100) < 59)},
    )
    assert found["learned"] == "better than the untrained backbone, no different from raw pixels"
    assert "over 100 test images" in found["sentence"] and "trained 60.0 % (50.2 to 69.1)" in found["sentence"]
    assert "+40.0 points, +29." in found["sentence"]


def test_what_is_kept_of_a_test_is_read_back_and_damage_is_noticed():
    kept = json.loads(json.dumps(of(torch.arange(37) % 3 == 0).to_json()))
    again = read_tried(kept)
    assert torch.equal(again.right, torch.arange(37) % 3 == 0) and again.to_json() == kept
    with pytest.raises(ValueError, match="too few"):
        read_tried({**kept, "images": 41})


def test_a_view_is_found_where_its_own_is_nearer_than_every_other():
    first = torch.eye(6)
    assert nearest_is_own(first, first * 3).all()
    assert not nearest_is_own(first, first.roll(1, 0)).any()
    assert not nearest_is_own(torch.ones(6, 4), torch.ones(6, 4)).any()  # collapsed: a tie finds nothing


def images(path, n: int, labels: bool):
    rng = np.random.default_rng(0)
    kind = np.arange(n) % 4
    pictures = (rng.integers(0, 60, (n, 16, 16, 3)) + kind[:, None, None, None] * 45).astype(np.uint8)
    if labels:
        np.savez(path, images=pictures, labels=kind)
    else:
        np.savez(path, images=pictures)
    return str(path)


@pytest.mark.parametrize(
    ("n", "labels", "more", "said"),
    [
        (48, True, [], "48 images, each against all others"),
        (48, False, [], "48 training images; an image's own other view"),
        (17, False, ["--batch-size", "4"], "none, 17 images without labels are too few"),
        (48, True, ["--eval-every", "0"], "none, --eval-every 0 leaves it out"),
    ],
)
def test_every_run_ends_with_a_verdict(tmp_path, capsys, n, labels, more, said):
    data = images(tmp_path / "images.npz", n, labels)
    assert train.main(["--data", data, "--out", str(tmp_path / "run"), *SMALL, *more]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("verdict: "))
    assert said in line
    kept = tmp_path / "run" / "verdict.json"
    assert kept.exists() == ("none" not in said)
    if kept.exists():
        found = json.loads(kept.read_text())
        assert line == f"verdict: {found['sentence']}" and found["images"] == n
        assert found["command"].startswith(f"saccade train --data {data}") and "--steps 2" in found["command"]


def test_a_resumed_run_judges_by_what_was_measured_at_its_start(tmp_path):
    data, out = images(tmp_path / "images.npz", 48, True), tmp_path / "run"
    assert train.main(["--data", data, "--out", str(out), *SMALL]) == 0
    before = (out / "verdict.json").read_text()
    (out / "verdict.json").unlink()
    assert train.main(["--resume", str(out)]) == 0
    assert (out / "verdict.json").read_text() == before
