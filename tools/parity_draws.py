"""Are the parameters distributed as torchvision's? Two-sample tests against RandomResizedCrop and ColorJitter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomResizedCrop

from saccade.pipelines.draw import draw
from saccade.pipelines.operations import Blur, Grey, Jitter, Solarise
from saccade.pipelines.operations.jitter import ADJUSTMENTS
from saccade.pipelines.views import Crop, View, Views

_CROP, _JITTER, _SIGMA = Crop((0.2, 1.0)), Jitter(0.4, 0.4, 0.2, 0.1, p=0.8), (0.1, 2.0)
SIGNIFICANT = 1e-3  # seeds are fixed, so a p-value below this is a difference and not an accident


@dataclass(frozen=True)
class DrawTest:
    """One parameter: the test's statistic and the probability of so large a one if the distributions are equal."""

    parameter: str
    test: str
    statistic: float
    p: float


def compare_draws(samples: int = 4000, seed: int = 0) -> list[DrawTest]:
    """Ours and torchvision's `samples` draws for a 375 x 500 image, compared parameter by parameter."""
    operations = (_JITTER, Grey(0.2), Blur(0.5, _SIGMA), Solarise(0.1))
    view = View("view", 224, crop=_CROP, flip=0.5, operations=operations)
    size = torch.tensor([375, 500])
    ours = draw(Views((view,)), seed, 0, torch.arange(samples), size.expand(samples, 2))["view"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image = torch.empty(3, 375, 500)
        boxes = torch.tensor(
            [RandomResizedCrop.get_params(image, list(_CROP.scale), list(_CROP.ratio)) for _ in range(samples)]
        )
        jitter = ColorJitter(_JITTER.brightness, _JITTER.contrast, _JITTER.saturation, _JITTER.hue)
        ranges: Any = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        drawn = [jitter.get_params(*ranges) for _ in range(samples)]
    tests = [
        DrawTest(f"crop {name}", "Kolmogorov-Smirnov", *kolmogorov_smirnov(mine, theirs))
        for (name, mine), (_, theirs) in zip(_of_boxes(ours.box, size), _of_boxes(boxes, size), strict=True)
    ]
    jittered = ours[ours.chosen("jitter")].drawn["jitter"]
    for k, name in enumerate(ADJUSTMENTS):
        theirs = torch.tensor([params[1 + k] for params in drawn])
        tests.append(DrawTest(name, "Kolmogorov-Smirnov", *kolmogorov_smirnov(jittered[name], theirs)))
    orders = torch.stack([params[0] for params in drawn])
    tests.append(
        DrawTest("order of the jitter", "chi-squared", *chi_squared(_codes(jittered["order"]), _codes(orders), 256))
    )
    sigma = ours[ours.chosen("blur")].drawn["blur"]["sigma"]
    uniform = torch.rand(samples, generator=torch.Generator().manual_seed(seed)) * (_SIGMA[1] - _SIGMA[0]) + _SIGMA[0]
    tests.append(DrawTest("blur sigma", "Kolmogorov-Smirnov", *kolmogorov_smirnov(sigma, uniform)))
    often = [("flip", ours.flip, view.flip)] + [(o.name, ours.chosen(o.name), o.p) for o in operations]
    for name, chosen, p in often:
        tests.append(DrawTest(f"how often {name}", "binomial", *binomial(int(chosen.sum()), samples, p)))
    return tests


def _of_boxes(box: Tensor, size: Tensor) -> list[tuple[str, Tensor]]:
    top, left, height, width = box.double().unbind(1)
    return [
        ("area", height * width / size.prod()),
        ("ratio", (width / height).log()),
        ("top", top / (size[0] - height + 1)),
        ("left", left / (size[1] - width + 1)),
    ]


def _codes(order: Tensor) -> Tensor:
    return (order.long() * torch.tensor([64, 16, 4, 1])).sum(1)


def kolmogorov_smirnov(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Largest distance of the two empirical distributions, and its asymptotic p-value (Kolmogorov's series)."""
    a, b = a.double().sort().values, b.double().sort().values
    both = torch.cat([a, b])
    below_a, below_b = (torch.searchsorted(x, both, right=True).double() / len(x) for x in (a, b))
    distance = float((below_a - below_b).abs().max())
    scaled = distance * math.sqrt(len(a) * len(b) / (len(a) + len(b)))
    if scaled < 0.2:
        return distance, 1.0  # the series does not converge there
    p = 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return distance, min(1.0, max(0.0, p))


def chi_squared(a: Tensor, b: Tensor, values: int) -> tuple[float, float]:
    """Two samples of whole numbers below `values`: Pearson's statistic and its p-value."""
    counts = torch.stack([torch.bincount(a, minlength=values), torch.bincount(b, minlength=values)]).double()
    counts = counts[:, counts.sum(0) > 0]
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    statistic, freedom = float(((counts - expected) ** 2 / expected).sum()), counts.shape[1] - 1
    p = torch.special.gammaincc(
        torch.tensor(freedom / 2, dtype=torch.float64), torch.tensor(statistic / 2, dtype=torch.float64)
    )
    return statistic, float(p)


def binomial(count: int, samples: int, p: float) -> tuple[float, float]:
    """Share found, and the two-sided p-value of the normal approximation."""
    z = (count - samples * p) / math.sqrt(samples * p * (1 - p))
    return count / samples, math.erfc(abs(z) / math.sqrt(2))
