"""kNN while a run trains: raw pixels and the untrained backbone first, then the trained one every few epochs, and at
the end whether it learned. Without labels: whether an image's other view is found, before and after."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from saccade.evaluation.features import Features, at_most, extract, mode, raw_pixels
from saccade.evaluation.held import Held, held, kept_as
from saccade.evaluation.intervals import wilson
from saccade.evaluation.knn import NEIGHBOURS, TEMPERATURE, fitting_k, knn_ranks
from saccade.evaluation.own_view import MAX_IMAGES as MAX_OWN
from saccade.evaluation.own_view import RAW, own_view_found
from saccade.evaluation.verdict import Tried, read_tried, told_spread, tried, verdict
from saccade.pipelines.sources import BadImage, Source
from saccade.pipelines.sources.fingerprint import spread
from saccade.pipelines.sources.holdout import LEAST, hold_out, may_hold_out, once
from saccade.runs.flags import as_typed
from saccade.runs.monitor import BASELINES, Monitor
from saccade.runs.session import Session

MAX_IMAGES = 10_000
SHARE = 0.2  # of a run's passes through its network that measuring may take, where --eval-every is left out
LEAST_IMAGES = 25, 1_000  # of a set, however short the run: as many as FREE pays for
FREE = 4e11  # FLOP of all measuring together: seconds on a CPU of two cores
READ = 1e9  # pixels read for it, once: seconds too, at 7 ns for one of a JPEG and 15 for one of a PNG
_PASSES = 2  # forward passes that a view of a training image costs: three where it is trained on, one of a teacher's
BOUND = f"at most {SHARE:.0%} of the run's passes through its network, or some seconds; --eval-every N: as asked"
OTHERS = ("raw_pixels", "untrained")  # in the order of BASELINES
OWN_VIEW = "an image's own other view found among all, which is what was trained; labels would say more"
VERDICT = "verdict.json"
KEPT = "baselines.json"  # in the run folder: which test images each of them had right


class OnlineKNN:
    """Cosine-weighted kNN (k=20, T=0.07) of at most 10,000 images of the evaluation set against as many to train on.

    They are chosen once and, where memory holds them, read once. A short run takes fewer, and less often: `times` is
    how often its length pays for (None: as asked).

    Without evaluation data the labelled training images are tested: each against all others where they are few, else a
    fifth of each class. Runs on the main process; without labels it measures nothing and says so once. `monitor`, set
    before anything is measured, is given the result and keeps the time out of the training rate.
    """

    monitor: Monitor

    def __init__(self, session: Session, val_data: Source | None) -> None:
        self._session, self._accelerator = session, session.accelerator
        train_data, self._tested = session.known_data, ""
        if val_data is None and may_hold_out(train_data):
            train_data, val_data, self._tested = hold_out(train_data, alone=True)
        self._alone = val_data is train_data
        whole = [once(train_data.labelled())]
        if val_data is not None and not self._alone:
            whole.append(val_data.labelled())
        self._budget = budget = SHARE * _passes(session) if session.config.eval_every is None else None
        most = self._affordable(len(whole), MAX_IMAGES)
        self._sets = [at_most(source, most) for source in whole]
        self.times = None if budget is None else max(1, int(budget / sum(map(len, self._sets))) - 1)  # and the start
        counts = [f"{len(few):,} of {len(all_):,}" for few, all_ in zip(self._sets, whole, strict=True)]
        fewer = most < MAX_IMAGES and any(most < len(all_) for all_ in whole)
        self._fewer = f"kNN takes {' and '.join(counts)} images: {BOUND}" if fewer else ""
        self._others: dict[str, Tried] = {}
        self._trained: Tried | None = None  # of the last score
        self._why_not = (
            "there is no evaluation data (--val-data)"
            if val_data is None
            else "--eval-every 0"
            if session.config.eval_every == 0
            else "the images have no labels"
            if train_data.labels is None or val_data.labels is None
            else None
        )

    def _affordable(self, passes: int, most: int) -> int:
        """How many images may each be passed through the network so often, before the run and after: at most `most`."""
        if self._budget is None:
            return most
        fewest, enough = LEAST_IMAGES
        if self._accelerator.device.type == "cpu":
            free = min(FREE / _flop(self._session) / 2, READ / _pixels(self._session.known_data))
            enough = min(enough, max(fewest, int(free / passes)))
        return min(most, max(enough, int(self._budget / passes / 2)))

    def memory(self) -> float:
        """Bytes of the images that it will keep, about."""
        size = self._session.config.recipe.image_size
        return 0.0 if self._why_not else sum(kept_as(source, size)[1] for source in self._sets)

    def baselines(self) -> dict[str, float]:
        """Top-1 (%) of raw pixels and of the backbone as it stands, logged as step 0; {} without labels."""
        if not self._accelerator.is_main_process:
            return {}
        if self._why_not:
            self.monitor.message(f"kNN is not measured: {self._why_not}")
            if self._judged_by_views:
                with self.monitor.paused():
                    self._keep(dict(zip(OTHERS, self._own_views(RAW, self._backbone), strict=True)))
            return {}
        if self._tested:
            self.monitor.message(
                f"kNN: {self._tested}; they are trained on all the same, but no label reaches the backbone"
            )
        elif len(self._sets[0]) < NEIGHBOURS:
            self.monitor.message(
                f"kNN takes all {len(self._sets[0])} training images as neighbours, fewer than {NEIGHBOURS}"
            )
        if self._fewer:
            self.monitor.message(self._fewer)
        with self.monitor.paused():
            pixels = [each.pixels or raw_pixels(each.images) for each in self._held]
            self._keep(dict(zip(OTHERS, (self._tried(*pixels), self._backbone_tried()), strict=True)))
            found: dict[str, float] = dict(zip(BASELINES, map(_top1, self._others.values()), strict=True))
        how: dict[str, Any] = {"knn_test": self._tested} if self._tested else {}
        how |= _interval(self._others["untrained"])
        self.monitor.log({"step": 0, "epoch": 0.0, "knn_top1": found["untrained_knn_top1"], **found, **how})
        return found

    def make_up(self) -> None:
        """Measure what a stop left out, if it did."""
        if not self.monitor.scored(self._session.steps):
            self.score()

    def score(self) -> None:
        """Measure the backbone now and log it."""
        if self._why_not or not self._accelerator.is_main_process:
            return
        with self.monitor.paused():
            self._trained = self._backbone_tried()
        self.monitor.knn = _top1(self._trained)
        step, epoch = self._session.steps, round(self._session.epoch, 4)
        self.monitor.log({"step": step, "epoch": epoch, "knn_top1": self.monitor.knn, **_interval(self._trained)})

    def conclude(self) -> None:
        """After the last step: say whether the backbone learned, and keep it as verdict.json."""
        if why_not := self._no_verdict():
            self.monitor.message(f"verdict: none, {why_not}")
            return
        if self._why_not:
            (trained,) = self._own_views(self._backbone)
            measure, tested = OWN_VIEW, f"{len(trained.right):,} training images"
        else:
            trained = self._trained or self._backbone_tried()
            tested = f"{len(trained.right):,} " + ("images, each against all others" if self._alone else "test images")
            measure = "kNN top-1"
        start = "the starting backbone" if self._session.config.init else "the untrained backbone"
        others = dict(zip(("raw pixels", start), self._others.values(), strict=True))
        if (before := len(self._others["untrained"].right)) != len(trained.right):
            self.monitor.message(f"verdict: none, {before:,} images were tested at the start and now {tested}")
            return
        found = verdict(measure, tested, trained, dict(reversed(others.items())))
        self.monitor.folder.write_json(
            VERDICT, {**found, "test": self._tested, "command": as_typed(self._session.config.flags)}
        )
        self.monitor.message(f"verdict: {found['sentence']}")
        self.monitor.message(f"features: {told_spread(found['spread'])}")

    def _no_verdict(self) -> str | None:
        """Why there can be none."""
        if self._session.config.eval_every == 0:
            return "--eval-every 0 leaves it out"
        if self._why_not and len(self._session.source) < LEAST:
            return f"{len(self._session.source)} images without labels are too few to tell"
        self._others = self._others or self._kept()
        return None if self._others else f"{self.monitor.folder.path / KEPT} of the start is missing or damaged"

    @property
    def _judged_by_views(self) -> bool:
        return self._session.config.eval_every != 0 and len(self._session.source) >= LEAST

    @property
    def _backbone(self) -> nn.Module:
        return self._session.learner.backbone

    def _own_views(self, *backbones: nn.Module) -> list[Tried]:
        config = self._session.config
        few = at_most(self._session.source, self._affordable(2, MAX_OWN))
        found = own_view_found(backbones, few, config.recipe.views, self._accelerator.device, config.workers)
        return [tried(right, features) for right, features in zip(*found, strict=True)]

    def _keep(self, others: dict[str, Tried]) -> None:
        """For the verdict, in this process or one that resumes."""
        self._others = others
        self.monitor.folder.write_json(KEPT, {name: other.to_json() for name, other in others.items()})

    def _kept(self) -> dict[str, Tried]:
        try:
            record = self.monitor.folder.read_json(KEPT)
            return {name: read_tried(record[name]) for name in OTHERS}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _backbone_tried(self) -> Tried:
        recipe = self._session.config.recipe
        features = [
            extract(
                self._backbone,
                each.images,
                recipe.image_size,
                recipe.views.mean,
                recipe.views.std,
                each.share,
                device=self._accelerator.device,
                executor=each.executor,
                workers=self._session.config.workers,
            )
            for each in self._held
        ]
        return self._tried(*features)

    @cached_property
    def _held(self) -> list[Held]:
        config, device = self._session.config, self._accelerator.device
        shown = (config.recipe.image_size, device, config.workers)
        return [held(source, self._session.known_data, *shown) for source in self._sets]

    def _tried(self, train: Features, val: Features | None = None) -> Tried:
        test, device = val or train, self._accelerator.device
        k = fitting_k(train.labels, NEIGHBOURS, val is None)
        found = knn_ranks(
            train.features, train.labels, test.features, test.labels, (k,), TEMPERATURE, "cosine", device, val is None
        )
        return tried(found[k] == 0, test.features)


def _top1(of: Tried) -> float:
    return 100.0 * of.right.sum().item() / len(of.right)


def _interval(of: Tried) -> dict[str, float]:
    """Of the top-1, for metrics.jsonl and its picture."""
    found = wilson(int(of.right.sum()), len(of.right))
    return {"knn_low": round(found.low, 3), "knn_high": round(found.high, 3)}


def _passes(session: Session) -> float:
    """Images times forward passes of a whole run, a smaller view counted by its area."""
    recipe = session.config.recipe
    views = sum((view.size / recipe.image_size) ** 2 for view in recipe.views)
    return _PASSES * views * session.total_steps * recipe.batch_size


def _pixels(source: Source) -> float:
    """Of an image, on average, by a few headers."""
    sizes = []
    for i in spread(len(source), 16):
        with suppress(BadImage):
            sizes.append(np.prod(source.size(i)))
    return float(np.mean(sizes)) if sizes else 1.0


def _flop(session: Session) -> int:
    """Of one image's forward pass."""
    recipe, backbone = session.config.recipe, session.learner.backbone
    image = torch.zeros(1, len(recipe.views.mean), recipe.image_size, recipe.image_size)
    with FlopCounterMode(display=False) as counter, mode(backbone, False), torch.no_grad():
        backbone(image)
    return max(1, counter.get_total_flops())
