"""Pre-train a vision backbone without labels:  accelerate launch train.py --method stec

Read from top to bottom: the run is composed of a configuration, a pipeline that makes views, a learner that compares
them, and a loop. `python train.py --help` lists the flags; docs/ explains the methods.
"""

from __future__ import annotations

if __name__ == "__main__" and not __package__:
    from base.checkout import start  # by its place on disk: is the installed saccade this checkout?

    start("train.py")

from saccade.base.libraries import prepare_libraries

prepare_libraries()  # before torch is imported

import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed

from saccade.base.allocator import keep_freed_memory
from saccade.base.errors import UserError
from saccade.base.program import program
from saccade.evaluation.online import OnlineKNN
from saccade.losses.recipe import OptimizerSpec
from saccade.losses.registry import find_method
from saccade.models.backbone import create_backbone, feature_size
from saccade.models.gather import world_size
from saccade.models.learner import Learner
from saccade.models.norm import batch_norm_splits, convert_batch_norm
from saccade.models.optimizers import LARS, parameter_groups
from saccade.models.schedules import schedule
from saccade.pipelines.build import build_pipeline, create_order
from saccade.pipelines.companion import CompanionPipeline
from saccade.pipelines.data import open_data, open_labelled
from saccade.pipelines.draw import stream_key
from saccade.pipelines.pipeline import Batch, Pipeline
from saccade.pipelines.sources import Source
from saccade.pipelines.views import Views
from saccade.runs.checkpoint import load_checkpoint, save_checkpoint
from saccade.runs.config import Config, check_flags, parse_flags, resolve
from saccade.runs.config import parser as parser  # for the shell's completion
from saccade.runs.folder import RunFolder
from saccade.runs.interrupt import Interrupt
from saccade.runs.monitor import Monitor
from saccade.runs.report import announce, finish, follow_data
from saccade.runs.trackers import start_trackers

# ---------------------------------------------------------------- config


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 when done, 2 on bad input, 130 when interrupted."""
    try:
        flags = parse_flags(sys.argv[1:] if argv is None else argv)
        check_flags(flags)
        accelerator = start_accelerator(flags.device, flags.precision)
        with accelerator.local_main_process_first():  # one process downloads
            train_data, val_data = open_data(
                flags.data, flags.val_data, flags.data_dir, allow_pipe=flags.allow_pipe or None
            )
            labelled = open_labelled(flags.labelled_data, flags.data, flags.data_dir, train_data)
        out = Path(flags.out or f"outputs/{flags.method}-{Path(flags.data).stem}-{time.strftime('%Y%m%d-%H%M%S')}")
        config = resolve(flags, train_data, out)
        return run(config, accelerator, train_data, val_data, labelled)
    except UserError as error:
        print(f"{program('train.py')}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first step, or a second Ctrl-C
        print(f"{program('train.py')}: interrupted", file=sys.stderr)
        return 130


def start_accelerator(device: str, precision: str) -> Accelerator:
    """Accelerate for device, precision and processes; it must find as many processes as were launched."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no usable GPU was found here; use --device cpu or leave it out.")
    cpu = device == "cpu" or not torch.cuda.is_available()
    if cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # without it, processes launched on a CPU do not find each other
        keep_freed_memory()
    if precision == "auto":
        precision = "fp32" if cpu else "bf16"
    if precision == "fp16" and cpu:
        raise UserError("--precision fp16 needs a GPU; use fp32 or bf16 on a CPU.")
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision={"fp32": "no"}.get(precision, precision),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # its successor is unknown to torch 2.11
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != launched:
        raise UserError(
            f"{launched} processes were launched but {accelerator.num_processes} found each other; "
            "launch with torchrun, or accelerate launch --multi_gpu."
        )
    return accelerator


def run(
    config: Config,
    accelerator: Accelerator,
    train_data: Source,
    val_data: Source | None,
    labelled: Source | None = None,
) -> int:
    """`labelled`: images beside unlabelled training data, for an online classifier and for kNN."""
    set_seed(config.seed)
    with build_train_pipeline(config, accelerator, train_data, labelled) as pipeline:
        total_steps = config.steps or config.recipe.epochs * len(pipeline)
        learner = build_learner(config, labelled or train_data, len(pipeline), total_steps)
        folder = RunFolder(config.out)
        if accelerator.is_main_process:
            folder.create(config.resume)
            announce(config, accelerator, folder, pipeline, learner, total_steps)
        return train(config, accelerator, folder, pipeline, learner, labelled or train_data, val_data, total_steps)


# -------------------------------------------------------------- pipeline


