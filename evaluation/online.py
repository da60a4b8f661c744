"""kNN while a run trains: raw pixels and the untrained backbone first, then the trained one every few epochs."""

from __future__ import annotations

from saccade.evaluation.features import Features, extract, raw_pixels
from saccade.evaluation.knn import fitting_k, knn_accuracy
from saccade.models.backbone import shown_share
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.holdout import hold_out, may_hold_out, once
from saccade.runs.monitor import BASELINES, Monitor
from saccade.runs.session import Session

NEIGHBOURS, TEMPERATURE, MAX_IMAGES = 20, 0.07, 10_000


class OnlineKNN:
    """Cosine-weighted kNN (k=20, T=0.07) of the evaluation set against at most 10,000 training images.

    Without evaluation data the labelled training images are tested: each against all others where they are few, else a
    fifth of each class. Runs on the main process; without labels it measures nothing and says so once. `monitor` is
    given the result and keeps the time out of the training rate.
    """

    def __init__(self, session: Session, val_data: Source | None, monitor: Monitor) -> None:
        self._session, self._accelerator, self._monitor = session, session.accelerator, monitor
        train_data, self._tested = session.known_data, ""
        if val_data is None and may_hold_out(train_data):
            train_data, val_data, self._tested = hold_out(train_data, alone=True)
        self._train, self._val = once(train_data.labelled()), None if val_data is None else val_data.labelled()
        self._alone = val_data is train_data
        if self._alone:
            self._val = self._train
        self._why_not = (
            "there is no evaluation data (--val-data)"
            if val_data is None
            else "the images have no labels"
            if train_data.labels is None or val_data.labels is None
            else None
        )

    def baselines(self) -> dict[str, float]:
        """Top-1 (%) of raw pixels and of the backbone as it stands, logged as step 0."""
        if self._why_not:
            self._monitor.message(f"kNN is not measured: {self._why_not}")
            return {}
        if not self._accelerator.is_main_process:
            return {}
        if self._tested:
            self._monitor.message(
                f"kNN: {self._tested}; they are trained on all the same, but no label reaches the backbone"
            )
        elif len(self._train) < NEIGHBOURS:
            self._monitor.message(
                f"kNN takes all {len(self._train)} training images as neighbours, fewer than {NEIGHBOURS}"
            )
        with self._monitor.paused():
            pixels = [raw_pixels(source, max_images=MAX_IMAGES) for source in self._sets]
            tops = self._top1(*pixels), self._backbone_top1()
            found: dict[str, float] = dict(zip(BASELINES, tops, strict=True))
        how = {"knn_test": self._tested} if self._tested else {}
        self._monitor.log({"step": 0, "epoch": 0.0, "knn_top1": found["untrained_knn_top1"], **found, **how})
        return found

    def make_up(self) -> None:
        """Measure what a stop left out, if it did."""
        if not self._monitor.scored(self._session.steps):
            self.score()

    def score(self) -> None:
        """Measure the backbone now and log it."""
        if self._why_not or not self._accelerator.is_main_process:
            return
        with self._monitor.paused():
            self._monitor.knn = self._backbone_top1()
        step, epoch = self._session.steps, round(self._session.epoch, 4)
        self._monitor.log({"step": step, "epoch": epoch, "knn_top1": self._monitor.knn})

    def _backbone_top1(self) -> float:
        recipe = self._session.config.recipe
        features = [
            extract(
                self._session.learner.backbone,
                source,
                recipe.image_size,
                recipe.views.mean,
                recipe.views.std,
                shown_share(recipe.image_size),
                device=self._accelerator.device,
                workers=self._session.config.workers,
                max_images=MAX_IMAGES,
            )
            for source in self._sets
        ]
        return self._top1(*features)

    @property
    def _sets(self) -> tuple[Source, ...]:
        return (self._train,) if self._alone or self._val is None else (self._train, self._val)

    def _top1(self, train: Features, val: Features | None = None) -> float:
        test, device = val or train, self._accelerator.device
        k = fitting_k(train.labels, NEIGHBOURS, val is None)
        found = knn_accuracy(
            train.features, train.labels, test.features, test.labels, (k,), TEMPERATURE, "cosine", device, val is None
        )
        return found[k].top1
