"""What a user may settle about the meaning of a data set; everything else is told by the data."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from saccade.base.errors import UserError
from saccade.pipelines.sources.decode import ValueRange

MOST_CHANNELS = 512
NO_LABELS, FOLDER_LABELS = "none", "folders"


@dataclass(frozen=True)
class Options:
    """labels: a CSV of FILE,LABEL rows, "none" or "folders"; image_key, label_key: member, column or field;
    channels: of the images (None: 3); value_range: what becomes 0 and 255 of deep images; data_dir: where named sets
    lie; allow_pipe: whether pipe: URLs may run; recheck: look at every file, whatever is kept of an earlier look."""

    labels: str | None = None
    image_key: str | None = None
    label_key: str | None = None
    value_range: ValueRange | None = None
    channels: int | None = None
    data_dir: str = "data"
    allow_pipe: bool | None = None
    recheck: bool = False

    @property
    def meaning(self) -> str:
        """All that an index depends on, as text."""
        return repr(replace(self, recheck=False))

    @property
    def table(self) -> str | None:
        """The CSV of labels, if one is given."""
        return self.labels if self.labels not in (None, NO_LABELS, FOLDER_LABELS) else None


def read_value_range(text: str | None) -> ValueRange | None:
    """LOW,HIGH as a range; None for "auto"."""
    if text is None or text == "auto":
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except (ValueError, AttributeError) as error:  # of a record: no text
        raise UserError(f"--value-range {text}: give auto, or two numbers LOW,HIGH.") from error
    if not low < high < float("inf") or low == -float("inf"):
        raise UserError(f"--value-range {text}: the first number must be the smaller, and both finite.")
    return ValueRange(low, high)


PLAIN = Options()  # nothing settled


def add_flags(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """The flags that settle what a data set means, the same for every command."""
    group.add_argument(
        "--labels",
        metavar="CSV",
        help="a CSV with rows FILE,LABEL for some or all images; or none (train without labels) or folders (a folder's "
        "sub-folders are its classes) (default: as the data has them)",
    )
    group.add_argument(
        "--image-key", metavar="NAME", help="which member, column or field is the image (default: docs/data.md)"
    )
    group.add_argument("--label-key", metavar="NAME", help="which member, column or field is the label")
    group.add_argument(
        "--channels",
        type=int,
        metavar="N",
        help="channels of the images, such as 13 of multi-spectral ones (default: 3)",
    )
    group.add_argument(
        "--value-range",
        metavar="LOW,HIGH",
        help="values of 16-bit and float images that become 0 and 255 (default: auto)",
    )
    group.add_argument(
        "--recheck",
        action="store_true",
        help="look at every file and every tar's headers again; an index that was kept else holds until the time of a "
        "folder, or the time or size of a container, changes",
    )


def options_of(flags: argparse.Namespace) -> Options:
    """The options that a command's flags give."""
    channels = flags.channels
    if channels is not None and not 1 <= channels <= MOST_CHANNELS:
        raise UserError(f"--channels {channels}: give the number of channels of the images, 1 to {MOST_CHANNELS}.")
    value_range, recheck = read_value_range(flags.value_range), getattr(flags, "recheck", False)
    return Options(flags.labels, flags.image_key, flags.label_key, value_range, channels, recheck=recheck)
