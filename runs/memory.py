"""Memory that runs out in a step: one sentence, with the part of the batch that would fit and what parts change."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from saccade.base.allocator import give_back_memory
from saccade.base.errors import UserError
from saccade.base.machine import available_memory
from saccade.models.norm import batch_norm_splits

if TYPE_CHECKING:
    from saccade.pipelines.pipeline import Batch
    from saccade.runs.config import Config
    from saccade.runs.session import Session

KEPT_AGAIN = 1.25  # gradients of what autograd keeps live beside it for a while, and the allocator's slack
SMALLER = "a smaller --batch-size, --image-size or --backbone"


def free_memory(device: torch.device) -> float:
    """Bytes that the device still has; of a GPU with what torch holds and does not use."""
    if device.type != "cuda":
        return available_memory()
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def too_large(session: Session, batch: Batch) -> UserError:
    """The sentence of a step that memory was too small for; what it had allocated is let go of."""
    config, device = session.config, session.accelerator.device
    gc.collect()
    give_back_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    whole = config.recipe.batch_size // config.accumulate
    parts, known = (None, True) if session.updating else fitting_parts(session, batch)
    way = f"not even 2 at a time would fit; give {SMALLER}"
    if parts is not None:
        flags = f"--accumulate {parts}"
        if session.steps:  # a checkpoint is there, or is tried after this
            flags = f"--resume {config.out} {flags} --allow-changes"
        fits = f"about {config.recipe.batch_size // parts} at a time would fit: give" if known else "try"
        way = f"{fits} {flags} ({in_parts(session, parts)}), or {SMALLER}"
    return UserError(f"out of memory on {device} in step {session.steps + 1}, {whole} images at a time; {way}.")


def in_parts(session: Session, parts: int) -> str:
    """What a step that is taken in `parts` changes, beside one in a single forward pass."""
    recipe = session.config.recipe
    images = recipe.batch_size // parts
    if session.learner.objective.per_image:
        told = f"the loss of {recipe.method} looks at each image alone and stays the same"
    else:
        told = (
            f"the loss of {recipe.method} compares the images of a batch with each other, then {images} instead of "
            f"{recipe.batch_size}: it becomes another"
        )
    group = images // batch_norm_splits(recipe.batch_norm, images)
    before = recipe.batch_size // batch_norm_splits(recipe.batch_norm, recipe.batch_size)
    if group != before and any(isinstance(module, _BatchNorm) for module in session.learner.modules()):
        told += f"; batch norm sees {group} instead of {before}"
    return told


def allowed_parts(config: Config, images: int) -> Iterator[int]:
    """Into how many more parts than now the `images` of a process's batch may be taken, the fewest first."""
    from saccade.runs.session import check_batch

    for parts in range(config.accumulate + 1, images // 2 + 1):
        with suppress(UserError):
            check_batch(images, replace(config, accumulate=parts))
            yield parts


def fitting_parts(session: Session, batch: Batch) -> tuple[int | None, bool]:
    """In how many parts a step would fit, None where in none; and False where that is not known, and a guess."""
    images, on_gpu = len(batch.index), session.accelerator.device.type == "cuda"
    allowed = list(allowed_parts(session.config, images))
    if not allowed or session.accelerator.num_processes > 1:  # who would have to agree
        return next(iter(allowed), None), not allowed
    part = batch[: images // allowed[-1]]
    try:
        per_image = KEPT_AGAIN * kept_by(session, part) / len(part.index)
    except Exception:  # a method of the user's own may read values, which there are none of
        return allowed[0], False
    room = free_memory(session.accelerator.device) if on_gpu else session.room  # a heap that was full stays large
    room -= 2 * sum(p.nbytes for p in session.learner.parameters())  # their gradients, and the optimizer's
    return next((parts for parts in allowed if per_image * images / parts <= room), None), True


def kept_by(session: Session, part: Batch) -> int:
    """Bytes that autograd keeps of a forward pass of these images, which is not computed: tensors have shapes only."""
    kept: dict[int, tuple[Tensor, int]] = {}  # the tensor too: another must not take its place

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = tensor, storage.nbytes()
        return tensor

    learner = session.learner
    with FakeTensorMode(allow_non_fake_inputs=True) as shapes, session.accelerator.autocast():
        views = {name: shapes.from_tensor(view) for name, view in part.views.items()}
        weights: dict[str, Tensor] = {name: shapes.from_tensor(p) for name, p in learner.named_parameters()}
        buffers: dict[str, Tensor] = {name: shapes.from_tensor(b) for name, b in learner.named_buffers()}
        labelled = part.companion and (part.companion.views["labelled"], part.companion.label)
        with (
            torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
            torch.compiler.set_stance("force_eager"),
        ):
            functional_call(learner, weights | buffers, (views, part.params, part.label, labelled))
    learner.features = None  # a shape too
    own = {weight.untyped_storage()._cdata for weight in weights.values()}
    return sum(size for place, (_, size) in kept.items() if place not in own)
