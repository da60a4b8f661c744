"""Watches the loop: time waiting for data, images per second, the metrics file, the progress bar, the trackers."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from saccade.base.errors import UserError
from saccade.pipelines.pipeline import Batch, Pipeline
from saccade.runs.folder import RunFolder
from saccade.runs.session import Session

BASELINES = ("raw_pixel_knn_top1", "untrained_knn_top1")  # what a backbone is judged against, measured before step 1


class Monitor:
    """Counts only training time: evaluation and checkpoints happen inside `paused()`.

    Losses stay on the device until a line is due, so a GPU is not made to wait at every step.
    """

    def __init__(self, folder: RunFolder, session: Session, done: dict[str, float] | None = None) -> None:
        self._folder, self._session, self._accelerator = folder, session, session.accelerator
        self._first = session.steps + 1
        self.totals = dict(
            done or {"seconds": 0.0, "images": 0, "waited": 0.0}
        )  # over the whole run, resumed parts included
        self._logged = dict(self.totals)  # the totals at the last line written
        self._mark = time.perf_counter()
        self.knn: float | None = None
        self._bar = tqdm(
            total=session.total_steps,
            initial=session.steps,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            disable=not session.accelerator.is_main_process,
            mininterval=0.5,
        )

    def batches(self, pipeline: Pipeline) -> Iterator[Batch]:
        """The pipeline's batches, the time spent waiting for each counted."""
        iterator = iter(pipeline)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self.totals["waited"] += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside is not training time."""
        self._lap()
        try:
            yield
        finally:
            self._mark = time.perf_counter()

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Around the first step of a compiled run, which is not training time: says how long compiling took."""
        self.message(
            "compiling the networks for the first step; later runs with the same shapes take it from the cache ..."
        )
        start = time.perf_counter()
        with self.paused():
            yield
            if self._accelerator.device.type == "cuda":
                torch.cuda.synchronize(self._accelerator.device)
        self.message(f"compiled in {time.perf_counter() - start:.0f} s")

    def step(self, losses: dict[str, torch.Tensor]) -> None:
        """Count a finished optimizer step; on the first, the last and every `log_every`-th write a line.

        Raises UserError where the loss of such a step is infinite or not a number.
        """
        session, step = self._session, self._session.steps
        self.totals["images"] += session.config.recipe.batch_size
        self._bar.update(1)
        if step % session.config.log_every and step not in (self._first, session.total_steps):
            return
        values = torch.stack([v.detach().float() for v in losses.values()])
        if self._accelerator.num_processes > 1:
            values = self._accelerator.reduce(values, "mean")
            assert isinstance(values, torch.Tensor)
        named = dict(zip(losses, values.tolist(), strict=True))  # the one synchronisation with the device
        self._lap()
        spent = {name: self.totals[name] - self._logged[name] for name in self.totals}
        self._logged = dict(self.totals)
        rate = spent["images"] / max(spent["seconds"], 1e-9)
        wait = min(1.0, spent["waited"] / max(spent["seconds"], 1e-9))
        self.log(
            {
                "step": step,
                "epoch": round(session.epoch, 4),
                **named,
                "lr": session.learning_rate(step - 1),
                "images_per_second": round(rate, 1),
                "data_wait": round(wait, 4),
            }
        )
        shown = {"loss": f"{named['loss']:.3f}", "img/s": f"{rate:.0f}", "wait": f"{wait:.0%}"}
        self._bar.set_postfix(shown | ({"kNN": f"{self.knn:.1f}%"} if self.knn is not None else {}))
        if not math.isfinite(named["loss"]):  # reduced over the processes: all of them stop here
            raise UserError(
                f"the run diverged: its loss is {named['loss']} at step {step}, and nothing was saved of it; "
                "start again with a lower --lr, a longer warm-up, or --precision fp32, or go on from a checkpoint: "
                f"--resume {session.config.out} --lr ... --allow-changes."
            )

    def log(self, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl and of the trackers."""
        if self._accelerator.is_main_process:
            self._folder.log(record)
            self._accelerator.log({k: v for k, v in record.items() if isinstance(v, int | float)}, step=record["step"])

    def scored(self, step: int) -> bool:
        """Whether kNN of this step is in metrics.jsonl."""
        return any(record.get("step") == step and "knn_top1" in record for record in self._folder.metrics())

    def message(self, text: str) -> None:
        """Print above the progress bar, once."""
        if self._accelerator.is_main_process:
            tqdm.write(text)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _lap(self) -> None:
        now = time.perf_counter()
        self.totals["seconds"] += now - self._mark
        self._mark = now
