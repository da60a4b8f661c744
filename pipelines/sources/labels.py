"""Labels: texts to numbers, one list of classes for several sources, and what is no label. -1 is an image without
one."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from saccade.base.errors import UserError
from saccade.base.text import printable
from saccade.pipelines.sources.source import Source

MAX_CLASSES = 1_000_000  # more is a label that is no class number


def check_labels(labels: np.ndarray | None, name: str, classes: Sequence[str] | None = None) -> np.ndarray | None:
    """(N,) labels as int64, None where not one image has a label. UserError for numbers that are no classes."""
    if labels is None or not len(labels):
        return None
    low, high = int(labels.min()), int(labels.max())
    if low < -1:
        raise UserError(f"{name}: its smallest label is {low}, some negative; labels count from 0, and -1 is no label.")
    if high >= MAX_CLASSES:  # a classifier would get a row for each number below
        raise UserError(f"{name}: its largest label is {high}, and labels count classes from 0.")
    if classes and high >= len(classes):
        raise UserError(f"{name}: its largest label is {high}, but it names only {len(classes)} classes.")
    return labels.astype(np.int64) if high >= 0 else None


_NOTHING = {"", "nan", "null", "n/a", "#n/a", "<na>"}  # what tables hold where there is no label
_AS_WRITTEN = {"NA", "None"}  # likewise, as pandas has it; a class may be called none
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def plain_labels(labels: Sequence[str | None]) -> list[str | None]:
    """Texts as they are meant: none for -1, NaN and the like; 1 for 1.0, 01 and 1e0, where all are whole numbers."""
    found = [None if text is None or _is_nothing(text.strip()) else text.strip() for text in labels]
    meant = {text: number for text in found if text is not None and (number := _whole(text)) is not None}
    if len(meant) == len({text for text in found if text is not None}):
        return [None if text is None else meant[text] for text in found]
    return found


def _is_nothing(text: str) -> bool:
    return text.lower() in _NOTHING or text in _AS_WRITTEN or _whole(text) == "-1"


def _whole(text: str) -> str | None:
    """A whole number as int prints it; None for any other text."""
    if not _NUMBER.fullmatch(text):
        return None
    if text.lstrip("+-").isdecimal():
        return str(int(text))
    value = float(text) if len(text) < 300 else float("inf")
    return str(int(value)) if value.is_integer() else None


def mixed_kinds(labels: Sequence[str | None]) -> str:
    """A sentence where some labels are numbers and others names, or fractions; "" for whole numbers or names."""
    known = sorted({text for text in plain_labels(labels) if text is not None})
    numbers = [text for text in known if _NUMBER.fullmatch(text)]
    if numbers and len(numbers) == len(known) and (fraction := next((t for t in known if _whole(t) is None), None)):
        return f"the labels are numbers, but fractions too, such as {printable(fraction)}: each is a class name"
    if not numbers or len(numbers) == len(known):
        return ""
    name = next(text for text in known if text not in numbers)
    return f"some labels are numbers, such as {numbers[0]}, and others names, such as {printable(name)}: all are names"


def numbered(
    labels: Sequence[str | None], name: str, classes: Sequence[str] | None = None, plain: bool = True
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """(N,) int64 and class names of label texts (None: no label): numbers as they are, names numbered in sorted order.

    classes: names by label that a manifest gives; plain: as `plain_labels` means them.
    """
    if plain and not (classes and {label for label in labels if label is not None} <= set(classes)):
        labels = plain_labels(labels)
    known = {label for label in labels if label is not None}
    if not known:
        return None, None
    if all(is_number(label) for label in known):
        if (high := max(map(int, known))) >= MAX_CLASSES:
            raise UserError(f"{name}: its largest label is {high}, and labels count classes from 0.")
        numbers = np.array([-1 if label is None else int(label) for label in labels], dtype=np.int64)
        numbers = check_labels(numbers, name)
        return numbers, tuple(classes) if classes and numbers is not None and numbers.max() < len(classes) else None
    number = {text: k for k, text in enumerate(classes if classes and known <= set(classes) else sorted(known))}
    return np.array([-1 if label is None else number[label] for label in labels], dtype=np.int64), tuple(number)


def is_number(label: str) -> bool:
    return label.isdecimal() or (label.startswith("-") and label[1:].isdecimal())


def share_classes(sources: dict[str, Source]) -> dict[str, Source]:
    """All splits numbered by one list of class names: the first's, with what others add behind it."""
    named = [source for source in sources.values() if source.classes]
    for source in named:
        check_labels(source.labels, source.name, source.classes)
    classes = tuple(dict.fromkeys(name for source in named for name in source.classes or ()))
    return {name: _renumbered(source, classes) if source.classes else source for name, source in sources.items()}


def with_classes_of(train: Source, val: Source) -> Source:
    """The evaluation source numbered by the training classes' names; a class the training set lacks is an error."""
    if train.classes and not val.classes and val.labels is not None:
        check_labels(val.labels, val.name, train.classes)
        val.account.guess(
            f"{val.name} has labels without names: they are taken for places in the classes of {train.name}"
        )
    if not train.classes or not val.classes or train.classes == val.classes:
        return val
    if unknown := sorted(set(val.classes) - set(train.classes)):
        raise UserError(
            f"{val.name} has classes that {train.name} lacks: {printable(', '.join(unknown[:5]))}; "
            "give both splits the same class folders."
        )
    return _renumbered(val, train.classes)


def _renumbered(source: Source, classes: tuple[str, ...]) -> Source:
    if source.classes == classes or source.labels is None:
        return source.relabelled(source.labels, classes)
    place = {name: k for k, name in enumerate(classes)}
    number = np.array([*(place[name] for name in source.classes or ()), -1], dtype=np.int64)  # -1 stays -1
    return source.relabelled(number[source.labels], classes)
