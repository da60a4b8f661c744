"""Batch norms over more (all ranks) or less (splits) than a process's batch, and the shuffle that blinds them."""

from collections.abc import Callable
from hashlib import blake2b
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.models.gather import all_gather_no_grad, all_reduce_sum, all_reduce_sum_with_grad, own_rows, world_size

_ROUNDS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))  # SplitMix64's (Steele et al. 2014)


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over all ranks: torch's kernels on CUDA, the same by differentiable all-reduce elsewhere (gloo).

    No subclass of nn.SyncBatchNorm, which DistributedDataParallel refuses on a CPU; its forward is borrowed instead.
    """

    process_group = None  # all ranks
    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return nn.SyncBatchNorm.forward(self, x)  # pyright: ignore[reportArgumentType] - borrowed, see above
        if self.training and world_size() > 1:
            return self._forward_without_cuda(x)
        # nn.SyncBatchNorm's own refuses the CPU, even in a group of one.
        return super().forward(x)

    def _forward_without_cuda(self, x: Tensor) -> Tensor:
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        wide = x if x.dtype == torch.float64 else x.float()
        count = all_reduce_sum_with_grad(wide.new_tensor(x.numel() / x.shape[1]))
        mean = all_reduce_sum_with_grad(wide.sum(dims)) / count
        centred = wide - mean.view(shape)
        variance = all_reduce_sum_with_grad(centred.square().sum(dims)) / count
        if self.training and self.track_running_stats:
            self._track(mean.detach(), (variance * count / (count - 1)).detach())
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked += 1
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), weight)
        self.running_var.lerp_(unbiased_variance.to(self.running_var), weight)


class SplitBatchNorm2d(nn.BatchNorm2d):
    """Batch norm of `splits` groups apart, sample i in group i mod splits: many small GPUs' batch norm on one.

    Running statistics are the mean over groups of each group's update; evaluation is ordinary batch norm. Source:
    ReSSL's small-data code. Raises UserError where the batch is not a multiple of `splits`.
    """

    def __init__(self, num_features: int, splits: int, **kwargs) -> None:
        super().__init__(num_features, **kwargs)
        if splits < 1:
            raise UserError(f"batch norm in {splits} splits cannot be; use 1 or more")
        self.splits = splits

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.track_running_stats:
            return super().forward(x)
        n, c, h, w = x.shape
        if n % self.splits:
            raise UserError(f"a batch of {n} does not fall into {self.splits} equal splits; change either")
        mean = var = None
        momentum = 0.0
        if self.training and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None  # the three go together
            self.num_batches_tracked += 1
            mean, var = self.running_mean.repeat(self.splits), self.running_var.repeat(self.splits)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        weight, bias = (p.repeat(self.splits) if self.affine else None for p in (self.weight, self.bias))
        grouped = x.reshape(n // self.splits, self.splits * c, h, w)
        y = F.batch_norm(grouped, mean, var, weight, bias, True, momentum, self.eps).reshape(n, c, h, w)
        for running, grouped_stats in ((self.running_mean, mean), (self.running_var, var)):
            if running is not None and grouped_stats is not None:
                running.copy_(grouped_stats.view(self.splits, c).mean(0))
        channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        return y.contiguous(memory_format=torch.channels_last) if channels_last else y


def _activate(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    act, drop = module.get_submodule("act"), module.get_submodule("drop")  # of timm's BatchNormAct2d
    return act(drop(output))


def _converted(module: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """`module` with every child for which `make` gives one replaced by it, parameters, buffers and names kept."""
    new = make(module)
    if new is not None:
        if module.affine:
            new.weight, new.bias = module.weight, module.bias
        for name, buffer in module.named_buffers(recurse=False):
            new.register_buffer(name, buffer)
        if hasattr(module, "act"):  # timm's BatchNormAct2d
            new.drop, new.act = module.drop, module.act
            new.register_forward_hook(_activate)
        return new.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _converted(child, make))
    return module


def _settings(norm: nn.Module) -> dict:
    return {k: getattr(norm, k) for k in ("eps", "momentum", "affine", "track_running_stats")}


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Every batch norm of `module` that is not split as SyncBatchNorm, in place where it has children; returns it."""

    def make(norm: nn.Module) -> nn.Module | None:
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and not isinstance(norm, SyncBatchNorm | SplitBatchNorm2d):
            return SyncBatchNorm(norm.num_features, **_settings(norm))
        return None

    return _converted(module, make)


