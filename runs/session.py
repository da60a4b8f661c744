"""A run put together: configuration -> views, network, optimizer, learning rate, and the step they take together.

train.py loops over it; the bench, the doctor and the benchmarks time and compare these same parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from saccade.base.errors import Diverged, UserError, out_of_memory
from saccade.losses.recipe import OptimizerSpec
from saccade.losses.registry import find_method
from saccade.models.backbone import create_backbone, feature_size
from saccade.models.gather import world_size
from saccade.models.layers import freeze, slower_below
from saccade.models.learner import Learner
from saccade.models.norm import batch_norm_splits, convert_batch_norm
from saccade.models.optimizers import LARS, parameter_groups
from saccade.models.schedules import schedule
from saccade.pipelines.build import build_pipeline, create_order
from saccade.pipelines.companion import CompanionPipeline
from saccade.pipelines.pipeline import Batch, Pipeline
from saccade.pipelines.sampling import Sampling, find_sampling
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.imbalance import imbalanced
from saccade.pipelines.stream import stream_key
from saccade.pipelines.views import Views
from saccade.runs.config import Config
from saccade.runs.guard import Guard
from saccade.runs.initial import read_initial
from saccade.runs.memory import free_memory, too_large
from saccade.runs.precision import on_gpu
from saccade.runs.ranks import start_processes

SKIPS = 40  # fp16's scale starts at 2^16 and is halved at each: by then it is below what any gradient overflows at
COMPILING_PAYS = 500, 5_000_000  # steps left, parameters: below either, compiling takes longer than it saves


class Session:
    """The parts of a run on one process, with the steps they have taken.

    `prepare` once after construction (and after `load_state_dict`, to continue), then `step(batch)`. A context manager:
    leaving it closes the pipeline's threads. `known_data`: the images whose labels are known, beside the training
    images or among them. plain: not channels-last and never compiled, as a user without us would write it.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        source: Source,
        labelled: Source | None = None,
        plain: bool = False,
        agree: Callable[[str], str] = str,
    ) -> None:
        set_seed(config.seed)
        self.config, self.accelerator = config, accelerator
        source = imbalanced(source, config.recipe.imbalance)
        self.source, self.known_data = source, labelled or source
        self.sampling = find_sampling(config.sampling, source, config.table) if config.sampling else None
        self.pipeline = build_train_pipeline(config, accelerator, source, labelled, self.sampling, agree)
        self.steps_per_epoch = len(self.pipeline)
        self.total_steps = config.steps or max(1, config.recipe.epochs * self.steps_per_epoch)
        with buildable():
            learner = build_learner(config, self.known_data, self.steps_per_epoch, self.total_steps)
        memory = torch.contiguous_format if plain else torch.channels_last
        placed: Any = learner.to(accelerator.device)  # torch 2.11 types no memory format
        self.learner: Learner = placed.to(memory_format=memory)
        self.optimizer = build_optimizer(self.learner, config.recipe.optimizer)
        spec = config.recipe.schedule
        self.learning_rate = schedule(
            spec.kind,
            config.recipe.optimizer.lr,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            **spec.options,
        )
        self.steps = 0
        self.updating = False  # weights or the teacher are being moved: half of the network may be of the step before
        self._begun = False  # the teacher has been moved for a step that then failed
        self._position: dict[str, Any] | None = None  # of the pipeline, after the last whole step
        self.compiles = not plain and self._compiling_pays()

    @property
    def precision(self) -> str:
        """What the forward passes compute in: fp32, bf16 or fp16."""
        mixed = self.accelerator.mixed_precision
        return "fp32" if mixed == "no" else mixed

    @property
    def epoch(self) -> float:
        return self.steps / self.steps_per_epoch

    def prepare(self) -> None:
        """Compile the networks where that pays, and wrap them for several processes."""
        if self.compiles:
            self.learner.compile_networks()
        plain = self.optimizer
        self.model, self.optimizer = self.accelerator.prepare(self.learner, self.optimizer)
        self._skips = next(self.learner.parameters()).new_zeros((), dtype=torch.int64)  # steps in a row, by now
        self.room = free_memory(self.accelerator.device)
        self._plain_optimizer, self._guard = plain, Guard(self.learner)
        self.learner.train()

    def step(self, batch: Batch, lr: float | None = None) -> dict[str, Tensor]:
        """One optimizer step on a batch; returns the losses of its last forward pass. lr: instead of the schedule's.

        A step whose gradient is not finite changes no weight, statistic or queue; `diverged` and `gradient_norm` are
        then of this step, on the device, for whoever has time to read them. One that fails before the update may be
        taken again, after a resume too. UserError where memory runs out, with the part of the batch that fits.
        """
        try:
            return self._step(batch, lr)
        except Exception as error:
            self.undo()
            if not out_of_memory(error):
                raise
        raise too_large(self, batch)  # here: the error holds what was kept for backward

    def undo(self) -> None:
        """What forward passes of a step have moved."""
        self.optimizer.zero_grad(set_to_none=True)
        self._guard.undo()

    def _step(self, batch: Batch, lr: float | None) -> dict[str, Tensor]:
        # Dropout and the like depend on the step and the process alone, so a resumed run repeats them.
        torch.manual_seed(stream_key(self.config.seed, self.steps, self.accelerator.process_index) >> 1)
        self.updating = True
        self.learner.begin_step(self.steps, again=self._begun)
        self.updating, self._begun = False, True
        self._guard.keep()
        for group in self.optimizer.param_groups:
            group["lr"] = (self.learning_rate(self.steps) if lr is None else lr) * group.get("lr_scale", 1.0)
        losses = {}
        for part, last in micro_batches(batch, self.config.accumulate):
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                losses = self.losses(part)
                self.accelerator.backward(losses["loss"] / self.config.accumulate)
        self.accelerator.unscale_gradients()
        weights = [p for p in self.model.parameters() if p.grad is not None]
        self.gradient_norm = get_total_norm([p.grad for p in weights if p.grad is not None])
        if self.config.recipe.optimizer.clip_norm:
            clip_grads_with_norm_(weights, self.config.recipe.optimizer.clip_norm, self.gradient_norm)
        self.updating = True
        self._update(losses["loss"])
        self.steps, self._position = self.steps + 1, self.pipeline.state_dict()
        self.updating = self._begun = False
        return losses

    def losses(self, part: Batch) -> dict[str, Tensor]:
        """The loss and its parts, of one forward pass."""
        labelled = part.companion and (part.companion.views["labelled"], part.companion.label)
        return self.model(part.views, part.params, part.label, labelled)

    def _update(self, loss: Tensor) -> None:
        """Move weights, statistics and queues, or none of them: decided on the device, on every process alike."""
        skipped = ~self.gradient_norm.isfinite()
        self.diverged = self._guard.absurd(loss)
        if self.accelerator.scaler is not None:  # fp16's finds its scale by skipping: only for ever is it no use
            self._skips = torch.where(skipped, self._skips + 1, 0)
            self.diverged |= self._skips >= SKIPS
        else:
            self._plain_optimizer.found_inf = skipped.float()  # pyright: ignore[reportAttributeAccessIssue]
            self.diverged |= skipped
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.learner.end_step()
        self._guard.put_back(skipped)

    def check_finite(self) -> None:
        """Raise Diverged if a weight is infinite or not a number; the device is waited for once."""
        weights = [p.detach() for p in self.learner.parameters()]
        largest = torch._foreach_norm(weights, float("inf"))  # pyright: ignore[reportPrivateImportUsage]
        if not bool(torch.stack([value.float() for value in largest]).isfinite().all()):
            raise Diverged(
                f"the run diverged: its weights are not finite at step {self.steps}, so nothing was saved or exported; "
                "start again with a lower --lr, a longer warm-up, or --precision fp32, or go on from a checkpoint: "
                f"--resume {self.config.out} --lr ... --allow-changes."
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes while training; Diverged if the network is no longer finite.

        After a step that failed: as of the step before, but for the teacher, which `begun` says has been moved.
        """
        self.check_finite()
        scaler = self.accelerator.scaler
        return {
            "step": self.steps,
            "begun": self._begun,
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "pipeline": self._position or self.pipeline.state_dict(),
        }

    def checkpoint_size(self) -> int:
        """Bytes of a checkpoint, about: before the first step an optimizer has not yet made what it keeps."""
        copies = 2 if self.config.recipe.optimizer.name in ("adam", "adamw") else 1
        trained = sum(p.nbytes for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad)
        return sum(tensor.nbytes for tensor in self.learner.state_dict().values()) + copies * trained

    def foreign(self, state: dict[str, Any]) -> str | None:
        """Why a checkpoint is of another run: its network's tensors are not this one's."""
        own, other = ({k: v.shape for k, v in of.items()} for of in (self.learner.state_dict(), state["learner"]))
        if own == other:
            return None
        name = next(name for name in {**own, **other} if own.get(name) != other.get(name))
        return f"it is of another run ({name} is {_shape(other.get(name))}, here {_shape(own.get(name))})"

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back as the checkpoint has it; before `prepare`."""
        try:
            self.pipeline.load_state_dict(state["pipeline"])
            self.learner.load_state_dict(state["learner"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.steps, self._position, self._begun = state["step"], None, bool(state.get("begun"))
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"--resume: the checkpoint does not belong to this run ({reason}).") from error

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipeline.close()

    def _compiling_pays(self) -> bool:
        if self.config.compile is not None:
            return self.config.compile
        steps, parameters = COMPILING_PAYS
        large = sum(p.numel() for p in self.learner.parameters()) >= parameters
        return self.accelerator.device.type == "cuda" and self.total_steps >= steps and large


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a number"


def start_accelerator(device: str, precision: str) -> Accelerator:
    """Accelerate for device, precision (fp32, bf16 or fp16) and processes."""
    start_processes(device)
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # its successor is unknown to torch 2.11
    return Accelerator(
        cpu=not on_gpu(device),
        mixed_precision={"fp32": "no"}.get(precision, precision),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def build_train_pipeline(
    config: Config,
    accelerator: Accelerator,
    source: Source,
    labelled: Source | None = None,
    sampling: Sampling | None = None,
    agree: Callable[[str], str] = str,
) -> Pipeline:
    """Views of the recipe, in our order, this process's share of every batch, in the training precision; labelled
    images beside them for a method that has a use for those. agree: as of build_pipeline.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)

    def build(source: Source, views: Views, sampling: Sampling | None = None, **decoding: Any) -> Pipeline:
        order = create_order(
            source,
            config.shard_group,
            config.recipe.batch_size,
            config.seed,
            accelerator.process_index,
            accelerator.num_processes,
            sampling=sampling,
        )
        device, workers = accelerator.device, config.workers
        given = source, views, order, config.pipeline, device, dtype, workers, config.renderer
        return build_pipeline(*given, agree=agree, steps=config.steps, **decoding)

    decoding = {"cache": config.cache, "cache_limit": config.cache_limit, "decode": config.decode}
    pipeline = build(source, config.recipe.views, sampling, **decoding)
    if labelled is None or config.recipe.companion is None:
        return pipeline
    return CompanionPipeline(pipeline, build(labelled, config.recipe.companion))


@contextmanager
def buildable() -> Iterator[None]:
    """What a network's layers raise at sizes that cannot be becomes one sentence."""
    try:
        yield
    except (RuntimeError, MemoryError, IndexError, TypeError, ArithmeticError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        reason = f"out of memory: {reason}" if out_of_memory(error) else reason
        raise UserError(
            f"the networks of this recipe cannot be built ({reason}); look at its options and backbone."
        ) from error


def build_learner(config: Config, source: Source, steps_per_epoch: int, total_steps: int) -> Learner:
    """Backbone, heads, teacher and objective of the method, with its kind of batch norm."""
    recipe = config.recipe
    check_batch(recipe.batch_size // world_size(), config)
    backbone = create_backbone(recipe.backbone, recipe.image_size)
    if config.init and not config.resume:
        backbone.load_state_dict(
            read_initial(config.init, recipe.backbone.name, recipe.image_size).backbone.state_dict()
        )
    if recipe.backbone.freeze:
        freeze(backbone, recipe.backbone.freeze)
    classes = int(source.labels.max()) + 1 if source.labels is not None else None
    objective = find_method(recipe.method).objective(
        recipe, feature_size(backbone, recipe.image_size, len(recipe.views.mean)), classes, steps_per_epoch, total_steps
    )
    if config.joint_views is not None:
        objective.joint_forward = config.joint_views
    learner = Learner(backbone, objective, config.seed)
    convert_batch_norm(learner, recipe.batch_norm, recipe.batch_size // config.accumulate)
    return learner


def check_batch(images: int, config: Config) -> None:
    """Raise UserError unless a process's `images` a step fall into equal forward passes that have batch statistics."""
    recipe = config.recipe
    batch, rest = divmod(images, config.accumulate)
    together = batch * world_size()
    splits = batch_norm_splits(recipe.batch_norm, together)
    if rest:
        raise UserError(f"--accumulate {config.accumulate} does not divide the {images} images of a process's batch.")
    if batch < 2:
        raise UserError(
            f"a forward pass of {batch} image has no batch statistics; give --batch-size "
            f"{2 * world_size() * config.accumulate} or more."
        )
    if together % splits:
        fitting = config.accumulate * max(1, together // splits) * splits
        raise UserError(
            f"a forward pass of {together} images does not fall into the {splits} groups of batch_norm="
            f"{recipe.batch_norm}; give --batch-size {fitting} or --set batch_norm=sync."
        )


def build_optimizer(learner: Learner, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """LARS, SGD or AdamW, with the recipe's rule of which parameters decay."""
    classifier = "objective.classifier" if getattr(learner.objective, "classifier", None) is not None else None
    trust = spec.trust_coefficient if spec.name == "lars" else None
    groups = parameter_groups(
        learner.named_parameters(), spec.rule, spec.weight_decay, trust_coefficient=trust, classifier=classifier
    )
    if spec.layer_decay != 1:
        groups = slower_below(groups, learner.student.backbone, spec.layer_decay)
    if spec.name == "lars":
        return LARS(groups, spec.lr, spec.momentum, norm=spec.lars_norm)
    if spec.name == "sgd":
        return _with_buffers(torch.optim.SGD(groups, spec.lr, spec.momentum, nesterov=spec.nesterov, fused=True))
    if spec.name == "adam":
        return torch.optim.Adam(groups, spec.lr, betas=spec.betas, fused=True)
    if spec.name == "adamw":
        return torch.optim.AdamW(groups, spec.lr, betas=spec.betas, fused=True)
    raise UserError(f"--set optimizer.name={spec.name} is unknown; use lars, sgd, adam or adamw.")


def _with_buffers(sgd: torch.optim.SGD) -> torch.optim.SGD:
    """torch makes them in the first step, of memory that a first step which is skipped leaves as it found it."""
    for group in sgd.param_groups:
        for p in group["params"] if group["momentum"] else ():
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def micro_batches(batch: Batch, parts: int) -> Iterator[tuple[Batch, bool]]:
    """The batch in `parts` equal pieces, and whether a piece is the last."""
    size = len(batch.index) // parts
    for i in range(parts):
        yield batch[i * size : (i + 1) * size], i == parts - 1
