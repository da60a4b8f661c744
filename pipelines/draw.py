"""What was decided: every random choice of the project, as a pure function of (seed, epoch, sample index, view).

A SplitMix64 stream (Steele, Lea and Flood, OOPSLA 2014) is opened for each (seed, epoch, view, sample) and every choice
has a fixed position in it. No state, so batch size, workers, processes, backend and restarts cannot change a view.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import permutations

import torch
from torch import Tensor

from saccade.pipelines.views import CentreCrop, Crop, View, Views

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
# Position of each choice in a sample's stream. Append only: a changed position changes every published run.
_FLIP, _JITTER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _ORDER, _GREY, _BLUR, _SIGMA, _SOLARISE, _TOP, _LEFT = range(
    13
)
_AREA, _RATIO, _TRIES = 16, 26, 10  # one position for each of the ten tries of a crop
_ORDERS = torch.tensor(list(permutations(range(4))), dtype=torch.uint8)  # 24 x 4
JITTER_OPERATIONS = ("brightness", "contrast", "saturation", "hue")  # what a jitter_order entry stands for


@dataclass(frozen=True)
class ViewParams:
    """The drawn parameters of one view for N samples: a struct of arrays, all on one device.

    A choice that was not taken holds its identity value, so the parameters alone say what happened.
    """

    source: Tensor  # (N, 2) int64: height, width of the source image, pixels
    box: Tensor  # (N, 4) int64: top, left, height, width of the crop, source pixels
    flip: Tensor  # (N,) bool: mirrored left-right after the crop
    brightness: Tensor  # (N,) float32 factor, 1 = unchanged
    contrast: Tensor  # (N,) float32 factor, 1 = unchanged
    saturation: Tensor  # (N,) float32 factor, 1 = unchanged
    hue: Tensor  # (N,) float32 shift, fraction of the colour circle, 0 = unchanged
    jitter_order: Tensor  # (N, 4) uint8: indices into JITTER_OPERATIONS, first applied first
    grey: Tensor  # (N,) bool: luminance in all three channels
    sigma: Tensor  # (N,) float32: Gaussian blur in pixels of the view, 0 = no blur
    solarise: Tensor  # (N,) bool: x -> 1 - x where x >= 0.5

    def __len__(self) -> int:
        return self.flip.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> ViewParams:
        return ViewParams(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ViewParams:
        return ViewParams(**{f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)})

    @staticmethod
    def cat(parts: Iterable[ViewParams]) -> ViewParams:
        parts = list(parts)
        return ViewParams(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(ViewParams)})

    @property
    def jittered(self) -> Tensor:
        """(N,) bool: any of the four colour factors differs from its identity."""
        return (self.brightness != 1) | (self.contrast != 1) | (self.saturation != 1) | (self.hue != 0)


def draw(recipe: Views, seed: int, epoch: int, index: Tensor, source: Tensor) -> dict[str, ViewParams]:
    """Parameters of every view of `recipe` for samples `index`.

    index: (N,) int64 sample numbers; source: (N, 2) int64 heights and widths in pixels, on the same device.
    Pure: the same (seed, epoch, index, source size, view name) gives the same parameters, in any batch, anywhere.

    Examples:
        >>> views = Views((View("weak", 32),))
        >>> size = torch.tensor([[48, 64]] * 3)  # height, width of each source image
        >>> drawn = draw(views, seed=0, epoch=0, index=torch.tensor([7, 8, 9]), source=size)["weak"]
        >>> drawn.box.tolist(), drawn.flip.tolist()  # top, left, height, width of the crop
        ([[1, 11, 47, 45], [17, 16, 18, 18], [2, 13, 46, 50]], [False, False, True])
        >>> again = draw(views, seed=0, epoch=0, index=torch.tensor([9]), source=size[:1])["weak"]
        >>> bool((again.box == drawn.box[2:]).all())
        True
    """
    drawn: dict[str, ViewParams] = {}
    for view in recipe:
        drawn[view.name] = _draw_view(view, seed, epoch, index, source, drawn.get(view.parent))
    return drawn


def _draw_view(
    view: View, seed: int, epoch: int, index: Tensor, source: Tensor, parent: ViewParams | None
) -> ViewParams:
    stream = mix64(index * _signed(_GOLDEN) + _signed(stream_key(seed, epoch, zlib.crc32(view.name.encode()))))
    u = uniform(stream[:, None], torch.arange(_LEFT + 1, device=index.device))  # (N, 13) float64 in [0, 1)
    ones = torch.ones(len(index), device=index.device)
    if parent is None:
        box = _draw_box(view.crop, stream, source, u[:, _TOP], u[:, _LEFT])
        flip = u[:, _FLIP] < view.flip
    else:
        box, flip = parent.box, parent.flip
    jitter = view.jitter
    jittered = u[:, _JITTER] < (jitter.p if jitter else 0.0)

    def factor(position: int, amount: float) -> Tensor:  # uniform in [max(0, 1 - amount), 1 + amount]
        low = max(0.0, 1.0 - amount)
        return torch.where(jittered, (low + (1.0 + amount - low) * u[:, position]).float(), ones)

    blurred = u[:, _BLUR] < (view.blur.p if view.blur else 0.0)
    low, high = view.blur.sigma if view.blur else (0.0, 0.0)
    order = _ORDERS.to(index.device)[(u[:, _ORDER] * 24).long()]
    return ViewParams(
        source=source,
        box=box,
        flip=flip,
        brightness=factor(_BRIGHTNESS, jitter.brightness if jitter else 0.0),
        contrast=factor(_CONTRAST, jitter.contrast if jitter else 0.0),
        saturation=factor(_SATURATION, jitter.saturation if jitter else 0.0),
        hue=torch.where(jittered, ((2 * u[:, _HUE] - 1) * (jitter.hue if jitter else 0.0)).float(), 0 * ones),
        jitter_order=order,
        grey=u[:, _GREY] < view.grey,
        sigma=torch.where(blurred, (low + (high - low) * u[:, _SIGMA]).float(), 0 * ones),
        solarise=u[:, _SOLARISE] < view.solarise,
    )


def _draw_box(crop: Crop | CentreCrop, stream: Tensor, source: Tensor, u_top: Tensor, u_left: Tensor) -> Tensor:
    """(N, 4) int64 top, left, height, width. torchvision's RandomResizedCrop.get_params, vectorised in float64."""
    if isinstance(crop, CentreCrop):
        side = (source.min(dim=1).values * crop.fraction).round().long().clamp(min=1)
        return torch.stack([(source[:, 0] - side) // 2, (source[:, 1] - side) // 2, side, side], dim=1)
    height, width = _fallback_box(crop, source)
    top, left = (source[:, 0] - height) // 2, (source[:, 1] - width) // 2
    pending = torch.arange(len(stream), device=stream.device)
    log_ratio = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    for attempt in range(_TRIES):
        rows, size = stream[pending], source[pending].double()
        area = size.prod(1) * (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * uniform(rows, _AREA + attempt))
        ratio = torch.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * uniform(rows, _RATIO + attempt))
        w, h = torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()
        fits = (h > 0) & (h <= size[:, 0]) & (w > 0) & (w <= size[:, 1])
        done, h, w, size = pending[fits], h[fits], w[fits], size[fits]
        height[done], width[done] = h.long(), w.long()
        top[done] = (u_top[done] * (size[:, 0] - h + 1)).long()
        left[done] = (u_left[done] * (size[:, 1] - w + 1)).long()
        pending = pending[~fits]
        if len(pending) == 0:
            break
    return torch.stack([top, left, height, width], dim=1)


def _fallback_box(crop: Crop, source: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width torchvision falls back to after ten tries: the largest box whose ratio is allowed."""
    height, width = source[:, 0], source[:, 1]
    ratio = width.double() / height.double()
    thin, wide = ratio < crop.ratio[0], ratio > crop.ratio[1]
    return (
        torch.where(thin, (width.double() / crop.ratio[0]).round().long(), height).clamp(min=1),
        torch.where(wide, (height.double() * crop.ratio[1]).round().long(), width).clamp(min=1),
    )


def stream_key(*parts: int) -> int:
    """A 64-bit key that depends on every part and on their order; negative and large integers are welcome."""
    key = 0
    for part in parts:
        key = _mix_int((key + part * _GOLDEN + 1) & _MASK)
    return key


def uniform(stream: Tensor, position: Tensor | int) -> Tensor:
    """Position-th number of a stream, float64 in [0, 1) with 53 bits. Broadcasts stream against position."""
    offset = _signed((position + 1) * _GOLDEN) if isinstance(position, int) else (position + 1) * _signed(_GOLDEN)
    bits = mix64(stream + offset)
    return ((bits >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def mix64(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 tensors (two's complement stands for the unsigned 64 bits)."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _mix_int(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    """The int64 with the low 64 bits of x."""
    x &= _MASK
    return x - (1 << 64) if x >> 63 else x
