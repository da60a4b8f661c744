"""train.py's own parts without its loop: the step that is timed is the step that trains."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from saccade import train
from saccade.pipelines.data import open_data
from saccade.pipelines.pipeline import Batch
from saccade.pipelines.sources import Source
from saccade.runs.config import check_flags, parse_flags, resolve


class Trainer:
    """The run that `train.py FLAGS` would start, on `source`.

    plain: as a user without us would write it: not compiled, not channels-last; the losses are ours.
    """

    def __init__(
        self, argv: list[str], source: Source | None = None, plain: bool = False, prog: str = "tools.bench"
    ) -> None:
        flags = parse_flags(argv, prog)
        check_flags(flags)
        self.accelerator = train.start_accelerator(flags.device, flags.precision)
        self.source = source or open_data(flags.data, None, flags.data_dir)[0]
        self.config = resolve(flags, self.source, Path("."))
        self.device, mixed = self.accelerator.device, self.accelerator.mixed_precision
        self.precision = "fp32" if mixed == "no" else mixed
        self.pipeline = train.build_train_pipeline(self.config, self.accelerator, self.source)
        self.total_steps = max(1, self.config.recipe.epochs * len(self.pipeline))
        learner = train.build_learner(self.config, self.source, len(self.pipeline), self.total_steps)
        learner.to(self.device).to(memory_format=torch.contiguous_format if plain else torch.channels_last)
        optimizer = train.build_optimizer(learner, self.config.recipe.optimizer)
        wanted = self.config.compile if self.config.compile is not None else self.device.type == "cuda"
        self.compiled = wanted and not plain
        if self.compiled:
            learner.compile_networks()
        self.learner = learner.train()
        self.model, self.optimizer = self.accelerator.prepare(learner, optimizer)
        self.steps = 0

    def step(self, batch: Batch) -> int:
        """One optimizer step; returns the images in it. The rate is small, so that no loss leaves float range."""
        start = time.perf_counter()
        train.training_step(
            self.model,
            self.learner,
            self.optimizer,
            self.accelerator,
            batch,
            self.steps % self.total_steps,
            1e-4,
            self.config,
        )
        if self.steps == 0 and self.compiled:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            print(
                f"compiled {self.config.recipe.method} {self.config.recipe.backbone.name} in "
                f"{time.perf_counter() - start:.0f} s",
                file=sys.stderr,
            )
        self.steps += 1
        return len(batch.index)

    def repeat(self, batch: Batch) -> Iterator[int]:
        while True:
            yield self.step(batch)

    def as_batch(self, views: list[Tensor], label: Tensor) -> Batch:
        """What torchvision's loader made, as the learner takes it: no drawn parameters are known."""
        views = [view.to(self.device, non_blocking=True) for view in views]
        return Batch(
            dict(zip(self.config.recipe.views.names, views, strict=True)),
            {},
            torch.arange(len(label)),
            label.to(self.device, non_blocking=True),
        )
