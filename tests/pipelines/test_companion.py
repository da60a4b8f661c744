"""Labelled images beside unlabelled ones: pairing, starting over, exact resume; data like STL-10 through train.py."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from saccade import train
from saccade.base.errors import UserError
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.companion import CompanionPipeline
from saccade.pipelines.data import open_data, open_labelled
from saccade.pipelines.order import Order
from saccade.pipelines.sources import ArraySource
from saccade.pipelines.views import View, Views
from saccade.runs.checkpoint import load_checkpoint
from saccade.runs.flags import labelled_beside, parse_flags
from tests.present import present


def _pixels(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)


def _pipeline() -> CompanionPipeline:
    unlabelled = ArraySource("unlabelled", _pixels(20, 0))
    labelled = ArraySource("labelled", _pixels(6, 1), np.arange(6) % 3)
    main, other = (
        build_pipeline(source, Views((View(name, 8),)), Order(len(source), 4, seed=5))
        for source, name in ((unlabelled, "view_1"), (labelled, "labelled"))
    )
    return CompanionPipeline(main, other)


def _steps(pipeline: CompanionPipeline, epochs: int) -> list:
    return [batch for _ in range(epochs) for batch in pipeline]


def test_every_batch_has_its_labelled_images_and_the_small_set_starts_over():
    batches = _steps(_pipeline(), 2)
    assert len(batches) == 10
    companions = [b.companion for b in batches]
    assert all(c.views["labelled"].shape == (4, 3, 8, 8) and torch.equal(c.label, c.index % 3) for c in companions)
    assert len({tuple(c.index.tolist()) for c in companions}) > 3  # a new order each time it starts over
    part = batches[0][1:3]
    assert torch.equal(part.companion.label, companions[0].label[1:3]) and len(part.index) == 2


@pytest.mark.parametrize("stop", [1, 5, 7])
def test_resume_pairs_the_same_images(stop):
    whole = _steps(_pipeline(), 2)
    first = _pipeline()
    for made, _ in enumerate((b for _ in range(2) for b in first), start=1):
        if made == stop:
            break
    state = json.loads(json.dumps(first.state_dict()))
    second = _pipeline()
    second.load_state_dict(state)
    assert second.seen == (stop * 4) % 20
    rest = list(second)
    for expected, batch in zip(whole[stop:], rest, strict=False):
        assert torch.equal(batch.index, expected.index) and torch.equal(batch.companion.index, expected.companion.index)
        assert torch.equal(batch.companion.views["labelled"], expected.companion.views["labelled"])


def test_a_checkpoint_without_labelled_images_is_refused():
    pipeline = _pipeline()
    with pytest.raises(UserError, match="leave out --labelled-data"):
        pipeline.load_state_dict(pipeline.main.state_dict())


@pytest.fixture(scope="module")
def stl(tmp_path_factory):
    """STL-10 in small: many images without labels, few with, and a test set."""
    folder = tmp_path_factory.mktemp("stl")
    np.savez(folder / "train.npz", images=_pixels(64, 0))
    for name, n in (("labelled", 20), ("test", 12)):
        np.savez(folder / f"{name}.npz", images=_pixels(n, n), labels=np.arange(n) % 4)
    return folder


def _run(stl, out, *more: str) -> int:
    return train.main(
        [
            "--data",
            str(stl / "train.npz"),
            "--labelled-data",
            str(stl / "labelled.npz"),
            "--recipe",
            "stl10",
            "--image-size",
            "16",
            "--backbone",
            "test_resnet",
            "--batch-size",
            "8",
            "--log-every",
            "1",
            "--out",
            str(out),
            *more,
        ]
    )


def test_stec_trains_its_classifier_beside_unlabelled_data_and_resumes_exactly(stl, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert _run(stl, whole, "--steps", "11") == 0
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all("classifier" in r for r in records if "loss" in r)
    assert any("knn_top1" in r for r in records)  # neighbours among the labelled images
    learner = load_checkpoint(whole)["learner"]
    assert learner["objective.classifier.weight"].shape[0] == 4

    assert _run(stl, stopped, "--steps", "11", "--checkpoint-every", "5", "--keep", "9") == 0
    (stopped / "checkpoints" / "step-00000011.safetensors").unlink()
    (stopped / "checkpoints" / "step-00000010.safetensors").unlink()
    assert train.main(["--resume", str(stopped)]) == 0
    resumed = load_checkpoint(stopped)["learner"]
    assert all(torch.equal(value, resumed[name]) for name, value in learner.items())


def test_stl10_is_its_unlabelled_images_where_labelled_ones_go_beside_them(monkeypatch):
    """97 steps of 1,024 an epoch, not 102: as S-TEC's code. Other methods train on all 105,000, as theirs do."""
    asked = []

    def stl10(root, split, download):
        asked.append(split)
        labels = {"train": [0, 1], "test": [1, 0], "unlabeled": [-1] * 3, "train+unlabeled": [0, 1, -1, -1, -1]}[split]
        return SimpleNamespace(
            data=np.zeros((len(labels), 3, 8, 8), np.uint8),
            labels=np.array(labels),
            classes=[f"c{k}" for k in range(10)],
        )

    monkeypatch.setattr("torchvision.datasets.STL10", stl10)
    for method, wanted in (("stec", 3), ("simclr", 3), ("rsa", 5), ("resa", 5)):
        flags = parse_flags(["--method", method, "--data", "stl10"])
        images, test = open_data("stl10", unlabelled=labelled_beside(flags))
        beside = open_labelled(None, "stl10", "data", images)
        assert len(images) == wanted and images.labels is None, method
        assert len(present(beside)) == 2 and beside.labels.tolist() == [0, 1] and len(present(test)) == 2
    assert "train+unlabeled" in asked and "unlabeled" in asked


def test_labelled_data_without_labels_is_one_sentence(stl, tmp_path, capsys):
    assert (
        train.main(
            ["--data", str(stl / "train.npz"), "--labelled-data", str(stl / "train.npz"), "--out", str(tmp_path / "o")]
        )
        == 2
    )
    assert "has no labels" in capsys.readouterr().err
