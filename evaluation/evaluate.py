"""Runs a protocol on a backbone: the one engine behind every protocol."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from saccade.base.errors import UserError
from saccade.evaluation.feature_file import FeatureFile
from saccade.evaluation.features import Features, extract
from saccade.evaluation.kept import key_of
from saccade.evaluation.protocol import Protocol, Row
from saccade.evaluation.subject import Subject, with_encoder
from saccade.models.quality import effective_rank, feature_std
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.holdout import once
from saccade.runs.ranks import ONE, Ranks

PART = 2**16  # features looked at in one go


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
    keep_features: bool = False
    ranks: Ranks = field(default=ONE, repr=False)  # the processes that measure together


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
        used = {name for measure in protocol.measures for name in measure.takes()}
        given = {name: value for name in ("epochs", "lr", "k") if (value := getattr(settings, name)) is not None}
        self.deviations = [f"{name} = {value}" for name, value in given.items() if name in used]
        self.notes += [f"--{name} changes nothing in this protocol" for name in given if name not in used]
        for name in ("crop_pct", "interpolation"):
            if getattr(settings, name) is not None:
                self.deviations.append(f"{name} = {getattr(settings, name)}")
        if settings.batch_norm_drift and "batch_norm_drift" not in used:
            raise UserError(f"--batch-norm-drift is a quirk of --protocol rsa-small; leave it out of {protocol.name}.")
        if settings.keep_features:
            self.notes.append("the features were kept, and used, as float16")
        self.classes = max(_classes(source) for source in (self._train, self.test) if source is not None)
        self.backbone = self.subject.backbone.to(settings.device)
        self.data = data
        self.rows: list[Row] = []  # of the printed table, when result() has measured

    def result(self) -> dict:
        """The protocol's numbers (percent), counts, and what must be said of them; plain values."""
        started = time.perf_counter()
        measured: dict[str, Any] = {}
        for measure in self.protocol.measures:
            found = measure.measure(self)
            measured |= found
            self.rows += measure.rows(found)
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
            "interpolation": self.settings.interpolation or self.protocol.measures[0].interpolation,
            "data": self.accounts,
            "features": features.shape[1],
            "feature_std": round(feature_std(features), 4),
            "effective_rank": round(effective_rank(features), 2),
            "seed": self.settings.seed,
            "deviations": self.deviations,
            "notes": self.notes,
            "seconds": round(time.perf_counter() - started, 2),
        }

    def key(self, measure: object) -> str:
        """Of all that a measure's result depends on."""
        device = torch.device(self.settings.device).type
        s = replace(self.settings, device=device, progress=False, batch_size=0, workers=None, executor="")
        sources = (self.train, self.test)
        return key_of(self.backbone, sources, self.protocol.name, measure, s, self.subject.mean, self.subject.std)

    @property
    def train(self) -> Source:
        """The labelled training images; UserError where a protocol that needs them was given none."""
        if self._train is None:
            raise UserError(f"--protocol {self.protocol.name} needs training images; give --data.")
        return self._train

    @cached_property
    def train_features(self) -> Features:
        return self.test_features if self.train is self.test else self.extract(self.train)

    @cached_property
    def test_features(self) -> Features:
        found = self.extract(self.test)
        return replace(found, features=found.features.float())

    def extract(
        self,
        source: Source,
        interpolation: str = "bilinear",
        backbone: nn.Module | None = None,
    ) -> Features:
        """Features of the images' centre crops; backbone: instead of the subject's."""
        s, subject = self.settings, self.subject
        interpolation, kept = s.interpolation or interpolation, None
        if s.keep_features and backbone is None:
            how = (subject.image_size, subject.mean, subject.std, self.fraction, interpolation, s.precision)
            kept = FeatureFile(key_of(self.backbone, (source,), *how), len(source), ranks=s.ranks)
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
            interpolation=interpolation,
            progress=s.progress,
            kept=kept,
            ranks=s.ranks,
        )
        if not all(torch.isfinite(part).all() for part in features.features.split(PART)):
            raise UserError(f"{subject.name}: its features are not finite numbers; the backbone has diverged.")
        return features


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
