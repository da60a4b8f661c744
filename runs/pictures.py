"""Pictures of a run: the views it trains on, with the parameters that made them, and its curves."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from saccade.base.files import write_atomically
from saccade.base.letters import drawable
from saccade.pipelines.draw import ViewParams, draw
from saccade.pipelines.order import Order
from saccade.pipelines.reference import render_one
from saccade.pipelines.sources import Source
from saccade.pipelines.views import View, Views

NO_LOSSES = (  # of a line of metrics
    *("step", "epoch", "lr", "grad_norm", "images_per_second", "data_wait", "momentum"),
    *("feature_std", "feature_rank", "memory_gb", "time"),
)
_CELL, _LINE, _GAP, _LEFT, _LETTERS = 168, 13, 10, 8, 28


def describe(view: View, params: ViewParams, i: int) -> list[str]:
    """What was drawn for sample i, in a few short lines."""
    top, left, height, width = params.box[i].tolist()
    lines = [f"crop {width}x{height} at {left},{top}" + ("  flip" if params.flip[i] else "")]
    captions = [o.caption(params.values(key, i)) for key, o in view.keyed.items() if params.drawn[key]["chosen"][i]]
    for word in (piece for caption in captions for piece in wrap(caption, _LETTERS)):  # RandAugment names up to eight
        if len(lines) > 1 and len(lines[-1]) + 2 + len(word) <= _LETTERS:
            lines[-1] += f", {word}"
        else:
            lines.append(word)
    return lines


def view_grid(source: Source, recipe: Views, seed: int = 0, epoch: int = 0, rows: int = 4) -> Image.Image:
    """One row per image, the image first, then one column per view, the drawn parameters under each."""
    numbers = (
        Order(len(source), 1, seed).at(epoch, torch.arange(min(rows, len(source)))).tolist()
    )  # the first ones of that epoch
    pixels = [torch.tensor(source.read_or_replace(i)[0]).permute(2, 0, 1) for i in numbers]
    params = draw(recipe, seed, epoch, torch.tensor(numbers), torch.tensor([p.shape[1:] for p in pixels]))
    width = _LEFT + (len(recipe.views) + 1) * (_CELL + _GAP)
    described = {v.name: [describe(v, params[v.name], row) for row in range(len(numbers))] for v in recipe}
    lines = max(3, *(len(words) for column in described.values() for words in column))
    row_height = _CELL + lines * _LINE + _GAP
    grid = Image.new("RGB", (width, 22 + len(numbers) * row_height), "white")
    pen = ImageDraw.Draw(grid)
    plain = Views(recipe.views, (0.0,) * source.channels, (1.0,) * source.channels)  # shown without normalisation
    for column, name in enumerate(("image", *recipe.names)):
        write(pen, (_LEFT + column * (_CELL + _GAP), 4), name, 11)
    for row, (number, image) in enumerate(zip(numbers, pixels, strict=True)):
        y = 22 + row * row_height
        cells = [(_to_image(image), [source.name_of(number)[-26:], f"{image.shape[2]}x{image.shape[1]}"])]
        for view in recipe:
            rendered = render_one(image, view, params[view.name][row : row + 1], plain)
            cells.append((_to_image((rendered * 255).round().to(torch.uint8)), described[view.name][row]))
        for column, (cell, lines) in enumerate(cells):
            x = _LEFT + column * (_CELL + _GAP)
            scale = _CELL / max(cell.size)
            filter_ = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
            cell = cell.resize((max(1, round(cell.width * scale)), max(1, round(cell.height * scale))), filter_)
            grid.paste(cell, (x, y))
            for i, line in enumerate(lines):
                write(pen, (x, y + _CELL + 2 + i * _LINE), line, 11)
    return grid


def _to_image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(shown(pixels.permute(1, 2, 0).numpy()))


def shown(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) of (H, W, C): the first three channels, or one as grey."""
    return (
        pixels
        if pixels.shape[2] == 3
        else np.ascontiguousarray(pixels[..., [0, 1, 2] if pixels.shape[2] > 2 else [0] * 3])
    )


