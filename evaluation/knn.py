"""k nearest neighbours on frozen features: one implementation for the online check and every paper's protocol.

Weighted (Wu et al. 2018, as in DINO, ReSA on ImageNet, RSA, CACR-C): cosine similarity s, each of the k nearest votes
exp(s/T). Uniform (ReSA on CIFAR): Euclidean distance, one vote each. Equal votes go to the smallest class number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.base.errors import UserError
from saccade.evaluation.accuracy import Accuracy, accuracy_of_ranks, ranks

NEIGHBOURS, TEMPERATURE = 20, 0.07  # DINO's defaults, where no protocol says others
METRICS = ("cosine", "euclidean")
_ELEMENTS = 2**26  # similarities held at once: 256 MB in float32
_BANK = 2**16  # training images compared with at once: 512 MB of 2,048 features


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    ks: Sequence[int] = (20,),
    temperature: float | None = 0.07,
    metric: str = "cosine",
    device: torch.device | str = "cpu",
    leave_one_out: bool = False,
) -> dict[int, Accuracy]:
    """k -> accuracy of the test features (M, D), labels (M,), against the train features (N, D), labels (N,).

    leave_one_out: train and test are the same images, and none is its own neighbour.

    temperature: of the weights exp(similarity / temperature); None for one vote each. Features need not be normalised.
    Raises UserError for k > N, a temperature that is not positive, or features that are not finite.

    Examples:
        >>> train, labels = torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5)
        >>> knn_accuracy(train, labels, torch.eye(4), torch.arange(4), ks=(5,))
        {5: Accuracy(top1=100.0, top5=100.0)}
    """
    found = knn_ranks(train, train_labels, test, test_labels, ks, temperature, metric, device, leave_one_out)
    return {k: accuracy_of_ranks(rank) for k, rank in found.items()}


def knn_ranks(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    ks: Sequence[int] = (20,),
    temperature: float | None = 0.07,
    metric: str = "cosine",
    device: torch.device | str = "cpu",
    leave_one_out: bool = False,
) -> dict[int, Tensor]:
    """k -> (M,) how many classes stand before each test image's own; 0 is right. Arguments as of knn_accuracy."""
    _check(train[1:] if leave_one_out else train, test, ks, temperature, metric)
    classes = int(train_labels.max()) + 1
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    chunks = neighbours(train, test, max(ks) + leave_one_out, metric, device)
    if leave_one_out:
        chunks = without_itself(chunks, max(ks))
    for (similarity, index), labels in zip(chunks, test_labels.split(_rows(len(train))), strict=True):
        for k in ks:
            scores = votes(similarity[:, :k], train_labels[index[:, :k]], classes, temperature)
            found[k].append(ranks(scores, labels))
    return {k: torch.cat(rank) for k, rank in found.items()}


def fitting_k(labels: Tensor, k: int, leave_one_out: bool = False) -> int:
    """k, or all N neighbours where there are fewer; where each image is tested against all others, one less than the
    smallest class has: of all the others an image's own class is always one short."""
    if not leave_one_out:
        return min(k, len(labels))
    return k if k < len(labels) else max(1, int(labels.unique(return_counts=True)[1].min()) - 1)


def without_itself(chunks: Iterator[tuple[Tensor, Tensor]], k: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each image's k + 1 neighbours the nearest k that are not the image."""
    first = 0
    for similarity, index in chunks:
        itself = index == torch.arange(first, first := first + len(index))[:, None]
        others = itself.int().argsort(dim=1, stable=True)[:, :k]
        yield similarity.gather(1, others), index.gather(1, others)


def neighbours(
    train: Tensor, test: Tensor, k: int, metric: str = "cosine", device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunk by chunk of the test features: similarity (m, k) float64, nearest first, and train index (m, k) (CPU).

    The similarity is the cosine, or minus the squared Euclidean distance. Neither an (M, N) matrix nor a copy of more
    than 65,536 training features is held: `train` may be float16 in a mapped file.
    """
    centre = None  # of Euclidean distances, which stay the same, and |a|^2 + |b|^2 - 2ab loses fewer digits
    if metric != "cosine":
        centre = sum(part.float().sum(0) for part in train.split(_BANK)) / torch.tensor(float(len(train)))

    def prepared(part: Tensor) -> Tensor:
        part = part.float()
        return F.normalize(part, dim=1).to(device) if centre is None else (part - centre).to(device)

    parts = train.split(_BANK)
    whole = prepared(train) if len(parts) == 1 else None
    for rows in test.split(_rows(len(train))):
        rows = prepared(rows)
        best, index = rows.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.long, device=device)
        for number, part in enumerate(parts):
            bank = prepared(part) if whole is None else whole
            if centre is None:
                similarity = rows @ bank.T
            else:
                similarity = torch.addmm(bank.square().sum(1), rows, bank.T, beta=-1, alpha=2)
                similarity -= rows.square().sum(1, keepdim=True)
            near, which = similarity.topk(min(k, len(part)), dim=1)
            best, order = torch.cat([best, near], 1).sort(dim=1, descending=True, stable=True)
            index = torch.cat([index, which + number * _BANK], 1).gather(1, order)[:, :k]
            best = best[:, :k]
        yield best.cpu().double(), index.cpu()


def votes(similarity: Tensor, labels: Tensor, classes: int, temperature: float | None) -> Tensor:
    """(m, classes) float64 votes of the neighbours: similarity and labels (m, k)."""
    weights = torch.ones_like(similarity) if temperature is None else torch.exp(similarity / temperature)
    return similarity.new_zeros(len(similarity), classes).scatter_add_(1, labels, weights)


def _rows(train: int) -> int:
    return max(1, _ELEMENTS // min(train, _BANK))


def _check(train: Tensor, test: Tensor, ks: Sequence[int], temperature: float | None, metric: str) -> None:
    if len(train) == 0 or len(test) == 0:
        raise UserError(f"kNN needs train and test images; there are {len(train)} and {len(test)}.")
    if not ks or min(ks) < 1 or max(ks) > len(train):
        raise UserError(
            f"k = {', '.join(map(str, ks))}, but there are {len(train)} training images to be neighbours; "
            f"give k from 1 to {len(train)}."
        )
    if temperature is not None and not 0.002 <= temperature < float("inf"):  # exp(1/T) must fit into float64
        raise UserError(f"the kNN temperature is {temperature}; give a positive number of at least 0.002.")
    if metric not in METRICS:
        raise UserError(f"the kNN metric {metric!r} is unknown; use one of {', '.join(METRICS)}.")
    if not all(torch.isfinite(part).all() for features in (train, test) for part in features.split(_BANK)):
        raise UserError("the features are not finite numbers: the backbone has diverged, there is nothing to evaluate.")
