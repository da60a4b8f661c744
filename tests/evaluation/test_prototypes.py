"""The nearest class mean, against a loop in plain numpy; a protocol of a kind of one's own, from one file."""

import numpy as np
import pytest
import torch

from saccade.evaluation.kinds.prototypes import class_mean_scores, few_of_each


def test_scores_are_those_of_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (12, 4))
    labels = torch.tensor([0, 0, 0, 2, 2, 2, 2, 3, 3, 3, 3, 3])
    scores = class_mean_scores(train, labels, test, classes=4).numpy()
    x, centre = train.numpy(), train.numpy().mean(0)
    for m, image in enumerate(test.numpy() - centre):
        for c in range(4):
            units = [
                (v - centre) / np.linalg.norm(v - centre) for v, label in zip(x, labels, strict=True) if label == c
            ]
            expected = -np.sum((image / np.linalg.norm(image) - np.mean(units, axis=0)) ** 2) if units else -np.inf
            assert scores[m, c] == pytest.approx(expected, abs=1e-12)


def test_shots_are_of_every_class_without_replacement_and_by_seed():
    labels = torch.arange(40) % 4
    rows = few_of_each(labels, 3, torch.Generator().manual_seed(1))
    assert labels[rows].bincount().tolist() == [3, 3, 3, 3] and len(rows.unique()) == 12
    assert torch.equal(rows, few_of_each(labels, 3, torch.Generator().manual_seed(1)))
    assert not torch.equal(rows, few_of_each(labels, 3, torch.Generator().manual_seed(2)))


def test_more_shots_are_better_and_all_are_best():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 20, generator=generator)
    labels = torch.arange(600) % 6
    train, test = (centres[labels] + 2 * torch.randn(600, 20, generator=generator) for _ in range(2))
    top1 = []
    for shots in (1, 5, None):
        right = []
        for draw in range(10):
            rows = few_of_each(labels, shots, torch.Generator().manual_seed(draw))
            scores = class_mean_scores(train[rows], labels[rows], test, 6)
            right.append((scores.argmax(1) == labels).double().mean().item())
        top1.append(np.mean(right))
    assert 1 / 6 < top1[0] < top1[1] < top1[2] < 1
