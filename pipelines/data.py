"""From what a user writes after --data to a training source and, where there is one, a source to evaluate on."""

from __future__ import annotations

import os
from dataclasses import replace

from saccade.base.errors import UserError
from saccade.pipelines.sources.labels import with_classes_of
from saccade.pipelines.sources.named import NAMES as NAMES
from saccade.pipelines.sources.open import Found, evaluation_split, find, open_split, train_split
from saccade.pipelines.sources.options import Options
from saccade.pipelines.sources.source import Source
from saccade.pipelines.sources.split_names import VALIDATION


def open_data(
    data: str,
    val_data: str | None = None,
    data_dir: str = "data",
    labelled: bool = False,
    allow_pipe: bool | None = None,
    options: Options | None = None,
    unlabelled: bool = False,
) -> tuple[Source, Source | None]:
    """The training source and the evaluation source (None where there is none).

    data: one of NAMES; a folder of images, or one that holds train/ and val/; an .npz, a .beton, a .csv list,
    webdataset tars, parquet (a file, a folder of them, `x-{000..127}.tar`, `x-*.tar`, `a.tar::b.tar`, a URL); or
    MODULE:ARGUMENT, a source of your own. val_data: likewise; of several splits its val or test, else its train.
    Without it a split beside the training data is used. labelled: only the labelled training images, of a set that
    has others too (STL-10: 5,000 of 105,000); unlabelled: only its others. options: how the data is to be read, where
    that can be meant in two ways.

    Examples:
        >>> train, val = open_data("textures")
        >>> len(train), train.read(0).shape, len(train.classes), len(val)
        (6000, (32, 32, 3), 10, 1000)
    """
    for place in (data, *([] if val_data is None else [val_data])):
        if not isinstance(place, str | os.PathLike):
            raise UserError(f"open_data takes a place as text, such as a folder's path, not a {type(place).__name__}.")
    data, val_data = os.fspath(data), val_data and os.fspath(val_data)
    options = replace(options or Options(), data_dir=data_dir, allow_pipe=allow_pipe)
    found = find(data, options)
    training = train_split(found, data, labelled, unlabelled)
    train = open_split(found, training, options)
    options = replace(options, value_range=options.value_range or train.reader.value_range)  # one for both
    if val_data:
        beside = options if options.table is None else replace(options, labels=None)
        other = find(val_data, beside, "--val-data")
        val = open_split(other, _evaluation_split(other), beside, part=True)
    else:
        name = evaluation_split(found, training)
        val = open_split(found, name, options) if name else None
    if val is not None and _same_images(train, val):
        train.account.guess(
            f"the images to test on are those of {train.name} themselves, so each is its own neighbour and accuracy "
            "says nothing; --val-data names others (without it, each is tested against all others)"
        )
    return train, val and with_classes_of(train, val)


def _same_images(train: Source, val: Source) -> bool:
    last = len(train) - 1
    alike = len(val) == len(train) and all(train.key_of(i) == val.key_of(i) for i in (0, last))
    return alike and train.identity() == val.identity()


def open_labelled(labelled_data: str | None, data: str, data_dir: str, train: Source) -> Source | None:
    """Labelled images to go beside unlabelled training data: those asked for, or STL-10's own 5,000; None without."""
    if labelled_data is None:
        return (
            open_data("stl10", None, data_dir, labelled=True)[0] if data == "stl10" and train.labels is None else None
        )
    source, _ = open_data(labelled_data, None, data_dir, labelled=True, options=Options(channels=train.channels))
    if source.labels is None:
        raise UserError(
            f"--labelled-data {labelled_data} has no labels; use a folder with one sub-folder for each class, or "
            "an .npz with `labels`."
        )
    return source.labelled()


def _evaluation_split(found: Found) -> str:
    """Its val or test, else its train."""
    return next((s for s in (*VALIDATION, "train") if s in found.splits), next(iter(found.splits)))
