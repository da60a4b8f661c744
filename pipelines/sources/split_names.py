"""What the parts of a data set are called."""

from __future__ import annotations

import re

VALIDATION = (  # the first that is there
    *("val", "valid", "validate", "validation", "eval", "evaluation"),
    *("test", "testing", "dev", "holdout"),
)
SPLITS = ("train", "training", *VALIDATION, "unlabeled", "unlabelled")


def is_train(name: str) -> bool:
    return name.lower() in ("train", "training")


def split_word(name: str) -> str | None:
    """The split that a name like train_set, val2017 or Set-Test begins or ends with."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((word for word in (*words[:1], *words[-1:]) if word in SPLITS), None)
