"""A linear classifier on the frozen backbone: on cached features, or on new random crops every epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from saccade.evaluation.accuracy import Accuracy, accuracy, named
from saccade.evaluation.features import forward_batches
from saccade.evaluation.kept import Kept
from saccade.evaluation.linear import Preparation, Probe, ProbeResult, cached_batches, linear_head, train_probe
from saccade.evaluation.protocol import Measure, Row
from saccade.evaluation.shares import shared_pipeline
from saccade.models.norm import convert_batch_norm
from saccade.pipelines.order import Order
from saccade.pipelines.views import View, Views

if TYPE_CHECKING:
    from saccade.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class Linear(Probe, Measure):
    """A probe as a protocol has it: its rate and crop may depend on the backbone and the data."""

    title: ClassVar = "linear"

    def takes(self) -> tuple[str, ...]:
        drifts = self.crop is not None and self.prepare == "raw"
        return ("epochs", "lr", *(["batch_norm_drift"] if drifts else []))

    def measure(self, on: Evaluation) -> dict[str, Any]:
        result = self.resolved(on).train(on)
        printed = result.best if self.printed == "best" else result.last
        each = {
            f"{which}_{name}": value
            for which, found in (("last", result.last), ("best", result.best))
            for name, value in named(found).items()
        }
        return {
            **named(printed),
            **each,
            "best_epoch": result.best_epoch,
            "epochs": len(result.history),
            "train_loss": round(result.losses[-1], 4),
            "paper_reports": self.printed,
        }

    def rows(self, found: Mapping[str, Any]) -> list[Row]:
        mark = {found["paper_reports"]: ", reported"}
        return [
            (
                f"{self.title}, {which} epoch ({epoch}){mark.get(which, '')}",
                found[f"{which}_top1"],
                found[f"{which}_top5"],
            )
            for which, epoch in (("last", found["epochs"]), ("best", found["best_epoch"]))
        ]

    def resolved(self, on: Evaluation) -> Linear:
        """With the rate for this backbone and pre-training, this data's crop, and the caller's changes."""
        settings, run = on.settings, on.subject.run
        kinds = {
            "vit": on.subject.architecture.startswith(("vit", "deit")),
            "batch256": bool(run and run.batch_size == 256),
        }
        lr = next((rate for kind, rate in self.lr_for.items() if kinds[kind]), self.lr)
        probe = replace(self, lr=lr, crop=self.crop_for.get(on.data, self.crop))
        if len(on.train) < probe.batch_size:
            on.deviations.append(
                f"batch size = {len(on.train)}, all the training images, instead of {probe.batch_size}"
            )
            probe = replace(probe, batch_size=len(on.train))
        if settings.lr is not None:
            probe = replace(probe, lr=settings.lr, lr_batch=None)
        if settings.batch_norm_drift:
            probe = replace(probe, batch_norm_drift=True)
            on.notes.append("the backbone was in train mode while the classifier learned (RSA's code)")
        return probe.with_epochs(settings.epochs) if settings.epochs else probe

    def train(self, on: Evaluation) -> ProbeResult:
        """The classifier, trained and tested."""
        s, device, drift = on.settings, on.settings.device, self.batch_norm_drift
        prepare = Preparation(self.prepare, on.train_features.features if self.prepare != "raw" else None, device)
        frozen, labels = on.test_features.features.to(device), on.test_features.labels.to(device)
        head = linear_head(self, (frozen.shape[1], on.classes), s.seed).to(device)
        backbone = convert_batch_norm(copy.deepcopy(on.backbone), "sync") if drift else on.backbone

        def test() -> Accuracy:
            features = on.extract(on.test, backbone=backbone).features.to(device) if drift else frozen
            return accuracy(head(prepare(features)), labels)

        if self.crop is not None:
            return self.on_crops(on, backbone, head, test, prepare)
        train = on.train_features
        batches = cached_batches(train.features, train.labels, self, s.seed, device)
        steps = Order(len(train), self.batch_size, drop_last=self.drop_last).steps()
        kept = Kept(on.key(self), s.ranks)
        return train_probe(self, head, batches, steps, test, device, prepare, s.progress, kept)

    def on_crops(
        self,
        on: Evaluation,
        backbone: nn.Module,
        head: nn.Module,
        test: Callable[[], Accuracy],
        prepare: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> ProbeResult:
        """`head`, trained on what `backbone` makes of new crops and flips every epoch, by all processes together."""
        s, drift = on.settings, self.batch_norm_drift
        assert self.crop is not None
        view = View("probe", on.subject.image_size, self.crop, flip=0.5)
        recipe = Views((view,), on.subject.mean, on.subject.std)
        kept = None if drift else Kept(on.key(self), s.ranks)
        with shared_pipeline(on.train, recipe, self.batch_size, s, s.seed, self.drop_last) as pipeline:
            return train_probe(
                self,
                head,
                lambda number: forward_batches(backbone, pipeline.at(number), s.precision, drift),
                len(pipeline),
                test,
                s.device,
                prepare,
                s.progress,
                kept,
                pipeline.order,
                s.ranks,
            )
