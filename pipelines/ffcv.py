"""The `ffcv` executor: `threads` over a `.beton` file, whose table says sizes and places.

FFCV's file format, without its Loader: that one calls torch.set_num_threads, decodes once for each view, hangs when a
thread raises and aborts the interpreter when an epoch is left early (docs/data.md). Raw pixels are not even copied: the
renderer reads the crops from the mapped file.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from saccade.base.errors import UserError
from saccade.base.mapped import unwritable
from saccade.pipelines.render import Photos
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.beton import BetonSource
from saccade.pipelines.threads import Image, ThreadsPipeline


class FfcvPipeline(ThreadsPipeline):
    source: BetonSource

    def __init__(self, source: Source, *args, **kwargs) -> None:
        if not isinstance(source, BetonSource):
            raise UserError(f"the ffcv executor reads .beton files, {source.name} is none; saccade convert makes one.")
        super().__init__(source, *args, **kwargs)

    def _lying(self, index: Tensor) -> Photos | None:
        source, numbers = self.source, index.numpy()
        if source.is_jpeg[numbers].any():
            return super()._lying(index)
        return Photos(self._mapped, *(torch.from_numpy(table[numbers]) for table in (source.ptr, source.sizes)))

    def _load(self, number: int) -> Image:
        size = self.source.reader.size(self.source.index, number)
        if not self.source.is_jpeg[number]:
            return Image(number, size, None, self.source.read(number))
        return Image(number, size, self.source.piece(number), orientation=1)  # as it lies: FFCV knows no EXIF

    @cached_property
    def _mapped(self) -> Tensor:
        """(bytes,) uint8: the whole file."""
        return unwritable(self.source.file)
