"""Watches the loop: time waiting for data, images per second, the metrics file, the progress bar, the trackers."""

from __future__ import annotations

import math
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from saccade.base.errors import Diverged
from saccade.base.machine import peak_memory
from saccade.models.gather import all_reduce_sum, world_size
from saccade.pipelines.pipeline import Batch, Pipeline
from saccade.runs.checkpoint import checkpoints
from saccade.runs.collapse import Watch, spread
from saccade.runs.folder import RunFolder
from saccade.runs.ranks import LATE
from saccade.runs.screen import Screen
from saccade.runs.session import SKIPS, Session

BASELINES = ("raw_pixel_knn_top1", "untrained_knn_top1")  # what a backbone is judged against, measured before step 1


class Monitor:
    """Counts only training time: evaluation and checkpoints happen inside `paused()`.

    Losses stay on the device until a line is due, so a GPU is not made to wait at every step.
    """

    def __init__(self, folder: RunFolder, session: Session, done: dict[str, float] | None = None) -> None:
        self.folder, self._session, self._accelerator = folder, session, session.accelerator
        self._first = session.steps + 1
        nothing = {"seconds": 0.0, "images": 0, "waited": 0.0, "stood": 0.0}
        self.totals = nothing | dict(done or {})  # over the whole run, resumed parts included
        self._logged = dict(self.totals)  # the totals at the last line written
        self._mark = time.perf_counter()
        self.knn: float | None = None
        self._recent: deque[tuple[int, torch.Tensor]] = deque(maxlen=LATE + 1)
        self._parts: tuple[str, ...] = ()
        self._screen = Screen(session.config.log, session.total_steps, session.steps, self._accelerator.is_main_process)
        self._watch = Watch(session.total_steps)

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
    def saving(self) -> Iterator[None]:
        """As `paused`; Diverged where a step of late went wrong, which nobody has read yet."""
        if self._recent and bool(torch.stack([values[0] for _, values in self._recent]).any()):
            raise self.diverged(together=False)
        with self.paused():
            yield

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
        """Count a finished optimizer step; on the first, the last and every `log_every`-th write a line."""
        session, step = self._session, self._session.steps
        values = [session.diverged, session.gradient_norm, *(v.detach() for v in losses.values())]
        self._recent.append((step, torch.stack([v.float() for v in values])))
        self._parts = tuple(losses)
        self.totals["images"] += session.config.recipe.batch_size
        self._screen.step()
        if step % session.config.log_every and step not in (self._first, session.total_steps):
            return
        values = self._recent[-1][1][1:]
        if self._accelerator.num_processes > 1:
            values = self._accelerator.reduce(values, "mean")
            assert isinstance(values, torch.Tensor)
        norm, *values = values.tolist()  # the one synchronisation with the device
        named = dict(zip(losses, values, strict=True))
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
                "grad_norm": norm,
                "lr": session.learning_rate(step - 1),
                "images_per_second": round(rate, 1),
                "data_wait": round(wait, 4),
                **self._features(step),
                "memory_gb": round(peak_memory(self._accelerator.device) / 1e9, 3),
                "time": round(time.time(), 3),
                "rank": self._accelerator.process_index,
                "host": socket.gethostname(),
            }
        )
        shown = {"loss": f"{named['loss']:.3f}", "img/s": f"{rate:.0f}", "wait": f"{wait:.0%}"}
        self._screen.progress(step, shown | ({"kNN": f"{self.knn:.1f}%"} if self.knn is not None else {}))

    def _features(self, step: int) -> dict[str, float]:
        """How far this process's features are spread, where that is due; a warning where they have fallen together."""
        features = self._session.learner.features
        if features is None or not self._accelerator.is_main_process or not self._watch.due(step):
            return {}
        std, rank = spread(features)
        if warning := self._watch.look(std, rank):
            self._screen.message(warning, sys.stderr)
        return {"feature_std": round(std, 5), "feature_rank": round(rank, 3)}

    def diverged(self, together: bool = True) -> Diverged:
        """How the step that went wrong did so, and how to go on. together: asked on every process at once."""
        steps, values = [step for step, _ in self._recent], torch.stack([v for _, v in self._recent])
        if together:
            values = all_reduce_sum(values) / world_size()
        rows = zip(steps, values.tolist(), strict=True)
        step, (_, norm, *parts) = next((step, row) for step, row in rows if row[0])
        told = ", ".join(f"{name} {value:.4g}" for name, value in zip(self._parts, parts, strict=True))
        if self._accelerator.scaler is not None and all(map(math.isfinite, parts)):
            told += f", in fp16, whose gradients overflowed in each of {SKIPS} steps however small their scale"
        config = self._session.config
        kept = [path for path in checkpoints(config.out) if path.name < f"step-{step:08d}"]
        lr = f"{config.recipe.optimizer.lr / 10:.1g}"
        ways = "start again with a lower --lr, a longer warm-up, or --precision fp32"
        if kept:
            ways = (
                f"the last good checkpoint is {kept[-1]}: go on from it with --resume {config.out} --lr {lr} "
                f"--allow-changes (it was {config.recipe.optimizer.lr:.4g}), or {ways}"
            )
        return Diverged(
            f"the run diverged at step {step}: {told}, gradient norm {norm:.4g}; nothing was saved of it; {ways}."
        )

    def log(self, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl and of the trackers."""
        if self._accelerator.is_main_process:
            self._screen.record(record)
            self.folder.log(record)
            self._accelerator.log({k: v for k, v in record.items() if isinstance(v, int | float)}, step=record["step"])

    def scored(self, step: int) -> bool:
        """Whether kNN of this step is in metrics.jsonl."""
        return any(record.get("step") == step and "knn_top1" in record for record in self.folder.metrics())

    def message(self, text: str) -> None:
        """Print above the progress bar, once."""
        self._screen.message(text)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._screen.close()

    def _lap(self) -> None:
        now = time.perf_counter()
        self.totals["seconds"] += now - self._mark
        self._mark = now
