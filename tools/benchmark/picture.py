"""Pictures of measurements. One hue for one meaning, in every picture."""

from __future__ import annotations

import io
from pathlib import Path

from saccade.base.files import write_atomically
from saccade.tools.benchmark.rows import Row

COLOURS = {"baseline": "#9aa0a6", "loader": "#1f77b4", "model": "#e69f00", "train": "#009e73", "peer": "#c77cba"}
NAMES = {
    "baseline": "torchvision",
    "loader": "loader ceiling",
    "model": "model ceiling",
    "train": "end to end",
    "peer": "peer",
}


def new_axes(panels: int, height: float, width: float = 7.0):
    """A figure of `panels` axes, one above the other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(panels, 1, figsize=(width, height), squeeze=False, layout="constrained")
    for ax in axes[:, 0]:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[:, 0])


def save_figure(figure, path: Path) -> None:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda f: f.write(buffer.getvalue()))


def draw_bars(rows: list[Row], path: Path, title: str) -> None:
    """A panel for each data set and image size: images per second, the slowest and fastest round as a line."""
    panels: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.images_per_second:
            panels.setdefault((row.data, row.views_per_image, row.image_size), []).append(row)
    figure, axes = new_axes(len(panels), 1.1 + sum(0.45 + 0.3 * len(p) for p in panels.values()))
    figure.suptitle(title, fontsize=10)
    for ax, ((data, views, size), members) in zip(axes, panels.items(), strict=True):
        names = [
            f"{NAMES[r.kind]}: {r.executor if r.kind in ('baseline', 'loader', 'peer') else r.backbone}"
            + (f" + {r.backbone}" if r.kind == "baseline" and r.backbone else "")
            for r in members
        ]
        rates = [r.images_per_second for r in members]
        low = [r.images_per_second - r.views_per_second_low / r.views_per_image for r in members]
        high = [r.views_per_second_high / r.views_per_image - r.images_per_second for r in members]
        ax.barh(
            range(len(members)), rates, xerr=[low, high], color=[COLOURS[r.kind] for r in members], ecolor="#444444"
        )
        for i, (r, up) in enumerate(zip(members, high, strict=True)):
            ratio = f"  {r.times_baseline:.1f}x" if r.times_baseline and r.kind not in ("baseline", "peer") else ""
            ax.annotate(
                f"{r.images_per_second:,.0f}{ratio}",
                (r.images_per_second + up, i),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        ax.set_yticks(range(len(members)), names, fontsize=8)
        ax.invert_yaxis()
        ax.set_xlim(0, 1.25 * max(a + b for a, b in zip(rates, high, strict=True)))
        ax.set_title(f"{data}: {views} views, up to {size} px", fontsize=9, loc="left")
    axes[-1].set_xlabel("images per second (line: slowest to fastest round)", fontsize=9)
    save_figure(figure, path)