def convert_split_batchnorm(module: nn.Module, splits: int) -> nn.Module:
    """Every BatchNorm2d of `module` in `splits` groups, in place where it has children; returns the module."""

    def make(norm: nn.Module) -> nn.Module | None:
        if isinstance(norm, nn.BatchNorm2d) and not isinstance(norm, SplitBatchNorm2d):
            return SplitBatchNorm2d(norm.num_features, splits, **_settings(norm))
        return None

    return _converted(module, make)


def batch_norm_splits(kind: str, images: int = 1) -> int:
    """The groups of a forward pass of `images` over all processes: 8 of "split-8", as few of at most 32 as hold them of
    "group-32", 1 of "local" and "sync"; UserError for anything else.

    Examples:
        >>> batch_norm_splits("split-8"), batch_norm_splits("group-32", 256), batch_norm_splits("group-32", 32)
        (8, 8, 1)
    """
    if kind in ("local", "sync"):
        return 1
    name, _, number = kind.partition("-")
    if name not in ("split", "group") or not number.isdecimal() or int(number) < (1 if name == "split" else 2):
        raise UserError(
            f"batch_norm={kind} is unknown; use local, sync or, for groups of the batch, split-8 (eight of them) or "
            "group-32 (of 32 images each)."
        )
    return int(number) if name == "split" else -(-images // int(number))


def convert_batch_norm(module: nn.Module, kind: str, images: int = 1) -> nn.Module:
    """Give `module` the batch norm of a recipe, in place: "local" as it is, "sync" over all processes, "split-8" or
    "group-32" of the `images` of a forward pass over all processes.

    Image i of them is in group i mod groups, and on rank i mod world size: each rank has whole groups, and UserError is
    raised where it would not.
    """
    splits = batch_norm_splits(kind, images)
    if splits > 1:
        if splits % world_size():
            raise UserError(
                f"the {splits} groups of batch_norm={kind} cannot be shared out to {world_size()} processes; start "
                f"{gcd(splits, world_size())}, or give --set batch_norm=sync."
            )
        convert_split_batchnorm(module, splits // world_size())
    return convert_sync_batchnorm(module) if kind != "local" and world_size() > 1 else module


@torch.no_grad()
def share_running_statistics(module: nn.Module) -> None:
    """Give every rank the mean of the ranks' running statistics, where batch norms see a part of the batch each.

    They are means over groups anyway, so N processes have what one would; one small collective for the whole network.
    """
    norms = [m for m in _partial_norms(module) if m.running_mean is not None]
    if world_size() == 1 or not norms:
        return
    buffers = [b for m in norms for b in (m.running_mean, m.running_var)]
    flat = all_reduce_sum(torch.cat([b.float() if b.dtype.itemsize < 4 else b for b in buffers])) / world_size()
    for buffer, mean in zip(buffers, flat.split([len(b) for b in buffers]), strict=True):
        buffer.copy_(mean)


def _partial_norms(module: nn.Module) -> list:
    norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return [m for m in norms if not isinstance(m, SyncBatchNorm)]


def sees_part_of_the_batch(module: nn.Module) -> bool:
    """Whether batch norms of `module` see a part of the global batch at a time: only then does a shuffle matter."""
    return any(isinstance(m, SplitBatchNorm2d) or world_size() > 1 for m in _partial_norms(module))


def batch_permutation(count: int, seed: int, step: int, view: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """A permutation of `count` samples, a function of (seed, step, view) alone: the same on every rank and device.

    The samples sorted by a hash of their number, on the device itself: nothing is copied there or waited for.
    """
    key = int.from_bytes(blake2b(f"{seed} {step} {view}".encode(), digest_size=7).digest())
    x = torch.arange(count, device=device) + key
    for shift, factor in _ROUNDS:
        x = (x ^ (x >> shift)) * factor
    return (x ^ (x >> 31)).argsort()


def shuffle(x: Tensor, permutation: Tensor) -> Tensor:
    """This rank's (n, ...) of the permuted global batch: batch statistics no longer give a partner away (MoCo)."""
    rows = all_gather_no_grad(x)[own_rows(permutation)]
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return rows.contiguous(memory_format=torch.channels_last) if channels_last else rows


def unshuffle(x: Tensor, permutation: Tensor) -> Tensor:
    """Undo `shuffle`: (n, ...) rows of shuffled samples -> those of this rank's own samples, without gradient."""
    return all_gather_no_grad(x)[own_rows(torch.argsort(permutation))]