def write(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, fill: Any = "black") -> None:
    """The text in Pillow's own font, or where that lacks its letters in another, a little smaller."""
    if text.isascii():
        return pen.text(place, text, fill=fill, font=_plain(size))
    text, file = drawable(text)
    pen.text(place, text, fill=fill, font=_font(file, size - 1))


@cache
def _plain(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


@cache
def _font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(file), size)


def thumbnail(pixels: np.ndarray, side: int) -> Image.Image:
    """The whole picture of (H, W, C) uint8, its longer side so many pixels."""
    image = Image.fromarray(shown(pixels))
    scale = side / max(image.size)
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, how, reducing_gap=3.0)


def save_png(image: Image.Image, path: Path) -> None:
    """Write `path` whole or not at all."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    write_atomically(path, lambda f: f.write(buffer.getvalue()))


def plot_curves(records: list[dict[str, Any]], path: Path, baselines: dict[str, float], title: str = "") -> None:
    """Loss, learning rate, the features' spread and kNN top-1 against the step, of what there is; `baselines`: dashed
    lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    logged = [r for r in records if "loss" in r]
    scored = [r for r in records if "knn_top1" in r]
    watched = [r for r in logged if "feature_rank" in r]
    panels: list[Callable[[Any], None]] = [partial(_losses, logged)] if logged else []
    panels += [partial(_knn, scored, baselines)] if scored else []
    panels += [partial(_rate, logged)] if logged else []
    panels += [partial(_spread, watched)] if watched else []
    size = (4.3 * max(2, len(panels)), 3.8)
    figure, axes = plt.subplots(1, max(1, len(panels)), figsize=size, layout="constrained", squeeze=False)
    for draw_panel, panel in zip(panels, axes[0], strict=False):
        draw_panel(panel)
        panel.set_xlabel("step")
    if not panels:
        axes[0][0].set_axis_off()
        axes[0][0].text(0.5, 0.5, "no step was logged", ha="center")
    figure.suptitle(title, fontsize=11)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    write_atomically(path, lambda f: f.write(buffer.getvalue()))


def _losses(logged: list[dict[str, Any]], panel: Any) -> None:
    last = logged[-1].items()
    for name in [k for k, v in last if k not in NO_LOSSES and not k.endswith("top1") and isinstance(v, float)]:
        panel.plot([r["step"] for r in logged], [r.get(name) for r in logged], label=name, linewidth=1.2)
    panel.set_title("loss")
    panel.legend(fontsize=8)


def _knn(scored: list[dict[str, Any]], baselines: dict[str, float], panel: Any) -> None:
    """With the 95 % interval over the test images as a band."""
    panel.plot([r["step"] for r in scored], [r["knn_top1"] for r in scored], marker="o", ms=4, label="trained")
    sure = [r for r in scored if "knn_low" in r and "knn_high" in r]
    if sure:
        low, high = ([r[name] for r in sure] for name in ("knn_low", "knn_high"))
        panel.fill_between([r["step"] for r in sure], low, high, alpha=0.2, linewidth=0, label="95 % interval")
    for (name, value), style in zip(baselines.items(), (":", "--", "-."), strict=False):
        panel.axhline(value, linestyle=style, color="grey", label=name)
    panel.set_title("kNN top-1 (%)")
    panel.legend(fontsize=8)


def _rate(logged: list[dict[str, Any]], panel: Any) -> None:
    panel.plot([r["step"] for r in logged], [r["lr"] for r in logged])
    panel.set_title("learning rate")


def _spread(watched: list[dict[str, Any]], panel: Any) -> None:
    """Dashed: the first step's, before anything was learned."""
    steps, std = [r["step"] for r in watched], panel.twinx()
    sides = ((panel, "feature_rank", "effective rank", "C0"), (std, "feature_std", "std (right)", "C1"))
    for side, name, label, color in sides:
        side.plot(steps, [r[name] for r in watched], color=color, label=label)
        if steps[0] == 1:
            side.axhline(watched[0][name], color=color, linestyle="--", linewidth=1, label=f"{label}, untrained")
        side.set_ylim(0, 1.1 * max(r[name] for r in watched) or 1)
    panel.set_title("features of a training batch")
    std.legend(handles=[*panel.lines, *std.lines], fontsize=8, loc="lower right")  # above both sides' lines
