"""What was decided: every random choice of the project, as a pure function of (seed, epoch, sample index, view).

A stream (pipelines/stream.py) is opened for each (seed, epoch, view, sample), and each operation on the view has one of
its own besides, keyed by its name and occurrence: adding one moves no other's draws. No state, so batch size, workers,
processes, backend and restarts cannot change a view.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from saccade.pipelines.operations import Operation
from saccade.pipelines.stream import stream_key, streams, uniform
from saccade.pipelines.views import CentreCrop, Crop, View, Views

# Positions in a view's own stream; 1 to 10 are those of the operations that were there first (Operation.position).
# Append only: a changed position changes every published run.
_FLIP, _TOP, _LEFT, _SHARED = 0, 11, 12, 13
_AREA, _RATIO, _TRIES = 16, 26, 10  # one position for each of the ten tries of a crop


@dataclass(frozen=True)
class ViewParams:
    """The drawn parameters of one view for N samples: a struct of arrays, all on one device.

    Where an operation was not chosen, its columns hold the values that change nothing, so the parameters alone say what
    happened.
    """

    source: Tensor  # (N, 2) int64: height, width of the source image, pixels
    box: Tensor  # (N, 4) int64: top, left, height, width of the crop, source pixels
    flip: Tensor  # (N,) bool: mirrored left-right after the crop
    drawn: Mapping[str, Mapping[str, Tensor]]  # View.keyed's keys -> column -> (N, ...); "chosen", (N,) bool, in each

    def __len__(self) -> int:
        return self.flip.shape[0]

    def __repr__(self) -> str:
        return f"ViewParams({len(self)} of {', '.join(('box', 'flip', *self.drawn))})"

    def __getitem__(self, rows: Tensor | slice) -> ViewParams:
        return self._each(lambda column: column[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ViewParams:
        return self._each(lambda column: column.to(device, non_blocking=non_blocking))

    @staticmethod
    def cat(parts: Iterable[ViewParams]) -> ViewParams:
        parts = list(parts)
        drawn = {
            key: {name: torch.cat([p.drawn[key][name] for p in parts]) for name in columns}
            for key, columns in parts[0].drawn.items()
        }
        source, box, flip = (torch.cat([getattr(p, name) for p in parts]) for name in ("source", "box", "flip"))
        return ViewParams(source, box, flip, drawn)

    def chosen(self, key: str) -> Tensor:
        """(N,) bool: whether the operation of that key was applied; nowhere if the view has none."""
        return self.drawn[key]["chosen"] if key in self.drawn else torch.zeros_like(self.flip)

    def values(self, key: str, i: int) -> dict[str, Any]:
        """What was drawn for sample i, as plain numbers and lists."""
        return {name: column[i].tolist() for name, column in self.drawn[key].items()}

    def columns(self) -> dict[str, Tensor]:
        """Every array by its name, those of operations as "blur.sigma"."""
        own = {"source": self.source, "box": self.box, "flip": self.flip}
        return own | {f"{key}.{name}": c for key, columns in self.drawn.items() for name, c in columns.items()}

    def _each(self, change: Callable[[Tensor], Tensor]) -> ViewParams:
        drawn = {key: {name: change(column) for name, column in c.items()} for key, c in self.drawn.items()}
        return ViewParams(change(self.source), change(self.box), change(self.flip), drawn)


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
    for alike in _alike(recipe):
        whole = _draw_views(alike, seed, epoch, index, source, drawn.get(alike[0].parent or ""))
        for k, view in enumerate(alike):
            drawn[view.name] = whole[k * len(index) : (k + 1) * len(index)] if len(alike) > 1 else whole
    return {view.name: drawn[view.name] for view in recipe}


def _alike(recipe: Views) -> list[list[View]]:
    """Views that differ in their names only, which are drawn together: most of a small batch's cost is paid once."""
    groups: list[list[View]] = []
    for view in recipe:
        group = next((g for g in groups if replace(g[0], name=view.name) == view), None)
        groups.append([view]) if group is None else group.append(view)
    return groups


def _draw_views(
    alike: Sequence[View], seed: int, epoch: int, index: Tensor, source: Tensor, parent: ViewParams | None
) -> ViewParams:
    """Parameters of views that are drawn by one rule, one view's samples behind another's."""
    view, names = alike[0], [zlib.crc32(v.name.encode()) for v in alike]
    source = source.repeat(len(alike), 1) if len(alike) > 1 else source

    def opened(*parts: int) -> Tensor:
        return torch.cat([streams(index, stream_key(seed, epoch, name, *parts)) for name in names])

    stream = opened()
    u = uniform(stream[:, None], torch.arange(_SHARED, device=index.device))  # (N, 13) float64 in [0, 1)
    if parent is None:
        box = _draw_box(view.crop, stream, source, u[:, _TOP], u[:, _LEFT])
        flip = u[:, _FLIP] < view.flip
    else:
        box, flip = parent.box.repeat(len(alike), 1), parent.flip.repeat(len(alike))
    drawn, seen = {}, dict.fromkeys(view.keyed, 0)
    for key, operation in view.keyed.items():
        occurrence = seen[operation.name]
        seen[operation.name] += 1
        needed = 1 + operation.numbers
        if operation.position is not None and occurrence == 0:
            own = u[:, operation.position : operation.position + needed]
        else:
            apart = opened(zlib.crc32(operation.name.encode()), occurrence)
            own = uniform(apart[:, None], torch.arange(needed, device=index.device))
        drawn[key] = _draw_operation(operation, own)
    return ViewParams(source, box, flip, drawn)


def _draw_operation(operation: Operation, u: Tensor) -> dict[str, Tensor]:
    """u: (N, 1 + numbers); the first says whether it is chosen."""
    chosen = u[:, 0] < operation.p
    columns = operation.draw(u[:, 1:])
    for name, value in operation.identity.items():
        column = columns[name]
        columns[name] = torch.where(chosen.view(-1, *[1] * (column.ndim - 1)), column, value)
    return {"chosen": chosen, **columns}


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
