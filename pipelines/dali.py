"""The `dali` executor: photos decoded once by NVIDIA DALI, on the GPU where there is one, views cut from that decode.

Bytes are read in our order, boxes are drawn from the headers, DALI decodes. Files that are no ordinary JPEG are decoded
by PIL in the reading threads and pass DALI as raw pixels, so every file means what it means to `reference`.
"""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from saccade.base.errors import UserError
from saccade.pipelines.dali_graph import DEPTH, Graph, pixels_as_file
from saccade.pipelines.draw import ViewParams, draw
from saccade.pipelines.header import jpeg_header
from saccade.pipelines.pipeline import Batch, Pipeline, pieces_of
from saccade.pipelines.prefetch import UntilRead
from saccade.pipelines.render import Photos, appearance, render

_READ_AHEAD = 2  # chunks being read while DALI works on others
_MOST, _LEAST = 256, 16  # images read together, fewer where they are large
_BYTES = 512 << 20  # decoded at once, about


@dataclass
class _File:
    """One image as DALI gets it: a JPEG, or pixels behind a PPM header."""

    number: int  # of the sample that was read
    data: np.ndarray
    size: tuple[int, int]
    is_pixels: bool


@dataclass
class _Chunk:
    """Images that pass DALI together; a batch is one or more of them."""

    index: Tensor  # the samples asked for
    ends_batch: bool
    files: list[_File]
    params: dict[str, ViewParams] = field(default_factory=dict)


