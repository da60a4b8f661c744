"""NT-Xent, the contrastive loss of SimCLR and S-TEC."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.base.errors import UserError
from saccade.losses.functional import full_precision, require_positive
from saccade.models.gather import all_gather, own_places


@full_precision
def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
    """L = mean_a [ logsumexp_{b != a} s_ab - s_{a,pos(a)} ],  s_ab = z_a . z_b / T,  over the 2B local anchors a.

    z1, z2: (B, P) unit rows of the two views, float32 at least inside. Candidates b are all ranks' z1, then all ranks'
    z2, gathered with gradient, so DDP's average of the ranks' gradients is that of the global batch. Returns the loss
    and, without gradient, "accuracy" (top-1 over the 2WB - 1 candidates), "contrast_accuracy" and "contrast_entropy"
    (nats) of the view 1 -> view 2 block. Source: Chen et al. 2020 (arXiv 2002.05709), Eq. 1, as
    NeuromorphicComputing/S-TEC computes and logs it.
    """
    require_positive(temperature=temperature)
    if z1.shape != z2.shape or z1.ndim != 2:
        raise UserError(f"NT-Xent needs two (B, P) views of equal shape, not {tuple(z1.shape)} and {tuple(z2.shape)}")
    batch = z1.shape[0]
    candidates = torch.cat([all_gather(z1), all_gather(z2)])  # 2WB x P
    total = candidates.shape[0] // 2
    similarity = torch.cat([z1, z2]) @ candidates.t() / temperature  # 2B x 2WB

    own = own_places(batch, z1.device)
    itself, positive = torch.cat([own, total + own]), torch.cat([total + own, own])
    similarity = similarity.scatter(1, itself[:, None], -math.inf)
    loss = F.cross_entropy(similarity, positive)
    return loss, _metrics(similarity.detach(), positive, batch, total)


def _metrics(similarity: Tensor, positive: Tensor, batch: int, total: int) -> dict[str, Tensor]:
    contrast = similarity[:batch, total:]
    p = F.softmax(contrast, dim=1)
    return {
        "accuracy": (similarity.argmax(1) == positive).float().mean(),
        "contrast_accuracy": (contrast.argmax(1) == positive[:batch] - total).float().mean(),
        "contrast_entropy": -(p * (p + 1e-6).log()).sum(1).mean(),  # + 1e-6 as the original logs it
    }
