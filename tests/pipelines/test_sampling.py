"""Sampling weights: exact shares, the law of order, one sentence for what cannot be."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade import train
from saccade.base.errors import UserError
from saccade.pipelines.build import create_order
from saccade.pipelines.sampling import WeightedOrder, find_sampling
from saccade.pipelines.sources import ArraySource

WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), min_size=1, max_size=60).filter(any)


def source_of(labels) -> ArraySource:
    return ArraySource("x", np.zeros((len(labels), 2, 2, 3), np.uint8), np.array(labels))


@settings(max_examples=80, deadline=None)
@given(WEIGHTS, st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_an_epoch_shows_each_image_its_share_rounded_down_or_up(weights, seed, epoch):
    values = np.array(weights)
    order = WeightedOrder(values, None, 1, seed)
    shown = np.bincount(order.permutation(epoch).numpy(), minlength=len(values))
    share = len(values) * values / values.sum()
    assert shown.sum() == len(values) and (shown[values == 0] == 0).all()
    assert (shown >= np.floor(share - 1e-6)).all() and (shown <= np.ceil(share + 1e-6)).all()
    assert torch.equal(order.permutation(epoch), WeightedOrder(values, None, 1, seed).permutation(epoch))


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.sampled_from([1, 2, 3, 6]), st.integers(0, 4), st.integers(0, 3))
def test_processes_and_restarts_see_what_one_run_would(weights, world_size, done, epoch):
    values = np.array(weights + weights)
    if len(values) < 6:
        return
    whole = WeightedOrder(values, None, 6, 7).batches(epoch)
    parts = [WeightedOrder(values, None, 6, 7, rank, world_size) for rank in range(world_size)]
    seen = min(done, len(whole)) * 6
    for step, batch in enumerate(whole[seen // 6 :]):
        assert torch.equal(torch.stack([part.batches(epoch, seen)[step] for part in parts], dim=1).flatten(), batch)


def test_over_many_epochs_every_image_has_its_share_and_its_own_company():
    weights = np.random.default_rng(0).exponential(size=50)
    order = WeightedOrder(weights, None, 5, seed=3)
    shown = sum(np.bincount(order.permutation(epoch).numpy(), minlength=50) for epoch in range(400)) / 400
    assert np.abs(shown - 50 * weights / weights.sum()).max() < 0.12
    assert len({tuple(sorted(order.permutation(epoch).tolist())) for epoch in range(20)}) == 20


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=2, max_size=80).filter(lambda x: max(x) >= 0), st.integers(0, 9))
def test_classes_have_their_shares_in_every_epoch(labels, epoch):
    found = np.array(labels)
    counts = np.bincount(found[found >= 0], minlength=5)
    for sampling, wanted in (("balanced", counts > 0), ("sqrt", np.sqrt(counts))):
        chosen = find_sampling(sampling, source_of(labels), None)
        order = create_order(source_of(labels), 0, 1, 5, sampling=chosen)
        shown = found[order.permutation(epoch).numpy()]
        share = wanted / wanted.sum() * counts.sum()
        assert np.abs(np.bincount(shown[shown >= 0], minlength=5) - share).max() < 1 + 1e-6
        assert abs(int((shown < 0).sum()) - int((found < 0).sum())) <= 1


def write_photos(folder, weights):
    for k in range(24):
        file = folder / "photos" / f"{k:02d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (k, 0, 0)).save(file)
    rows = [f"{k:02d}.png,{'cat' if k < 18 else 'dog'},{w}" for k, w in enumerate(weights)]
    (folder / "l.csv").write_text("\n".join(["file,label,weight", *rows]))


RUN = [
    "--backbone",
    "test_resnet",
    "--image-size",
    "32",
    "--batch-size",
    "8",
    "--steps",
    "4",
    "--device",
    "cpu",
    "--eval-every",
    "0",
]


def test_a_run_samples_says_records_and_resumes(tmp_path, capsys):
    write_photos(tmp_path, [0] * 6 + [1] * 18)
    flags = ["--data", str(tmp_path / "photos"), "--labels", str(tmp_path / "l.csv"), *RUN]
    out = tmp_path / "run"
    assert train.main([*flags, "--sampling", "weight", "--out", str(out)]) == 0
    told = "an epoch shows an image 0 to 1.33 times, 6 of weight 0 never"
    assert told in capsys.readouterr().out and told in json.loads((out / "config.json").read_text())["sampled"]
    assert train.main(["--resume", str(out), "--sampling", "sqrt"]) == 2
    assert "it was weight" in capsys.readouterr().err
    assert train.main(["--resume", str(out)]) == 0
    balanced = find_sampling("balanced", source_of([0] * 18 + [1] * 6), None)
    assert "2 classes; an epoch shows an image of the largest (18) 0.667 times" in balanced.told


@pytest.mark.parametrize(
    ("weights", "sampling", "words"),
    [
        ([1] * 23 + [""], "weight", "1 of 24 images have no weight .* such as 23.png"),
        ([1] * 23 + ["much"], "weight", "a weight that is no number"),
        ([1] * 23 + [-1], "weight", "must be 0 or more"),
        ([0] * 24, "weight", "not all 0"),
        ([1] * 24, "weigth", "--sampling weigth: .* has the columns file, label, weight"),
    ],
)
def test_weights_that_cannot_be_are_told(tmp_path, capsys, weights, sampling, words):
    write_photos(tmp_path, weights)
    flags = ["--data", str(tmp_path / "photos"), "--labels", str(tmp_path / "l.csv"), *RUN]
    assert train.main([*flags, "--sampling", sampling, "--out", str(tmp_path / "r")]) == 2
    assert not (tmp_path / "r").exists()
    assert re.search(words, capsys.readouterr().err)


def test_sampling_needs_labels_or_a_table():
    bare = ArraySource("x", np.zeros((4, 2, 2, 3), np.uint8))
    for sampling, words in (("sqrt", "has no labels"), ("w", "or a column of weights")):
        with pytest.raises(UserError, match=words):
            find_sampling(sampling, bare, None)
    with pytest.raises(UserError, match="give one"):
        create_order(bare, 2, 1, sampling=find_sampling("balanced", source_of([0, 1]), None))
