"""Where what can be made again is kept: indices, fetched shards, compiled kernels. One folder, chosen in one place."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """SACCADE_CACHE, else saccade/ in XDG_CACHE_HOME, else ~/.cache/saccade. Not made here; maybe not writable."""
    if chosen := os.environ.get("SACCADE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "saccade"
