"""The page itself: every name on it is a stranger's, and escaped; nothing is fetched."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from html import escape
from io import BytesIO
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from PIL import Image

from saccade.base.files import write_atomically
from saccade.base.text import printable
from saccade.evaluation.report.findings import THUMB, Findings
from saccade.evaluation.report.script import SCRIPT, STYLE

NAME = "report.html"
BATCH = (
    "<p>Features of a batch are those of its random views, as BatchNorm sees them while it trains, and not to be "
    "compared with those of the test images above, unaugmented, by BatchNorm's running statistics.</p>"
)
FEW = 2_500  # images on the map up to which their pictures are 32 pixels wide there, 20 above
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(folder: Path, found: Findings | None) -> Path:
    """Write report.html of the run in `folder`, and give its path; found: None where no images could be looked at."""
    target = folder / NAME
    write_atomically(target, lambda f: f.write(page(folder, found).encode()))
    return target


def page(folder: Path, found: Findings | None) -> str:
    """The HTML, of what lies in the run folder and of `found`."""
    config, summary, verdict = (_read(folder / f"{name}.json") for name in ("config", "summary", "verdict"))
    recipe = _table_of(config, "recipe")
    title = f"{recipe.get('method', 'a run')} on {Path(str(config.get('data', ''))).name or 'images'}"
    curves = _picture(folder / "curves.png", "loss, kNN and learning rate against the step")
    sections = [
        _section("Did it learn?", _verdict(verdict)),
        _section("Curves", curves and curves + BATCH),
        *(_of_images(found) if found else ()),
        _section(
            "Views it was trained on", _picture(folder / "views.png", "each image and its views, with what was drawn")
        ),
        _section("Recipe", _pre(_text(folder / "recipe.toml"))),
        _section("Machine, versions, commands", _machine(folder, config, summary, verdict)),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_safe(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head><body><h1>{_safe(title)}</h1>'
        f"{''.join(sections)}<script>{SCRIPT}</script></body></html>\n"
    )


def _of_images(found: Findings) -> list[str]:
    names = found.names
    whole = f"{len(names):,} of {found.total:,} images" if len(names) < found.total else f"all {found.total:,} images"
    strips = "".join(
        _strip(found, [(query, "query"), *((i, f"{cosine:.2f}") for i, cosine in nearest)])
        for query, nearest in found.nearest.items()
    )
    pairs = "".join(_strip(found, [(i, names[i]), (j, f"{alike:.2f}  {names[j]}")]) for i, j, alike in found.duplicates)
    odd = _strip(found, [(i, f"{near:.2f}  {names[i]}") for i, near in found.odd])
    wrong = _strip(
        found, [(w.image, f"{found.classes[w.image]}, called {w.said} ({w.share:.0%})") for w in found.wrong]
    )
    told = {
        "Map": f"{whole} by {found.axes}; near each other is what the backbone finds alike.",
        "Neighbours": "The nearest images of twelve, with their cosine.",
        "Near-duplicates": "Among the nearest five of each image, whose grey thumbnails correlate by 0.98 or more.",
        "Worst": "Those whose neighbours are of another class, the surest first.",
        "Odd": "Those farthest from their five nearest, with the mean cosine.",
    }
    pairs = f'<div class="pairs">{pairs}</div>' if pairs else "<p>There are none.</p>"
    inside = {"Map": _map(found), "Neighbours": strips, "Near-duplicates": pairs, "Worst": wrong, "Odd": odd}
    return [_section(name, f"<p>{_safe(told[name])}</p>{html}") for name, html in inside.items() if html]


def _map(found: Findings) -> str:
    side = 32 if len(found.names) <= FEW else 20
    columns = int(np.ceil(np.sqrt(len(found.names))))
    sheet = Image.new("RGB", (columns * side, -(-len(found.names) // columns) * side))
    for i, picture in enumerate(found.thumbnails):
        small = Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR)
        sheet.paste(small, (i % columns * side, i // columns * side))
    classes = sorted(set(found.classes) - {""})
    data = {
        "x": [round(float(x), 4) for x in found.places[:, 0]],
        "y": [round(float(y), 4) for y in found.places[:, 1]],
        "names": found.names,
        "classes": classes,
        "label": [classes.index(c) if c else -1 for c in found.classes],
        "cluster": found.clusters,
        "side": side,
        "columns": columns,
    }
    text = json.dumps(data).replace("<", "\\u003c").replace("&", "\\u0026")
    ways = [("label", "class")] if classes else []
    ways += [("cluster", "cluster (k-means)")] if found.clusters else []
    options = "".join(f'<option value="{value}">{name}</option>' for value, name in [*ways, ("none", "nothing")])
    return (
        f'<p><label>colour by <select id="colour">{options}</select></label> '
        '<label><input type="checkbox" id="pictures" checked> pictures</label> '
        '<button id="whole" type="button">whole map</button> wheel: zoom, drag: move</p>'
        '<div id="frame"><canvas id="map" role="img" aria-label="map of the images"></canvas><div id="tip"></div></div>'
        f'<div id="legend"></div><img id="sheet" alt="" hidden src="{_jpeg(sheet, 80)}">'
        f'<script type="application/json" id="data">{text}</script>'
    )


def _strip(found: Findings, pictures: Iterable[tuple[int, str]]) -> str:
    cells = "".join(
        f'<figure title="{_safe(found.names[i])}"><img alt="{_safe(found.names[i])}" width="{THUMB}" height="{THUMB}" '
        f'src="{_jpeg(Image.fromarray(found.thumbnails[i]))}"><figcaption>{_safe(words)}'
        f"{f'<br>{_safe(found.classes[i])}' if found.classes[i] else ''}</figcaption></figure>"
        for i, words in pictures
    )
    return f'<div class="strip">{cells}</div>' if cells else ""


def _verdict(verdict: Mapping[str, Any]) -> str:
    if "sentence" not in verdict:
        return "<p>No verdict was measured.</p>"
    sentence, learned = str(verdict["sentence"]), str(verdict.get("learned", ""))
    spread = _table_of(verdict, "spread")
    rows = "".join(
        f"<tr><td>{_safe(name)}</td><td>{_safe(value.get('effective_rank'))}</td>"
        f"<td>{_safe(value.get('feature_std'))}</td></tr>"
        for name, value in spread.items()
        if isinstance(value, dict)
    )
    table = (
        f"<table><tr><th>features of the test images</th><th>effective rank</th><th>std</th></tr>{rows}</table>"
        if rows
        else ""
    )
    test = f"<p>{_safe(verdict['test'])}</p>" if verdict.get("test") else ""
    return f'<p class="verdict">{_safe(learned)}</p><p>{_safe(sentence.removeprefix(learned).strip())}</p>{test}{table}'


def _machine(folder: Path, config: Mapping[str, Any], summary: Mapping[str, Any], verdict: Mapping[str, Any]) -> str:
    rows = {
        "trained by": verdict.get("command") or f"saccade train --recipe {quote(str(folder / 'recipe.toml'))}",
        "this page by": f"saccade report {quote(str(folder))}",
        "evaluate by": f"saccade eval {quote(str(folder))} --protocol linear",
        **{name: summary.get(name) for name in ("steps", "epochs", "seconds", "images_per_second", "bad_images")},
        "hardware": summary.get("hardware"),
        "versions": summary.get("versions") or config.get("versions"),
        "commit": summary.get("commit"),
    }
    known = {name: _words(value) for name, value in rows.items() if value is not None}
    lines = "".join(f"<tr><td>{_safe(name)}</td><td>{_safe(words)}</td></tr>" for name, words in known.items())
    return f"<table>{lines}</table>"


def _table_of(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def _words(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>" if inside else ""


def _pre(text: str) -> str:
    return f"<pre>{escape(text)}</pre>" if text else ""


def _picture(path: Path, words: str) -> str:
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return ""
    return f'<img class="wide" alt="{escape(words)}" src="data:image/png;base64,{data}">'


def _jpeg(image: Image.Image, quality: int = 85) -> str:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _safe(text: Any) -> str:
    return escape(printable(str(text)))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}
