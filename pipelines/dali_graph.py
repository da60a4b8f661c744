"""The DALI graph: encoded bytes in, one decode of each image, and either the decoded images or the cut views out."""

# DALI fills its `types` with the enums of its C++ library on import, where no checker sees them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline as Dali
from torch import Tensor

from saccade.pipelines.draw import ViewParams
from saccade.pipelines.render import Photos
from saccade.pipelines.views import View, Views

DEPTH = 2  # batches in flight: one being decoded while the one before is rendered
_FILTERS = {"bilinear": types.INTERP_TRIANGULAR, "bicubic": types.INTERP_CUBIC}


class Graph:
    """What DALI does, the same on CPU and GPU. It draws nothing and shuffles nothing.

    cuts: True makes it cut and resize the views from their boxes; False leaves that to the renderer and hands out the
    decoded images. Feed up to DEPTH batches, then take one result for each batch fed.
    """

    def __init__(self, recipe: Views, device: torch.device, batch_size: int, threads: int, cuts: bool) -> None:
        self.device, self.cuts = device, cuts
        self.views = [view for view in recipe if view.parent is None] if cuts else []
        self._dali = Dali(
            batch_size=batch_size,
            num_threads=threads,
            prefetch_queue_depth=DEPTH,
            device_id=None if device.type == "cpu" else device.index or 0,
        )
        with self._dali:
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
            # Fancy upsampling is what PIL does with subsampled colour; DALI's default repeats pixels.
            image = fn.decoders.image(
                encoded,
                device="cpu" if device.type == "cpu" else "mixed",
                output_type=types.RGB,
                jpeg_fancy_upsampling=True,
            )
            self._dali.set_outputs(
                *(self._cut(image, i, view) for i, view in enumerate(self.views)) if cuts else (image,)
            )
        self._dali.build()
        self._prime()

    @staticmethod
    def _cut(image, i: int, view: View):
        """The crop as an image of its own, then resized: a filter must not reach beyond the box (PIL crops first)."""
        start, end = (fn.external_source(name=f"{name}{i}", dtype=types.INT32, ndim=1) for name in ("start", "end"))
        first, last = (fn.external_source(name=f"{name}{i}", dtype=types.FLOAT, ndim=1) for name in ("first", "last"))
        crop = fn.slice(image, start=start, end=end, axes=(0, 1))
        return fn.resize(
            crop,
            size=[view.size, view.size],
            roi_start=first,
            roi_end=last,
            antialias=True,
            interp_type=_FILTERS[view.crop.interpolation],
            dtype=types.UINT8,
        )

    def _prime(self) -> None:
        """DALI's first run starts DEPTH iterations at once: let it have them on one black pixel."""
        black = pixels_as_file(np.zeros((1, 1, 3), np.uint8))
        box = torch.tensor([[0, 0, 1, 1]]), torch.tensor([False])
        for _ in range(DEPTH):
            self._feed_inputs([black], [box] * len(self.views))
        self._dali.schedule_run()
        for _ in range(DEPTH):
            self._take()

    def feed(self, files: Sequence[np.ndarray], params: dict[str, ViewParams]) -> None:
        """Start decoding. The arrays must stay alive until the result is taken."""
        self._feed_inputs(files, [(params[view.name].box, params[view.name].flip) for view in self.views])
        self._dali.schedule_run()

    def _feed_inputs(self, files: Sequence[np.ndarray], crops: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._dali.feed_input("encoded", list(files))
        for i, (box, flip) in enumerate(crops):
            start, size = box[:, :2], box[:, 2:]
            first, last = torch.zeros_like(size), size.clone()
            first[:, 1] = torch.where(flip, size[:, 1], 0)  # a region whose end lies left of its start is mirrored
            last[:, 1] = torch.where(flip, 0, size[:, 1])
            for name, value, dtype in (
                ("start", start, torch.int32),
                ("end", start + size, torch.int32),
                ("first", first, torch.float32),
                ("last", last, torch.float32),
            ):
                self._dali.feed_input(f"{name}{i}", value.to(dtype).contiguous().numpy())

    def _take(self) -> tuple:
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        out = self._dali.share_outputs(cuda_stream=stream)  # the stream waits for DALI, DALI not for the stream
        self._dali.release_outputs()  # DALI's memory is counted: it stays as long as we hold the outputs
        return out

    def result(self) -> Photos | dict[str, Tensor]:
        """The oldest batch fed: decoded images, or name -> (N, S, S, 3) uint8 of every view with a crop of its own.

        Both lie in DALI's memory and are not copied: on a GPU, hold them, and the files, until they have been read
        (pipelines.prefetch.UntilRead), not only until the kernels that read them are queued. Raises RuntimeError if an
        image could not be decoded.
        """
        out = self._take()
        if self.cuts:
            return {
                view.name: torch.from_dlpack(images.as_tensor()) for view, images in zip(self.views, out, strict=True)
            }
        return DaliPhotos.of(out[0])

    def drain(self, batches: int) -> None:
        """Wait for batches that nobody wants any more."""
        for _ in range(batches):
            self._take()
        if self.device.type == "cuda":  # the files they were made of are let go next
            torch.cuda.current_stream(self.device).synchronize()


class DaliPhotos(Photos):
    """Photos in DALI's memory, which lives as long as this does."""

    @staticmethod
    def of(images) -> DaliPhotos:
        """Every image has an allocation of its own; the buffer spans them all; only their pixels are ever touched."""
        tensors = [images[i] for i in range(len(images))]
        size = torch.tensor([t.shape()[:2] for t in tensors])
        address = np.array([t.data_ptr() for t in tensors], dtype=np.int64)
        base = int(address.min())
        span = int((address + 3 * size.prod(1).numpy()).max()) - base
        buffer = _Memory(base, span, tensors)
        return DaliPhotos(torch.from_numpy(np.asarray(buffer)), torch.from_numpy(address - base), size)


class _Memory:
    """An address range as numpy's array interface; numpy keeps this object, and so the owners, alive."""

    def __init__(self, address: int, span: int, owners: list) -> None:
        self.owners = owners
        self.__array_interface__ = {"data": (address, False), "shape": (span,), "typestr": "|u1", "version": 3}


def pixels_as_file(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 as a PPM file: a header before the pixels, so that decoded images take the same way as JPEGs."""
    header = np.frombuffer(b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]), np.uint8)
    return np.concatenate([header, pixels.reshape(-1)])
