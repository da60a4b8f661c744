"""README.md of an export, a model card: what the network is, on what and how it was trained, what it reached."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saccade import __version__
from saccade.base.machine import git_commit
from saccade.base.text import printable
from saccade.runs.record import published
from saccade.tools.exporting.network import Exported

LIBRARY = {"onnx": "onnx", "torchscript": "pytorch", "torchvision": "torchvision", "hf-folder": "timm", "timm": "timm"}
OWN_TRANSFORM = ("hf-folder", "timm")  # their libraries make the pixels, from config.json
PHOTOGRAPH = """import numpy as np
from PIL import Image, ImageOps

def pixels_of(photo):
    image = np.asarray(ImageOps.exif_transpose(Image.open(photo)).convert("RGB"), np.float32) / 255
    side = max(1, round(min(image.shape[:2]) * {fraction:g}))
    top, left = ((length - side) // 2 for length in image.shape[:2])
    square = image[top : top + side, left : left + side]
    bands = [Image.fromarray(np.ascontiguousarray(square[..., c])) for c in range(3)]
    return np.stack([np.asarray(band.resize(({size}, {size}), Image.Resampling.BILINEAR)) for band in bands])

pixels = pixels_of("photo.jpg")[None]"""
DEEP = (
    "Pictures of more than 8 bits a channel are spread over one range of values for a whole folder by saccade predict "
    "(`--value-range`); bring them to 8 bits in the same way first."
)
UNSAID = "Not stated by who exported it; ask before you use the weights for anything but a look"
IMAGES = "the images have terms of their own"


def card(model: Exported, to: str, usage: str, inside: str, checked: str, licence: str | None) -> str:
    """The whole page, with the front matter that the Hugging Face hub reads."""
    subject = model.subject
    task = "image-classification" if model.classifier else "image-feature-extraction"
    front = ["---", f"license: {licence or 'other'}", f"library_name: {LIBRARY[to]}", f"pipeline_tag: {task}"]
    front += ["tags: [saccade, self-supervised]", "---", ""]
    title = subject.folder.name if subject.folder else Path(subject.name).name
    facts = "\n".join(f"| {name} | {_cell(text)} |" for name, text in _facts(model, inside))
    numbers = "\n".join(f"| {_cell(what)} | {_cell(value)} |" for what, value in _numbers(subject.folder))
    parts = [
        "\n".join(front) + f"# {printable(title)}",
        f"| | |\n|---|---|\n{facts}",
        "## Numbers\n\n" + (f"| measured | |\n|---|---|\n{numbers}" if numbers else "None were measured."),
        *([_photograph(model)] if model.preprocessing()["channels"] == "RGB" and to not in OWN_TRANSFORM else []),
        f'## Use\n\n```python\nfolder = "."\n{usage}\n```',
        f"## Checked\n\n{checked}",
        f"## Licence\n\n{printable(licence or UNSAID)}. The training code, Saccade, is Apache-2.0; {IMAGES}.",
    ]
    return "\n\n".join(parts) + "\n"


def _photograph(model: Exported) -> str:
    """Code that shows a photo to the network as we do, by Pillow and numpy alone."""
    shown = model.preprocessing()
    code = PHOTOGRAPH.format(size=shown["image_size"], fraction=shown["crop_fraction"])
    shape = f"(1, 3, {shown['image_size']}, {shown['image_size']})"
    told = f"A photo as {shape} float32 of 0 to 1, as `saccade predict` shows it:"
    return f"## A photo\n\n{told}\n\n```python\n{code}\n```\n\n{DEEP}"


def _facts(model: Exported, inside: str) -> list[tuple[str, str]]:
    subject, shown = model.subject, model.preprocessing()
    size = sum(p.numel() for p in subject.backbone.parameters()) / 1e6
    rows = [
        ("network", f"timm's {model.spec.name}, stem {model.spec.stem}, {size:.2f} M parameters"),
        *_training(subject.folder),
        *(("weights", line) for line in subject.read if subject.folder is None),
        ("images", f"{shown['image_size']} x {shown['image_size']}, {shown['channels']}: {shown['resize']}"),
        ("resize", f"crop_fraction {shown['crop_fraction']:g}, {shown['interpolation']}"),
        ("pixels", f"{shown['pixels']}: mean {_numbered(shown['mean'])}, std {_numbered(shown['std'])}"),
        ("in the files", inside),
    ]
    if model.classifier:
        named = [f'"{name}"' if "," in name else name for name in model.classes]
        names = ", ".join(named[:30]) + (" ..." if len(named) > 30 else "")
        rows.append(("classes", f"{len(model.classes)}: {names}; the softmax of the logits is a calibrated confidence"))
    return [*rows, ("made by", f"Saccade {__version__}" + (f", commit {c}" if (c := git_commit()) else ""))]


def _training(folder: Path | None) -> list[tuple[str, str]]:
    """What a run folder says of its data, method and recipe."""
    if folder is None:
        return []
    rows = []
    if tuned := _read(folder / "finetuned.json"):
        rows.append(
            ("fine-tuned", f"on {tuned['labels']:,} labelled images of {published(str(tuned['data']))}, {tuned['how']}")
        )
        rows.append(("backbone", published(str(tuned["from"]))))
    record = _read(folder / "config.json")
    if recipe := record.get("recipe"):
        taken = record.get("account", {}).get("taken")
        images = f", {taken:,} images" if taken else ""
        rows.append(("data", f"{published(str(record['data']))}{images}; no label was used for the backbone"))
        rows.append(("method", f"{recipe['method']}"))
        if {"optimizer", "schedule", "epochs"} <= set(recipe):
            rate = f"{recipe['optimizer']['name']} at {recipe['optimizer']['lr']:g}, {recipe['schedule']['kind']}"
            length = f"{recipe['epochs']} epochs, {recipe['batch_size']} images a step"
            rows.append(("recipe", f"{recipe['data']}: {length}, {rate}; all of it in recipe.toml of the run"))
    return rows


def _numbers(folder: Path | None) -> list[tuple[str, str]]:
    """What was measured of it, each as a sentence and a number."""
    if folder is None:
        return []
    rows, summary = [], _read(folder / "summary.json")
    if summary.get("knn_top1") is not None:
        named = (("raw pixels", "raw_pixel_knn_top1"), ("untrained", "untrained_knn_top1"), ("trained", "knn_top1"))
        told = ", ".join(f"{name} {summary[key]:.1f} %" for name, key in named if summary.get(key) is not None)
        rows.append(("nearest neighbours at the end of training, top-1", told))
    if tuned := _read(folder / "finetuned.json"):
        low, high = tuned["interval"]
        rows.append((f"accuracy on {tuned['tested_on']}", f"{tuned['top1']:.1f} % (95 %: {low:.1f} to {high:.1f})"))
    for path in sorted((folder / "evaluations").glob("*.json")):
        found = _read(path)
        if "top1" in found:
            of = f"{found.get('protocol', path.stem)}, top-1 on {found.get('n_test', '?')} images"
            rows.append((of, f"{found['top1']:.1f} %"))
    return rows


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _numbered(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _cell(text: str) -> str:
    return printable(str(text)).replace("|", "\\|")
