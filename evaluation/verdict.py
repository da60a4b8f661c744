"""Whether a backbone learned: one sentence, with intervals over the same test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade.evaluation.intervals import Interval, paired_difference, wilson
from saccade.models.quality import effective_rank, feature_std

HOW = "95 %: Wilson's of an accuracy, Newcombe's paired one of a difference, both over the same test images"


@dataclass(frozen=True)
class Tried:
    """What a test said of one backbone: (N,) bool, whether each test image came out right; how its features lie."""

    right: Tensor
    feature_std: float
    effective_rank: float

    def to_json(self) -> dict[str, Any]:
        bits = np.packbits(self.right.numpy()).tobytes().hex()
        return {
            "images": len(self.right),
            "right": bits,
            "feature_std": self.feature_std,
            "effective_rank": self.effective_rank,
        }


def tried(right: Tensor, features: Tensor) -> Tried:
    """With the spread and the effective rank of (N, D) features."""
    return Tried(right.cpu(), round(feature_std(features), 4), round(effective_rank(features), 2))


def read_tried(record: Mapping[str, Any]) -> Tried:
    """Of Tried.to_json(). KeyError, TypeError or ValueError for anything else."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(record["right"]), np.uint8))
    right = torch.from_numpy(bits[: int(record["images"])]).bool()
    if len(right) != record["images"]:
        raise ValueError("too few answers")
    return Tried(right, float(record["feature_std"]), float(record["effective_rank"]))


def compared(difference: Interval) -> str:
    """better than, worse than or no different from: whether the interval of the difference leaves 0 out."""
    if difference.low > 0:
        return "better than"
    return "worse than" if difference.high < 0 else "no different from"


def verdict(measure: str, tested: str, trained: Tried, others: Mapping[str, Tried]) -> dict[str, Any]:
    """The numbers and the sentence that says them; `others`: name -> what the same test said of it.

    measure: what is counted, e.g. "kNN top-1"; tested: on what, e.g. "328 test images".
    """
    images = len(trained.right)
    own = wilson(int(trained.right.sum()), images)
    found: dict[str, Any] = {}
    groups: dict[str, list[str]] = {}
    told = [f"trained {_shown(own)}"]
    for name, other in others.items():
        score = wilson(int(other.right.sum()), images)
        points = paired_difference(trained.right, other.right)
        groups.setdefault(compared(points), []).append(name)
        found[name] = {**score._asdict(), "points": points._asdict(), "verdict": compared(points)}
        told.append(f"{name} {_shown(score)}, {points.value:+.1f} points, {points.low:+.1f} to {points.high:+.1f}")
    learned = ", ".join(f"{word} {' and '.join(names)}" for word, names in groups.items())
    spread = {name: {"feature_std": t.feature_std, "effective_rank": t.effective_rank} for name, t in others.items()}
    return {
        "sentence": f"{learned} (95 % intervals over {tested}; {measure}: {'; '.join(told)})",
        "learned": learned,
        "measure": measure,
        "tested": tested,
        "images": images,
        "intervals": HOW,
        "trained": own._asdict(),
        "others": found,
        "spread": {
            "trained": {"feature_std": trained.feature_std, "effective_rank": trained.effective_rank},
            **spread,
        },
    }


def told_spread(spread: Mapping[str, Mapping[str, float]]) -> str:
    """Effective rank and std of the features, beside the other backbone's."""
    trained, (name, other) = spread["trained"], next((n, o) for n, o in spread.items() if n.endswith("backbone"))
    return (
        f"effective rank {trained['effective_rank']:.1f} ({name}: {other['effective_rank']:.1f}), "
        f"std {trained['feature_std']:.2f} ({other['feature_std']:.2f}); rank 1 and std 0 would be collapse"
    )


def _shown(score: Interval) -> str:
    return f"{score.value:.1f} % ({score.low:.1f} to {score.high:.1f})"
