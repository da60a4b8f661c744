"""The one progress bar of the commands that are not a training loop."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress_bar(items: Iterable | None, total: int, what: str, unit: str, shown: bool = True) -> tqdm:
    """The items, or None and .update(), with rate and time left; a line every half minute where no terminal is."""
    wait, delay = (0.1, 1) if sys.stderr.isatty() else (30, 30)
    return tqdm(
        items,
        what,
        total,
        unit=f" {unit}",
        leave=False,
        disable=not shown,
        mininterval=wait,
        delay=delay,
        smoothing=0.1,
        dynamic_ncols=True,
    )
