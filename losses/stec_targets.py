"""S-TEC's efference copy: from crop boxes and flips to the inverse model's 36 classes and their loss.

Source: Scherr et al. 2022 (arXiv 2210.09224), as NeuromorphicComputing/S-TEC computes it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.base.errors import UserError
from saccade.losses.functional import full_precision
from saccade.models.gather import all_reduce_sum, world_size

BINS = 6
RANGES = ((-2.0, 2.0), (-2.0, 2.0), (-0.5, 0.5))  # of the columns of the 2x3 matrix: linear, linear, translation


def view_to_source(
    top: Tensor, left: Tensor, height: Tensor, width: Tensor, flip: Tensor, source_height: Tensor, source_width: Tensor
) -> Tensor:
    """sx = +-w/W (minus if flipped), sy = h/H, tx = 2 (j + w/2)/W - 1, ty = 1 - 2 (i + h/2)/H; y points up.

    Crop boxes in pixels of their source, flip bool, all (B,) -> (B, 4) float32 rows (sx, sy, tx, ty).
    """
    top, left, height, width = (x.float() for x in (top, left, height, width))
    sx = torch.where(flip, -1.0, 1.0) * width / source_width
    sy = height / source_height
    tx = 2 * (left + width / 2) / source_width - 1
    ty = 1 - 2 * (top + height / 2) / source_height
    return torch.stack([sx, sy, tx, ty], dim=1)


def relative_transform(a: Tensor, b: Tensor, true_translation: bool = False) -> Tensor:
    """V = [[sx_b/sx_a, 0, tx_b - sx_b tx_a], [0, sy_b/sy_a, ty_b - sy_b ty_a]]: the target of view a -> view b.

    a, b: (B, 4) rows (sx, sy, tx, ty) of `view_to_source` -> (B, 2, 3), in their dtype. This is the original's product,
    whose translation is not that of the true composition, tx_b - (sx_b/sx_a) tx_a; `true_translation` gives that.
    """
    linear = b[:, :2] / a[:, :2]
    translation = b[:, 2:] - (linear if true_translation else b[:, :2]) * a[:, 2:]
    return torch.cat([torch.diag_embed(linear), translation.unsqueeze(2)], dim=2)


def bin_targets(values: Tensor, bins: int = BINS) -> Tensor:
    """t = clamp(round_half_even((V - lo)/(hi - lo) * n - 0.5), 0, n-1): (..., 2, 3) -> int64 classes (..., 2, 3)."""
    # column by column, with plain numbers: a tensor of the ranges would make the host wait for its copy to the GPU
    share = torch.stack([(values[..., c] - low) / (high - low) for c, (low, high) in enumerate(RANGES)], dim=-1)
    return (share * bins - 0.5).round().clamp(0, bins - 1).long()


def bin_changes(changes: Tensor, bins: int = BINS) -> Tensor:
    """Classes of changes given in shares of their range, the same rule over [-1, 1]: (B, k) -> int64 (B, k)."""
    return ((changes + 1) / 2 * bins - 0.5).round().clamp(0, bins - 1).long()


@full_precision
def manipulation_loss(
    logits: Tensor, values: Tensor, valid: Tensor | None = None, changes: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = sum_{b valid} mean_{r,c} CE(logits[b,:,r,c], bin(V[b,r,c])) / max(1, count(valid)).

    logits: (B, n, 2, 3), or (B, 6n) with the bin as the slowest axis; values: (B, 2, 3) targets; valid: (B,) bool,
    pairs of which neither view was solarised (None: all). The two entries that are always 0 count, as in the original.
    changes: (B, k) in [-1, 1], what else was done differently; logits are then (B, (6 + k) n) and the mean goes over
    6 + k entries. It is our extension.
    Returns the loss and, without gradient, "manipulation_accuracy" over the entries of all pairs. Pairs are counted
    over all processes, so that the processes' average is the loss of the whole batch, however unevenly solarised.
    """
    entries = 6 + (0 if changes is None else changes.shape[1])
    if values.shape[1:] != (2, 3) or logits.shape[0] != values.shape[0] or logits[0].numel() % entries:
        raise UserError(
            f"expected (B, {entries}n) logits and (B, 2, 3) targets, not {tuple(logits.shape)} and "
            f"{tuple(values.shape)}"
        )
    logits = logits.reshape(len(values), -1, entries)
    targets = bin_targets(values, logits.shape[1]).flatten(1)
    if changes is not None:
        targets = torch.cat([targets, bin_changes(changes, logits.shape[1])], dim=1)
    losses = F.cross_entropy(logits, targets, reduction="none").mean(1)
    accuracy = (logits.detach().argmax(1) == targets).float().mean()
    if valid is None:
        loss = losses.mean()
    else:
        count = all_reduce_sum(valid.sum()).clamp_min(1)
        loss = (losses * valid).sum() * world_size() / count
    return loss, {"manipulation_accuracy": accuracy}