def build_train_pipeline(
    config: Config, accelerator: Accelerator, source: Source, labelled: Source | None = None
) -> Pipeline:
    """Views of the recipe, in our order, this process's share of every batch, in the training precision; labelled
    images beside them for a method that has a use for those.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)

    def build(source: Source, views: Views) -> Pipeline:
        order = create_order(
            source,
            config.shard_group,
            config.recipe.batch_size,
            config.seed,
            accelerator.process_index,
            accelerator.num_processes,
        )
        return build_pipeline(source, views, order, config.pipeline, accelerator.device, dtype, config.workers)

    pipeline = build(source, config.recipe.views)
    if labelled is None or config.recipe.companion is None:
        return pipeline
    return CompanionPipeline(pipeline, build(labelled, config.recipe.companion))


# --------------------------------------------------------------- learner


def build_learner(config: Config, source: Source, steps_per_epoch: int, total_steps: int) -> Learner:
    """Backbone, heads, teacher and objective of the method, with its kind of batch norm."""
    recipe = config.recipe
    batch, rest = divmod(recipe.batch_size // world_size(), config.accumulate)
    splits = batch_norm_splits(recipe.batch_norm)
    if rest:
        raise UserError(
            f"--accumulate {config.accumulate} does not divide the {recipe.batch_size // world_size()} images of a "
            "process's batch."
        )
    if batch < 2:
        raise UserError(
            f"a forward pass of {batch} image has no batch statistics; give --batch-size "
            f"{2 * world_size() * config.accumulate} or more."
        )
    if batch % splits:
        raise UserError(
            f"a forward pass of {batch} images does not fall into the {splits} groups of batch_norm="
            f"{recipe.batch_norm}; give --batch-size {recipe.batch_size // batch * max(1, batch // splits) * splits} "
            "or --set batch_norm=local."
        )
    backbone = create_backbone(recipe.backbone, recipe.image_size)
    classes = int(source.labels.max()) + 1 if source.labels is not None else None
    objective = find_method(recipe.method).objective(
        recipe, feature_size(backbone, recipe.image_size), classes, steps_per_epoch, total_steps
    )
    if config.joint_views is not None:
        objective.joint_forward = config.joint_views
    learner = Learner(backbone, objective, config.seed)
    convert_batch_norm(learner, recipe.batch_norm)
    return learner


def build_optimizer(learner: Learner, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """LARS, SGD or AdamW, with the recipe's rule of which parameters decay."""
    classifier = "objective.classifier" if getattr(learner.objective, "classifier", None) is not None else None
    trust = spec.trust_coefficient if spec.name == "lars" else None
    groups = parameter_groups(
        learner.named_parameters(), spec.rule, spec.weight_decay, trust_coefficient=trust, classifier=classifier
    )
    if spec.name == "lars":
        return LARS(groups, spec.lr, spec.momentum, norm=spec.lars_norm)
    if spec.name == "sgd":
        return torch.optim.SGD(groups, spec.lr, spec.momentum, nesterov=spec.nesterov, fused=True)
    if spec.name == "adamw":
        return torch.optim.AdamW(groups, spec.lr, betas=spec.betas, fused=True)
    raise UserError(f"--set optimizer.name={spec.name} is unknown; use lars, sgd or adamw.")


# ------------------------------------------------------------------ loop


