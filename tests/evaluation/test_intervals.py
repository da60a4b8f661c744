"""Intervals of accuracies, against scipy's and by how often they hold what is true."""

import numpy as np
import pytest
import torch
from scipy import stats

from saccade.evaluation.intervals import paired_difference, wilson


@pytest.mark.parametrize(("right", "images"), [(0, 1), (0, 40), (7, 20), (20, 20), (164, 328), (9_999, 10_000)])
def test_wilson_equals_scipys(right, images):
    theirs = stats.binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert wilson(right, images) == pytest.approx((100 * right / images, 100 * theirs.low, 100 * theirs.high), abs=1e-9)


@pytest.mark.parametrize(("right", "images"), [(0, 0), (3, 2), (-1, 2)])
def test_an_accuracy_of_nothing_is_refused(right, images):
    with pytest.raises(ValueError, match="right of"):
        wilson(right, images)


def answers(p: tuple[float, float, float, float], n: int, rng: np.random.Generator) -> list[torch.Tensor]:
    """Right by both, by the first, by the second, by none, with probabilities p."""
    kind = torch.from_numpy(rng.choice(4, size=n, p=p))
    return [(kind == 0) | (kind == 1), (kind == 0) | (kind == 2)]


def test_the_interval_of_a_difference_is_that_of_scipys_paired_bootstrap():
    first, second = answers((0.3, 0.25, 0.1, 0.35), 600, np.random.default_rng(0))
    found = paired_difference(first, second)
    theirs = stats.bootstrap(
        (first.double().numpy(), second.double().numpy()),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
        n_resamples=4000,
    ).confidence_interval
    assert found.value == pytest.approx(100 * (first.double() - second.double()).mean().item())
    assert (found.low, found.high) == pytest.approx((100 * theirs.low, 100 * theirs.high), abs=0.4)


def test_a_difference_is_within_its_interval_19_times_of_20():
    rng, held = np.random.default_rng(2), {100: 0, 300: 0}
    for n in held:
        for _ in range(1000):
            found = paired_difference(*answers((0.4, 0.2, 0.1, 0.3), n, rng))
            held[n] += found.low <= 10.0 <= found.high
    assert all(930 <= times <= 970 for times in held.values())


def test_the_interval_of_equals_holds_zero_and_is_no_point():
    right = torch.tensor([True, False, True, True])
    found = paired_difference(right, right)
    assert found.value == 0 and found.low <= 0 <= found.high
    nothing = paired_difference(~right & right, right | ~right)
    assert nothing.value == -100 and nothing.low == -100 and -100 < nothing.high < 0
