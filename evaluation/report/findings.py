"""What is worth looking at in the features of some images: a map, neighbours, duplicates, odd and wrong ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.base.machine import available_cpus
from saccade.base.text import printable
from saccade.evaluation.features import at_most, extract
from saccade.evaluation.knn import NEIGHBOURS, TEMPERATURE, fitting_k, neighbours, votes, without_itself
from saccade.evaluation.plot import layout
from saccade.models.backbone import shown_share
from saccade.pipelines.sources import Source
from saccade.runs.pictures import thumbnail

THUMB, GREY = 64, 16  # pixels of a thumbnail, and of what duplicates are compared by
STRIPS, BESIDE, SHOWN = 12, 7, 24  # queries, neighbours of each, pictures of a list
ALIKE = 0.98  # correlation of two grey thumbnails that are one picture
CLUSTERS = 20


@dataclass(frozen=True)
class Wrong:
    """An image whose neighbours are of another class, and the share of their votes for it."""

    image: int
    said: str
    share: float


@dataclass(frozen=True)
class Findings:
    """Of N images, numbered 0 to N - 1: names, classes ("" where there is none), thumbnails (N, THUMB, THUMB, 3) uint8,
    places on the map (N, 2), clusters (N,); nearest: image -> its neighbours with their cosines. Unreadable images, for
    which others stand in, are none of them."""

    names: list[str]
    classes: list[str]
    thumbnails: np.ndarray
    places: np.ndarray
    axes: str
    clusters: list[int]
    nearest: dict[int, list[tuple[int, float]]]
    duplicates: list[tuple[int, int, float]]
    odd: list[tuple[int, float]]
    wrong: list[Wrong]
    total: int  # readable images of the set these were taken from, as far as is known


def find(
    backbone: nn.Module,
    source: Source,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    images: int,
    device: torch.device | str = "cpu",
    workers: int | None = None,
) -> Findings:
    """Findings on `images` of the source, spread evenly over it."""
    few, share = at_most(source, images), shown_share(image_size)
    features, numbers = extract(backbone, few, image_size, mean, std, share, device, workers=workers), range(len(few))
    with ThreadPoolExecutor(available_cpus()) as pool:
        thumbnails = np.stack(list(pool.map(lambda i: squared(few.read_or_replace(i)[0]), numbers)))
    if not torch.isfinite(features.features).all():
        raise UserError("the features are not finite numbers: the backbone has diverged, there is nothing to show.")
    readable = torch.tensor([i for i in numbers if few.name_of(i) not in few.known_bad])
    labels = features.labels[readable]
    classes = [printable(source.class_name(int(label))) for label in labels]
    names = [printable(few.name_of(int(i))) for i in readable]
    left = len(source) - len({*few.known_bad, *source.known_bad})
    return findings(features.features[readable], labels, classes, names, thumbnails[readable.numpy()], left)


def findings(
    features: Tensor, labels: Tensor, classes: list[str], names: list[str], thumbnails: np.ndarray, total: int
) -> Findings:
    """The same of (N, D) features that are there, and (N,) labels, -1 for none."""
    count = len(features)
    k = min(NEIGHBOURS, count - 1)
    pairs = list(without_itself(neighbours(features, features, k + 1), k))
    similarity, index = (torch.cat(part) for part in zip(*pairs, strict=True))
    places, axes = layout(features, "tsne" if find_spec("sklearn") else "pca")
    near = similarity[:, : min(5, k)].mean(1)
    queries = np.linspace(0, count - 1, min(STRIPS, count)).astype(int).tolist()
    return Findings(
        names,
        classes,
        thumbnails,
        _to_square(places.numpy()),
        " and ".join(axes),
        _clusters(features),
        {q: [(int(index[q, j]), float(similarity[q, j])) for j in range(min(BESIDE, k))] for q in queries},
        duplicates(index, thumbnails),
        [(int(i), float(near[i])) for i in near.argsort()[:SHOWN]],
        _wrong(similarity, index, labels, classes),
        total,
    )


def duplicates(index: Tensor, thumbnails: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs among the nearest five of each image whose small grey pictures correlate, the most alike first."""
    grey = np.stack([np.asarray(Image.fromarray(t).convert("L").resize((GREY, GREY)), np.float64) for t in thumbnails])
    flat = grey.reshape(len(grey), -1)
    flat = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = flat / np.maximum(length, 1e-9)
    found: dict[tuple[int, int], float] = {}
    for i, row in enumerate(index[:, :5].tolist()):
        for j in row:
            alike = float(flat[i] @ flat[j])
            if alike >= ALIKE:
                found[min(i, j), max(i, j)] = alike
    return [(i, j, alike) for (i, j), alike in sorted(found.items(), key=lambda item: -item[1])[:SHOWN]]


def _wrong(similarity: Tensor, index: Tensor, labels: Tensor, classes: list[str]) -> list[Wrong]:
    """Labelled images that the others would call something else, the surest first."""
    known = labels >= 0
    if known.sum() < 2 or len(labels[known].unique()) < 2:
        return []
    k = min(similarity.shape[1], fitting_k(labels[known], NEIGHBOURS, True))
    theirs = labels[index[:, :k]]
    weights = torch.where(theirs >= 0, similarity[:, :k], torch.full_like(similarity[:, :k], -1e9))
    scores = votes(weights, theirs.clamp(min=0), int(labels.max()) + 1, TEMPERATURE)
    share, said = (scores / scores.sum(1, keepdim=True).clamp(min=1e-30)).max(1)
    name = {int(label): text for label, text in zip(labels, classes, strict=True)}
    rows = [int(i) for i in share.argsort(descending=True) if known[i] and said[i] != labels[i]]
    return [Wrong(i, name.get(int(said[i]), str(int(said[i]))), float(share[i])) for i in rows[:SHOWN]]


def _clusters(features: Tensor) -> list[int]:
    """k-means of scikit-learn on the unit sphere; [] where it is not installed."""
    if not find_spec("sklearn") or len(features) < CLUSTERS:
        return []
    from sklearn.cluster import KMeans

    unit = torch.nn.functional.normalize(features.float(), dim=1).numpy()
    number = int(min(CLUSTERS, max(2, round((len(unit) / 2) ** 0.5))))
    return KMeans(number, random_state=0).fit_predict(unit).tolist()


def squared(pixels: np.ndarray) -> np.ndarray:
    """(THUMB, THUMB, 3) uint8 of (H, W, C): the whole picture, on grey where it is no square."""
    image = thumbnail(pixels, THUMB)
    square = Image.new("RGB", (THUMB, THUMB), (235, 235, 235))
    square.paste(image, ((THUMB - image.width) // 2, (THUMB - image.height) // 2))
    return np.asarray(square)


def _to_square(places: np.ndarray) -> np.ndarray:
    """Within 0 to 1, proportions kept."""
    low, extent = places.min(0), max(float(np.ptp(places, axis=0).max()), 1e-9)
    return (places - low) / extent