def train(
    config: Config,
    accelerator: Accelerator,
    folder: RunFolder,
    pipeline: Pipeline,
    learner: Learner,
    known_data: Source,
    val_data: Source | None,
    total_steps: int,
) -> int:
    """`known_data`: where kNN looks for neighbours, the training images or the labelled ones beside them."""
    recipe = config.recipe
    learner.to(accelerator.device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(learner, recipe.optimizer)
    learning_rate = schedule(
        recipe.schedule.kind,
        recipe.optimizer.lr,
        total_steps=total_steps,
        steps_per_epoch=len(pipeline),
        **recipe.schedule.options,
    )
    step, state = 0, {}
    if config.resume:
        state = load_checkpoint(config.out)
        step = restore(state, accelerator, learner, optimizer, pipeline)
        if accelerator.is_main_process:
            folder.rewind(step)
            follow_data(config, folder)
    compiling = config.compile if config.compile is not None else accelerator.device.type == "cuda"
    if compiling:
        learner.compile_networks()
    model, optimizer = accelerator.prepare(learner, optimizer)

    start_trackers(accelerator, config)
    with Monitor(folder, accelerator, total_steps, step, config.log_every, state.get("totals")) as monitor:
        judge = OnlineKNN(accelerator, learner, recipe, known_data, val_data, monitor, config.workers)
        baselines = state.get("baselines") or judge.baselines()
        evaluations = evaluation_steps(config.eval_every, len(pipeline), total_steps)
        interrupted = Interrupt(accelerator.num_processes)
        saved_at = time.monotonic()

        learner.train()
        done = step >= total_steps
        while not done:
            for batch in monitor.batches(pipeline):
                lr = learning_rate(step)
                with monitor.compiling() if compiling else nullcontext():
                    losses = training_step(model, learner, optimizer, accelerator, batch, step, lr, config)
                compiling = False
                step += 1
                done = step == total_steps or bool(interrupted)
                monitor.step(step, step / len(pipeline), losses, lr, recipe.batch_size)
                if step in evaluations:
                    judge.score(step, step / len(pipeline))
                if done or checkpoint_due(step, config.checkpoint_every, pipeline, saved_at):
                    with monitor.paused():
                        folder.list_bad(pipeline.source.known_bad)
                        save(config, accelerator, learner, optimizer, pipeline, step, monitor.totals, baselines)
                    saved_at = time.monotonic()
                if done:
                    break
    if step < total_steps:
        monitor.message(f"stopped at step {step} of {total_steps}; continue with: train.py --resume {config.out}")
        return 130
    if accelerator.is_main_process:
        finish(config, folder, learner, pipeline, monitor, baselines, step)
    accelerator.end_training()
    return 0


def training_step(
    model: torch.nn.Module,
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    batch: Batch,
    step: int,
    lr: float,
    config: Config,
) -> dict[str, torch.Tensor]:
    """One optimizer step on one batch; returns the losses of its last forward pass."""
    # Dropout and the like depend on the step and the process alone, so a resumed run repeats them.
    torch.manual_seed(stream_key(config.seed, step, accelerator.process_index) >> 1)
    learner.begin_step(step)
    for group in optimizer.param_groups:
        group["lr"] = lr
    for part, last in micro_batches(batch, config.accumulate):
        with nullcontext() if last else accelerator.no_sync(model):
            labelled = part.companion
            losses = model(
                part.views, part.params, part.label, labelled and (labelled.views["labelled"], labelled.label)
            )
            accelerator.backward(losses["loss"] / config.accumulate)
    if config.recipe.optimizer.clip_norm:
        accelerator.clip_grad_norm_(model.parameters(), config.recipe.optimizer.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    learner.end_step()
    return losses


def micro_batches(batch: Batch, parts: int) -> Iterator[tuple[Batch, bool]]:
    """The batch in `parts` equal pieces, and whether a piece is the last."""
    size = len(batch.index) // parts
    for i in range(parts):
        yield batch[i * size : (i + 1) * size], i == parts - 1


def evaluation_steps(every: int | None, steps_per_epoch: int, total_steps: int) -> set[int]:
    """When kNN is measured, in steps: every `every` epochs (None: about ten times a run), and at the end; 0: never."""
    if every == 0:
        return set()
    stride = every * steps_per_epoch if every else max(steps_per_epoch, total_steps // 10)
    return set(range(stride, total_steps + 1, stride)) | {total_steps}


def checkpoint_due(step: int, every: int | None, pipeline: Pipeline, saved_at: float) -> bool:
    """Every `every` steps, or at the end of an epoch if the last checkpoint is a minute old."""
    return step % every == 0 if every else pipeline.seen == 0 and time.monotonic() - saved_at > 60


def save(
    config: Config,
    accelerator: Accelerator,
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    pipeline: Pipeline,
    step: int,
    totals: dict[str, float],
    baselines: dict[str, float],
) -> None:
    """A checkpoint of everything that changes during a run; UserError if the network is no longer finite."""
    if not all(bool(p.isfinite().all()) for p in learner.parameters()):
        raise UserError(
            f"the run diverged: its weights are not finite at step {step}, so nothing was saved or exported; "
            "start again with a lower --lr, a longer warm-up, or --precision fp32."
        )
    if accelerator.is_main_process:
        save_checkpoint(
            config.out,
            step,
            {
                "step": step,
                "learner": learner.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
                "pipeline": pipeline.state_dict(),
                "totals": totals,
                "baselines": baselines,
            },
            config.keep,
        )


def restore(
    state: dict, accelerator: Accelerator, learner: Learner, optimizer: torch.optim.Optimizer, pipeline: Pipeline
) -> int:
    """Put everything back as the checkpoint has it; returns its step."""
    try:
        pipeline.load_state_dict(state["pipeline"])
        learner.load_state_dict(state["learner"])
        optimizer.load_state_dict(state["optimizer"])
        if accelerator.scaler and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--resume: the checkpoint does not belong to this run ({str(error).splitlines()[0][:200]})."
        ) from error
    return state["step"]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
