"""WebDataset tars as a Reader. What a run may put up with is refused here: a tar that is cut short."""

from __future__ import annotations

from pathlib import Path

from saccade.base.errors import UserError
from saccade.pipelines.shards import ShardSource, index_of
from saccade.tools.conversion.readers import Reader


class WdsReader(Reader):
    """Samples of plain tars, in their order; names are those of the tars' members."""

    def __init__(self, shards: list[Path]) -> None:
        self._names: list[str] = []
        for shard in shards:
            members, cut = index_of(shard)
            if cut:
                raise UserError(f"{shard}: is cut short after {len(members)} images; copy it again.")
            self._names += [member.name for member in members]
        self._source = ShardSource(shards)
        self.labels, self.classes = self._source.labels, self._source.classes

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, i: int) -> str:
        return self._names[i]

    def read(self, i: int) -> bytes:
        return self._source.encoded(i)
