"""The state of a long measurement after each epoch, on disk: the same command again goes on from there."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saccade.base.caches import cache_folder
from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.base.text import printable
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.fingerprint import fingerprint
from saccade.runs.ranks import ONE, Ranks
from saccade.runs.tensor_file import Damaged, read_tree, write_tree

EVERY = 60.0  # seconds between two writes
OLD = 30 * 86400.0  # seconds after which what nobody went on with is removed


class Kept:
    """One file in the cache folder, named by a key of everything that the result depends on; gone once it is done.

    A folder that cannot be written costs the way back, which is said once, never the measurement. Of several processes,
    which all have the same state, the main one writes; all read.
    """

    def __init__(self, key: str, ranks: Ranks = ONE) -> None:
        self.ranks = ranks
        self._path, self._last = cache_folder() / "measuring" / f"{key}.safetensors", time.monotonic()
        self._said = False

    def read(self) -> dict[str, Any] | None:
        """What was written last, if it is whole."""
        try:
            return read_tree(self._path)
        except (OSError, Damaged):
            return None

    def write(self, tree: Mapping[str, Any], now: bool = False) -> None:
        """At most once in EVERY seconds, but for `now`."""
        if not self.ranks.main or (time.monotonic() - self._last < EVERY and not now):
            return
        self._last = time.monotonic()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, lambda file: write_tree(file, tree))
        except (OSError, UserError) as error:
            if not self._said:
                print(printable(f"warning: a stop would begin this anew: {error}"), file=sys.stderr, flush=True)
            self._said = True

    def remove(self) -> None:
        """Its file, and those of others that are a month old."""
        if not self.ranks.main:
            return
        now = time.time()
        for path in self._path.parent.glob("*.safetensors") if self._path.parent.is_dir() else ():
            try:
                if path == self._path or now - path.stat().st_mtime > OLD:
                    path.unlink()
            except OSError:
                pass


def key_of(backbone: nn.Module, sources: tuple[Source, ...], *rest: object) -> str:
    """Of a backbone's weights, the images (as a resumed run knows them again) and labels, and what `rest` prints as."""
    found = hashlib.sha256(json.dumps([str(item) for item in rest]).encode())
    for name, value in sorted(backbone.state_dict().items()):
        found.update(name.encode())
        found.update(_bytes(value))
    for source in sources:
        found.update(json.dumps([source.name, len(source), fingerprint(source)]).encode())
        found.update(b"" if source.labels is None else source.labels.tobytes())
    return found.hexdigest()[:32]


def _bytes(tensor: Tensor) -> memoryview | bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data if tensor.numel() else b""
