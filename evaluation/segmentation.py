"""A linear segmentation probe: one linear layer on the frozen features of every patch, its scores made as large as the
mask bilinearly. Source: DINOv2's linear evaluation (Oquab et al. 2023, arXiv 2304.07193); the numbers are ours."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.evaluation.evaluate import Settings
from saccade.evaluation.feature_file import FeatureFile
from saccade.evaluation.features import extract
from saccade.evaluation.kept import Kept, key_of
from saccade.evaluation.linear import Preparation, Probe, linear_head, train_probe
from saccade.evaluation.subject import Subject
from saccade.pipelines.order import Order
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.masks import IGNORED, Masks, resized, shown_square

PROBE = Probe(50, 16, 0.01, optimizer="adam", prepare="standardise")
DRAWS = 1000  # of the test images, with replacement, for an interval
SCORES = 2**26  # made at a time when they are enlarged


class Counts(NamedTuple):
    """Of each test image and class, (N, C) int64: pixels that are right, that are said to be of it, that are of it."""

    right: np.ndarray
    said: np.ndarray
    true: np.ndarray


class RawPatches(nn.Module):
    """(N, C, S, S) -> (N, h, w, C c c): the pixels of each patch, averaged to c x c, at most 8 x 8."""

    def __init__(self, grid: tuple[int, int], image_size: int) -> None:
        super().__init__()
        self.grid, self.cell = grid, max(1, min(8, image_size // max(grid)))

    def forward(self, images: Tensor) -> Tensor:
        small = F.adaptive_avg_pool2d(images, (self.grid[0] * self.cell, self.grid[1] * self.cell))
        return F.pixel_unshuffle(small, self.cell).permute(0, 2, 3, 1)


class PatchClassifier(nn.Module):
    """(N, h, w, D) -> class scores (N, C, S, S): a 1x1 convolution, enlarged bilinearly."""

    def __init__(self, layer: nn.Linear, size: int) -> None:
        super().__init__()
        self.layer, self.size = layer, size

    def forward(self, patches: Tensor) -> Tensor:
        return F.interpolate(self.small(patches), size=(self.size, self.size), mode="bilinear")

    def small(self, patches: Tensor) -> Tensor:
        """(N, C, h, w)"""
        return self.layer(patches).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Labelled:
    """Images whose masks were checked: rows, the numbers of those that are taken; masks (rows, S, S) uint8, mapped and
    as large as the backbone's images; classes: the highest of theirs + 1; key: of all masks' content."""

    source: Source
    of: Masks
    rows: np.ndarray
    masks: np.ndarray
    classes: int
    key: str


def labelled(masks: Masks, size: int, classes: int | None, flag: str) -> Labelled:
    """Read every mask once. UserError for the first that is wrong; an image whose mask is all ignored is left out."""
    source, rows, highest, told = masks.source, [], 0, hashlib.sha256()
    with tempfile.TemporaryFile() as file:
        for i, mask in masks.checked(classes, flag):
            small = resized(shown_square(mask), size)
            if (small != IGNORED).any():
                rows.append(i)
                file.write(small.tobytes())
                told.update(mask.tobytes())
                highest = max(highest, int(mask[mask != IGNORED].max()))
        if not rows:
            raise UserError(f"{source.name}: its masks hold no class in the images' centre squares, only {IGNORED}.")
        file.flush()
        kept = np.memmap(file, np.uint8, "r", shape=(len(rows), size, size))  # stays while it is mapped
    return Labelled(source, masks, np.array(rows), kept, highest + 1, told.hexdigest())


def patches_of(backbone: nn.Module, shape: tuple[int, ...], subject: Subject, data: Labelled, s: Settings) -> Tensor:
    """(rows, h w D) float16, mapped, of the images' centre squares."""
    shown = (subject.image_size, subject.mean, subject.std, 1.0)
    chosen = data.source.subset(data.rows, data.source.name)
    key = key_of(backbone, (chosen,), "patches", backbone, shape, *shown, s.precision)
    machine = (s.device, s.batch_size, s.precision, s.executor, s.workers)
    kept = FeatureFile(key, len(chosen), ranks=s.ranks)
    whole = backbone.to(s.device)
    found = extract(whole, chosen, *shown, *machine, progress=s.progress, kept=kept, ranks=s.ranks).features
    data.source.known_bad.update(chosen.known_bad)
    return found


def readable(data: Labelled) -> np.ndarray:
    """Which rows of its own are of images that could be read: another's pixels stood in for the rest."""
    return np.array([k for k, i in enumerate(data.rows) if data.source.name_of(int(i)) not in data.source.known_bad])