class DaliPipeline(Pipeline):
    """JPEGs and other image files from a folder, shards, or any source with `encoded`.

    threads: DALI's, for decoding. cuts: True lets DALI cut the views (default on a GPU), False lets the renderer cut
    them from the decoded images (default on a CPU, where it is faster: docs/parity.md).
    """

    def __init__(self, *args, threads: int = 1, cuts: bool | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.device.type == "cuda" and cuts is False:
            raise UserError("the dali executor cuts views on the GPU itself; leave out cuts=False.")
        self.threads, self.cuts = max(1, threads), self.device.type == "cuda" if cuts is None else cuts
        self._graph: Graph | None = None
        self._until_read = UntilRead(self.device)
        self._readers: ThreadPoolExecutor | None = None
        self._by_pil: set[int] = set()  # files that only PIL can decode
        self._chunk_size = 0
        self._vram_before = 0

    def _batches(self, epoch: int, shards: Sequence[Tensor]) -> Iterator[Batch]:
        self._open(shards)
        chunks, in_flight, parts = self._chunks(epoch, shards), deque(), []
        try:
            while self._fill(in_flight, chunks):
                chunk, cut = self._finish(epoch, in_flight)
                self._fill(in_flight, chunks)
                parts.append((chunk, self._render(chunk, cut)))
                self._until_read.hold(cut, chunk.files)  # the files too: DALI may not have copied them yet
                del cut
                if chunk.ends_batch:
                    yield self._batch(parts)
                    parts = []
        finally:
            if not sys.is_finalizing():  # the script has ended in the middle of an epoch, and DALI before us
                chunks.close()
                self._until_read.wait()
                self._abandon(len(in_flight))

    # --- reading ----------------------------------------------------------------------------------------------------

    def _open(self, shards: Sequence[Tensor]) -> None:
        if self._readers is None:
            self._readers = ThreadPoolExecutor(min(32, 2 * self.threads), thread_name_prefix="dali-read")
        if not self._chunk_size and shards:
            some = torch.linspace(0, len(self.source) - 1, 16).long().tolist()
            pixels = np.mean([np.prod(self._file(i).size) for i in some])
            self._chunk_size = int(np.clip(_BYTES // (3 * pixels), _LEAST, _MOST))

    def _chunks(self, epoch: int, shards: Sequence[Tensor]) -> Generator[_Chunk, None, None]:
        """The epoch's images, read a little ahead, with their parameters drawn."""
        assert self._readers is not None  # _open made them
        readers = self._readers
        waiting: deque[tuple[Tensor, bool, list[Future]]] = deque()
        pieces = (
            (piece, i == last)
            for shard in shards
            for last in [-(-len(shard) // self._chunk_size) - 1]
            for i, piece in enumerate(shard.split(self._chunk_size))
        )
        try:
            for index, ends_batch in pieces:
                waiting.append(
                    (
                        index,
                        ends_batch,
                        [readers.submit(self._files, part.tolist()) for part in index.tensor_split(2 * self.threads)],
                    )
                )
                if len(waiting) > _READ_AHEAD:
                    yield from self._read(epoch, *waiting.popleft())
            while waiting:
                yield from self._read(epoch, *waiting.popleft())
        finally:
            for _, _, futures in waiting:
                for future in futures:
                    future.cancel()

    def _read(self, epoch: int, index: Tensor, ends_batch: bool, futures: list[Future]) -> Iterator[_Chunk]:
        files = [file for future in futures for file in future.result()]
        for rows in pieces_of(np.array([file.size for file in files]), _BYTES):
            last = rows.stop == len(files)
            yield self._draw(epoch, _Chunk(index[rows].clone(), ends_batch and last, files[rows]))

    def _draw(self, epoch: int, chunk: _Chunk) -> _Chunk:
        sizes = torch.tensor([file.size for file in chunk.files])
        chunk.params = draw(self.recipe, self.order.seed, epoch, chunk.index, sizes)
        return chunk

    def _files(self, numbers: list[int]) -> list[_File]:
        return [self._file(i) for i in numbers]

    def _file(self, i: int) -> _File:
        """Image i, or the next one that can be read."""
        file, _ = self.source.first_readable(i, self._load)
        return file

    def _load(self, i: int) -> _File:
        data = None if i in self._by_pil else self.source.encoded(i)
        header = jpeg_header(data) if data is not None else None
        if data is None or header is None:
            return self._load_pixels(i, data)
        return _File(i, np.frombuffer(data, np.uint8), (header.height, header.width), False)

    def _load_pixels(self, i: int, data: bytes | None = None) -> _File:
        pixels = self.source.read(i) if data is None else self.source.decode(data)
        return _File(i, pixels_as_file(pixels), pixels.shape[:2], True)

    # --- decoding ---------------------------------------------------------------------------------------------------

    def _fill(self, in_flight: deque[_Chunk], chunks: Iterator[_Chunk]) -> bool:
        """Keep DEPTH chunks in DALI; False when there is none left."""
        while len(in_flight) < DEPTH and (chunk := next(chunks, None)) is not None:
            if self._graph is None:
                self._graph = self._build()
            in_flight.append(chunk)
            self._feed(chunk)
        return bool(in_flight)

    def _feed(self, chunk: _Chunk) -> None:
        assert self._graph is not None  # made before the first chunk is fed
        self._graph.feed([file.data for file in chunk.files], chunk.params)

    def _build(self) -> Graph:
        largest = -(-self.order.batch_size // self.order.world_size)
        if self.device.type == "cuda" and not self._vram_before:
            self._vram_before = _vram_outside_torch(self.device)
        return Graph(self.recipe, self.device, min(self._chunk_size, largest), self.threads, self.cuts)

    def _finish(self, epoch: int, in_flight: deque[_Chunk]) -> tuple[_Chunk, Photos | dict[str, Tensor]]:
        """The oldest chunk decoded. A damaged file kills a DALI pipeline: find it, replace it, feed the rest again."""
        while True:
            chunk = in_flight[0]
            assert self._graph is not None  # a chunk in flight was fed to it
            try:
                cut = self._graph.result()
                if isinstance(cut, Photos) and cut.size.tolist() != [list(file.size) for file in chunk.files]:
                    raise RuntimeError(
                        "decoded to another size than its header's: "
                        + ", ".join(
                            f"sample #{k}"
                            for k, file in enumerate(chunk.files)
                            if cut.size[k].tolist() != list(file.size)
                        )
                    )
                in_flight.popleft()
                return chunk, cut
            except RuntimeError as error:
                self._graph = None
                self._repair(chunk, error)
                self._draw(epoch, chunk)
                self._graph = self._build()
                for again in in_flight:
                    self._feed(again)

    def _repair(self, chunk: _Chunk, error: RuntimeError) -> None:
        """Let PIL judge the files that DALI could not decode: what it can read goes on as pixels, else is replaced."""
        named = {int(k) for k in re.findall(r"sample #(\d+)", str(error))}
        suspects = [k for k in (named or range(len(chunk.files))) if not chunk.files[k].is_pixels]
        if not suspects:
            raise error
        for k in suspects:
            wanted = chunk.files[k].number
            chunk.files[k], used = self.source.first_readable(wanted, self._load_pixels)
            if used == wanted:
                self._by_pil.add(used)

    def _abandon(self, batches: int) -> None:
        """The epoch was left: wait for what DALI still works on, so that the next one starts clean."""
        if self._graph is not None and batches:
            try:
                self._graph.drain(batches)
            except RuntimeError:  # a damaged file among them; it will be met again
                self._graph = None

    # --- rendering --------------------------------------------------------------------------------------------------

    def _render(self, chunk: _Chunk, cut: Photos | dict[str, Tensor]) -> dict[str, Tensor]:
        if isinstance(cut, Photos):
            return render(cut, self.recipe, chunk.params, self.dtype, None, self.renderer)
        chunk.params = {name: params.to(self.device, non_blocking=True) for name, params in chunk.params.items()}
        return {
            view.name: appearance(
                cut[self.recipe.geometry_of(view).name],
                view,
                chunk.params[view.name],
                self.recipe,
                self.dtype,
                self.renderer,
            )
            for view in self.recipe
        }

    def _batch(self, parts: list[tuple[_Chunk, dict[str, Tensor]]]) -> Batch:
        chunks, rendered = [chunk for chunk, _ in parts], [views for _, views in parts]
        views = {
            name: torch.cat([r[name] for r in rendered]) if len(rendered) > 1 else rendered[0][name]
            for name in self.recipe.names
        }
        params = {name: ViewParams.cat(c.params[name] for c in chunks) for name in self.recipe.names}
        label = self._labels(torch.tensor([file.number for c in chunks for file in c.files]))
        return Batch(
            views,
            params,
            torch.cat([c.index for c in chunks]),
            None if label is None else label.to(self.device, non_blocking=True),
        )

    def vram(self) -> int:
        """Bytes of GPU memory taken since the loader was built and not by torch; 0 on a CPU."""
        if self._graph is None or self.device.type != "cuda":
            return 0
        return max(0, _vram_outside_torch(self.device) - self._vram_before)

    def close(self) -> None:
        self._graph = None
        if self._readers is not None:
            self._readers.shutdown(cancel_futures=True)
            self._readers = None


def _vram_outside_torch(device: torch.device) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)
