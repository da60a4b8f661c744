"""A session without train.py's loop: the step that is timed is the step that trains."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from saccade.pipelines.data import open_data
from saccade.pipelines.pipeline import Batch
from saccade.pipelines.sources import Source
from saccade.runs.config import resolve
from saccade.runs.flags import check_flags, labelled_beside, parse_flags
from saccade.runs.ranks import start_processes
from saccade.runs.session import Session, start_accelerator


class Trainer:
    """The run that `train.py FLAGS` would start, on `source`.

    plain: as a user without us would write it: not compiled, not channels-last; the losses are ours. fitting: is shown
    the session and gives the batch that it is to have.
    """

    def __init__(
        self,
        argv: list[str],
        source: Source | None = None,
        plain: bool = False,
        prog: str = "tools.bench",
        fitting: Callable[[Session], int] | None = None,
    ) -> None:
        flags = parse_flags(argv, prog)
        check_flags(flags)
        start_processes(flags.device)
        self.source = source or open_data(flags.data, None, flags.data_dir, unlabelled=labelled_beside(flags))[0]
        self.config = resolve(flags, self.source, Path("."))
        accelerator = start_accelerator(self.config.device, self.config.precision)
        self.session = Session(self.config, accelerator, self.source, plain=plain)
        if fitting and (batch := fitting(self.session)) != self.config.recipe.batch_size:
            self.session.pipeline.close()
            self.config = replace(self.config, recipe=replace(self.config.recipe, batch_size=batch))
            self.session = Session(self.config, accelerator, self.source, plain=plain)
        self.session.prepare()
        self.device, self.precision, self.compiled = accelerator.device, self.session.precision, self.session.compiles
        self.pipeline, self.learner, self.model = self.session.pipeline, self.session.learner, self.session.model
        self._first = True

    def step(self, batch: Batch) -> int:
        """One optimizer step; returns the images in it. The rate is small, so that no loss leaves float range."""
        start = time.perf_counter()
        self.session.step(batch, lr=1e-4)
        self.session.steps %= self.session.total_steps  # measuring may take longer than the run
        if self._first and self.compiled:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            what = f"{self.config.recipe.method} {self.config.recipe.backbone.name}"
            print(f"compiled {what} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        self._first = False
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