def probed(
    backbone: nn.Module,
    shape: tuple[int, int, int],
    subject: Subject,
    train: Labelled,
    test: Labelled,
    classes: int,
    probe: Probe,
    s: Settings,
) -> tuple[Counts, float]:
    """What one linear layer on the patches (h, w, D) of `backbone` makes of the test images, and its training loss."""
    found = patches_of(backbone, shape, subject, train, s)
    taken = readable(train)
    prepare = Preparation(probe.prepare, found[torch.from_numpy(taken)].view(-1, shape[2]), s.device)
    head = PatchClassifier(linear_head(probe, (shape[2], classes), s.seed), subject.image_size).to(s.device)
    order = Order(len(taken), min(probe.batch_size, len(taken)), s.seed, drop_last=False)

    def batches(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in order.batches(number):
            rows = taken[batch.numpy()]
            mask = torch.from_numpy(train.masks[rows]).to(s.device).long()
            yield found[torch.from_numpy(rows)].to(s.device).float().view(-1, *shape), mask.where(mask != IGNORED, -100)

    key = key_of(
        backbone, (train.source,), "segment", backbone, shape, train.key, probe, s.seed, s.precision, len(taken)
    )
    trained = train_probe(probe, head, batches, order.steps(), None, s.device, prepare, s.progress, Kept(key, s.ranks))
    return counted(
        head, prepare, patches_of(backbone, shape, subject, test, s), shape, test, classes, s
    ), trained.losses[-1]


def counted(
    head: PatchClassifier,
    prepare: Preparation,
    found: Tensor,
    shape: tuple[int, int, int],
    test: Labelled,
    classes: int,
    s: Settings,
) -> Counts:
    """Over all pixels of each test image's centre square, at the size of its own mask."""
    each = []
    for k in readable(test):
        mask = shown_square(test.of.read(int(test.rows[k])))
        with torch.no_grad():
            scores = head.small(prepare(found[int(k)].to(s.device).float().view(1, *shape)))
        each.append(compared(largest(scores, mask.shape).cpu().numpy(), mask, classes))
    return Counts(*(np.stack(part) for part in zip(*each, strict=True)))


def largest(scores: Tensor, size: tuple[int, ...]) -> Tensor:
    """(H, W) the class of the highest of (1, C, h, w) scores, enlarged bilinearly, a few classes at a time."""
    best = scores.new_full(size, -torch.inf)
    found = torch.zeros(size, dtype=torch.long, device=scores.device)
    first = 0
    for part in scores.split(max(1, SCORES // (size[0] * size[1])), dim=1):
        value, place = F.interpolate(part, size=size, mode="bilinear")[0].max(0)
        better = value > best
        best, found = torch.where(better, value, best), torch.where(better, place + first, found)
        first += part.shape[1]
    return found


def compared(said: np.ndarray, mask: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of one image, (C,) each, over the pixels that are not ignored."""
    counts = mask != IGNORED
    said, true = said[counts], mask[counts]
    of = (true[said == true], said, true)
    right, told, there = (np.bincount(values, minlength=classes) for values in of)
    return right, told, there


def iou(counts: Counts) -> np.ndarray:
    """(C,) intersection over union of all images together, in percent; NaN of a class that is nowhere."""
    return _iou(*(part.sum(0) for part in counts))


def _iou(right: np.ndarray, said: np.ndarray, true: np.ndarray) -> np.ndarray:
    union = said + true - right
    return 100 * np.divide(right, union, out=np.full(union.shape, np.nan), where=union > 0)


def summary(counts: Counts, seed: int = 0) -> dict[str, Any]:
    """Mean IoU, over the classes that are somewhere, and pixel accuracy, in percent, each with its 95 % interval: the
    percentiles over DRAWS of as many images, with replacement."""
    right, _, true = (part.sum(0) for part in counts)
    images = len(counts.true)
    times = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), DRAWS).astype(float)
    drawn = [times @ part for part in counts]
    found = {"miou": np.nanmean(_iou(*drawn), axis=1), "pixel_accuracy": 100 * drawn[0].sum(1) / drawn[2].sum(1)}
    value = {"miou": np.nanmean(iou(counts)), "pixel_accuracy": 100 * right.sum() / true.sum()}
    return {
        name: {
            "value": round(float(value[name]), 2),
            "interval": np.percentile(found[name], (2.5, 97.5)).round(2).tolist(),
        }
        for name in value
    }


def commonest(train: Labelled, test: Labelled, classes: int) -> Counts:
    """Of saying everywhere what most of the training pixels are."""
    total = np.bincount(train.masks.reshape(-1), minlength=256)[:classes]
    most, each = int(np.argmax(total)), []
    for k in readable(test):
        mask = shown_square(test.of.read(int(test.rows[k])))
        each.append(compared(np.full(mask.shape, most), mask, classes))
    return Counts(*(np.stack(part) for part in zip(*each, strict=True)))


def probe_for(s: Settings, images: int) -> tuple[Probe, list[str]]:
    """As the command line has it, and what departs from ours."""
    probe = PROBE.with_epochs(s.epochs) if s.epochs else PROBE
    probe = replace(probe, lr=s.lr) if s.lr is not None else probe
    said = [f"{name} = {getattr(s, name)}" for name in ("epochs", "lr") if getattr(s, name) is not None]
    if images < probe.batch_size:
        said.append(f"batch size = {images}, all the training images, instead of {probe.batch_size}")
    return probe, said
