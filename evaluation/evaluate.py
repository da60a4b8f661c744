"""Runs a protocol on a backbone: the one engine behind every row of `protocols.PROTOCOLS`."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import nn

from saccade.base.errors import UserError
from saccade.evaluation.accuracy import Accuracy, accuracy
from saccade.evaluation.features import Features, extract, forward_batches
from saccade.evaluation.knn import fitting_k, knn_accuracy
from saccade.evaluation.linear import Preparation, Probe, ProbeResult, cached_batches, train_probe
from saccade.evaluation.protocols import KNN, Protocol
from saccade.evaluation.quality import effective_rank, feature_std
from saccade.evaluation.subject import Subject, online_classifier, with_encoder
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.order import Order
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.holdout import once
from saccade.pipelines.views import View, Views


@dataclass(frozen=True)
class Settings:
    """What a caller may choose. `epochs`, `lr`, `k`, `batch_norm_drift` leave the protocol, and the result says so."""

    device: str = "cpu"
    batch_size: int = 256  # images per forward pass; never a protocol's own batch
    precision: str = "fp32"
    executor: str = "auto"
    workers: int | None = None
    seed: int = 0
    epochs: int | None = None
    lr: float | None = None
    k: int | None = None
    batch_norm_drift: bool = False
    progress: bool = False
    crop_pct: float | None = None
    interpolation: str | None = None


class Evaluation:
    """One protocol on one subject and data set. `result()` does the work; the features stay for plots and files."""

    def __init__(
        self,
        protocol: Protocol,
        subject: Subject,
        train: Source | None,
        test: Source,
        data: str = "",
        settings: Settings = Settings(),
    ) -> None:
        self.subject, missing = with_encoder(subject, protocol.encoder)
        self.protocol, self.settings, self.test = protocol, settings, test.labelled()
        self._train = self.test if train is test else None if train is None else once(train.labelled())
        self.accounts = {k: s.account.to_json() for k, s in (("train", train), ("test", test)) if s is not None}
        self.fraction = settings.crop_pct or protocol.fraction(data, self.subject.image_size)
        self.notes = [*([missing] if missing else []), *protocol.notes]
        used = {"epochs": protocol.probe, "lr": protocol.probe, "k": protocol.knn}
        given = {name: getattr(settings, name) for name in used if getattr(settings, name) is not None}
        self.deviations = [f"{name} = {value}" for name, value in given.items() if used[name]]
        self.notes += [f"--{name} changes nothing in this protocol" for name in given if not used[name]]
        for name in ("crop_pct", "interpolation"):
            if getattr(settings, name) is not None:
                self.deviations.append(f"{name} = {getattr(settings, name)}")
        if settings.batch_norm_drift and (
            not protocol.probe or not protocol.probe.crop or protocol.probe.prepare != "raw"
        ):
            raise UserError(f"--batch-norm-drift is a quirk of --protocol rsa-small; leave it out of {protocol.name}.")
        self.classes = max(_classes(source) for source in (self._train, self.test) if source is not None)
        self.backbone = self.subject.backbone.to(settings.device)
        self.probe = self._resolve(protocol.probe, data) if protocol.probe else None

    def result(self) -> dict:
        """The protocol's numbers (percent), counts, and what must be said of them; plain values."""
        started = time.perf_counter()
        measured: dict = {}
        if self.protocol.knn:
            found = self._knn(self.protocol.knn)
            measured |= _named(next(iter(found.values())))
            measured["knn"] = {str(k): _named(a) for k, a in found.items()}
        if self.protocol.online:
            head = online_classifier(self.subject)
            with torch.no_grad():
                measured |= _named(accuracy(head(self.test_features.features), self.test_features.labels))
        if self.probe:
            measured |= _probed(self._train_probe(self.probe), self.probe.printed)
        subject, features = self.subject, self.test_features.features
        return {
            "protocol": self.protocol.name,
            **measured,
            "n_train": len(self._train) if self._train else 0,
            "n_test": len(self.test),
            "classes": self.classes,
            "backbone": subject.architecture,
            "network": subject.network,
            "image_size": subject.image_size,
            "crop_fraction": round(self.fraction, 4),
            "mean": list(subject.mean),
            "std": list(subject.std),
            "read_as": list(subject.read),
            "interpolation": self.settings.interpolation
            or (self.protocol.knn.interpolation if self.protocol.knn else "bilinear"),
            "data": self.accounts,
            "features": features.shape[1],
            "feature_std": round(feature_std(features), 4),
            "effective_rank": round(effective_rank(features), 2),
            "seed": self.settings.seed,
            "deviations": self.deviations,
            "notes": self.notes,
            "seconds": round(time.perf_counter() - started, 2),
        }

    @property
    def train(self) -> Source:
        """The labelled training images; UserError where a protocol that needs them was given none."""
        if self._train is None:
            raise UserError(f"--protocol {self.protocol.name} needs training images; give --data.")
        return self._train

    @cached_property
    def train_features(self) -> Features:
        return self.test_features if self.train is self.test else self._extract(self.train)

    @cached_property
    def test_features(self) -> Features:
        return self._extract(self.test)

    def _extract(self, source: Source, interpolation: str = "bilinear", backbone: nn.Module | None = None) -> Features:
        s, subject = self.settings, self.subject
        features = extract(
            backbone or self.backbone,
            source,
            subject.image_size,
            subject.mean,
            subject.std,
            self.fraction,
            s.device,
            s.batch_size,
            s.precision,
            s.executor,
            s.workers,
            interpolation=s.interpolation or interpolation,
            progress=s.progress,
        )
        if not torch.isfinite(features.features).all():
            raise UserError(f"{subject.name}: its features are not finite numbers; the backbone has diverged.")
        return features

    def _knn(self, knn: KNN) -> dict[int, Accuracy]:
        if knn.interpolation == "bilinear":
            train, test = self.train_features, self.test_features
        else:
            train, test = (self._extract(source, knn.interpolation) for source in (self.train, self.test))
        ks = (self.settings.k,) if self.settings.k is not None else knn.ks
        alone = self.train is self.test
        if alone and self.settings.k is None and max(ks) >= len(train):
            ks = (fitting_k(train.labels, max(ks), True),)
            self.deviations.append(f"k = {ks[0]}, one less than the smallest class has images")
        return knn_accuracy(
            train.features,
            train.labels,
            test.features,
            test.labels,
            ks,
            knn.temperature,
            knn.metric,
            self.settings.device,
            alone,
        )

    def _resolve(self, probe: Probe, data: str) -> Probe:
        """The probe with the rate for this backbone and pre-training, this data's crop, and the caller's changes."""
        s, run = self.settings, self.subject.run
        kinds = {
            "vit": self.subject.architecture.startswith(("vit", "deit")),
            "batch256": bool(run and run.batch_size == 256),
        }
        lr = next((rate for kind, rate in probe.lr_for.items() if kinds[kind]), probe.lr)
        probe = replace(probe, lr=lr, crop=probe.crop_for.get(data, probe.crop))
        if len(self.train) < probe.batch_size:
            self.deviations.append(
                f"batch size = {len(self.train)}, all the training images, instead of {probe.batch_size}"
            )
            probe = replace(probe, batch_size=len(self.train))
        if s.lr is not None:
            probe = replace(probe, lr=s.lr, lr_batch=None)
        if s.batch_norm_drift:
            probe = replace(probe, batch_norm_drift=True)
            self.notes.append("the backbone was in train mode while the classifier learned (RSA's code)")
        return probe.with_epochs(s.epochs) if s.epochs else probe

    def _train_probe(self, probe: Probe) -> ProbeResult:
        s = self.settings
        shape = (self.test_features.features.shape[1], self.classes)
        prepare = Preparation(probe.prepare, self.train_features.features if probe.prepare != "raw" else None, s.device)
        fit = partial(
            train_probe,
            probe,
            test_labels=self.test_features.labels,
            shape=shape,
            seed=s.seed,
            device=s.device,
            prepare=prepare,
            progress=s.progress,
        )
        frozen = self.test_features.features.to(s.device)
        if probe.crop is None:
            train = self.train_features
            batches = cached_batches(train.features, train.labels, probe, s.seed, s.device)
            return fit(batches, Order(len(train), probe.batch_size, drop_last=probe.drop_last).steps(), lambda: frozen)
        view = View("probe", self.subject.image_size, probe.crop, flip=0.5)
        recipe = Views((view,), self.subject.mean, self.subject.std)
        order = Order(len(self.train), probe.batch_size, s.seed, drop_last=probe.drop_last)
        drift = probe.batch_norm_drift
        backbone = copy.deepcopy(self.backbone) if drift else self.backbone
        with build_pipeline(
            self.train, recipe, order, executor=s.executor, device=s.device, workers=s.workers
        ) as pipeline:
            return fit(
                lambda: forward_batches(backbone, pipeline, s.precision, drift),
                len(pipeline),
                lambda: self._extract(self.test, backbone=backbone).features if drift else frozen,
            )


def _probed(result: ProbeResult, reports: str) -> dict:
    printed = result.best if reports == "best" else result.last
    each = {
        f"{which}_{name}": value
        for which, found in (("last", result.last), ("best", result.best))
        for name, value in _named(found).items()
    }
    return {
        **_named(printed),
        **each,
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
        "train_loss": round(result.losses[-1], 4),
        "paper_reports": reports,
    }


def _named(a: Accuracy) -> dict[str, float]:
    return {"top1": round(a.top1, 3), "top5": round(a.top5, 3)}


def _classes(source: Source) -> int:
    """The number of classes of a labelled source; UserError where there are no labels to evaluate with."""
    if source.labels is None:
        raise UserError(
            f"{source.name} has no labels, and every protocol needs them; use a folder with one sub-folder for each "
            "class, or an .npz with `labels`."
        )
    high, kinds = int(source.labels.max()), np.unique(source.labels)
    if len(kinds) < 2:
        raise UserError(
            f"{source.name} has images of one class alone, and any backbone tells one class with 100 %; give "
            f"--data and "
            "--val-data folders whose sub-folders are the classes, or --labels CSV."
        )
    return max(high + 1, len(source.classes or ()))
