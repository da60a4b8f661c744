"""Fine-tuning: the whole backbone trained on with all labels, 1 % or 10 % of them, or a few of each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from saccade.evaluation.accuracy import Accuracy, named
from saccade.evaluation.finetune import FineTuning, Tuned, few_labels, fine_tune
from saccade.evaluation.kept import Kept
from saccade.evaluation.protocol import Measure, Protocol, Row
from saccade.evaluation.shares import shared_pipeline
from saccade.pipelines.sources import Source
from saccade.pipelines.views import View, Views

if TYPE_CHECKING:
    from saccade.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class FineTune(FineTuning, Measure):
    """Fine-tuning as a protocol has it: on a run's own size and statistics, crops and flips, tested on centre crops."""

    def takes(self) -> tuple[str, ...]:
        return ("epochs", "lr")

    def measure(self, on: Evaluation) -> dict[str, Any]:
        train = few_labels(on.train, self.fraction, self.shots, on.settings.seed)
        found = self.tuned(on, train)
        best = max(range(len(found.history)), key=lambda epoch: found.history[epoch].top1)
        printed: Accuracy = found.history[best] if self.printed == "best" else found.history[-1]
        return {
            **named(printed),
            "best_top1": round(found.history[best].top1, 3),
            "best_epoch": best + 1,
            "epochs": len(found.history),
            "train_loss": round(found.losses[-1], 4),
            "labelled": len(train),
        }

    def rows(self, found: Mapping[str, Any]) -> list[Row]:
        title = f"fine-tuned on {found['labelled']:,} labels, {found['epochs']} epochs"
        return [(title, found["top1"], found["top5"])]

    def tuned(self, on: Evaluation, train: Source) -> Tuned:
        """The networks, trained on `train`, and what they reach; `on` gets what departs from the protocol."""
        s, subject = on.settings, on.subject
        how = self.with_epochs(s.epochs) if s.epochs else self
        how = replace(how, lr=s.lr) if s.lr is not None else how
        if len(train) < how.batch_size:
            on.deviations.append(f"batch size = {len(train)}, all the labels, instead of {how.batch_size}")
            how = replace(how, batch_size=len(train))
        view = View("train", subject.image_size, how.crop, flip=0.5)
        views = Views((view,), subject.mean, subject.std)

        def test(backbone: nn.Module) -> tuple[Tensor, Tensor]:
            found = on.extract(on.test, backbone=backbone)
            return found.features, found.labels

        one_left = len(train) % how.batch_size == 1
        with shared_pipeline(train, views, how.batch_size, s, s.seed, one_left) as pipeline:
            kept = Kept(on.key(how), s.ranks)
            machine = (s.seed, s.precision, s.progress, kept, s.ranks)
            return fine_tune(how, on.backbone, pipeline, on.classes, test, *machine)


RESA = FineTune(20, 256, lr=2e-4, head_lr=40.0)
OURS = FineTune(50, 64, lr=0.02, head_lr=0.1, weight_decay=1e-4)

LISTS = "the original takes published lists of images; here they are drawn by seed, or given by --labels"
FEW = {"1pct": ("1 %", 0.01), "10pct": ("10 %", 0.1)}

PROTOCOLS = (
    *(
        Protocol(
            f"resa-{name}",
            f"fine-tuned on {words} of the labels, 20 epochs",
            "winci-ai/resa [code]",
            (replace(RESA, fraction=fraction),),
            encoder="teacher",
            notes=(LISTS,),
        )
        for name, (words, fraction) in FEW.items()
    ),
    Protocol("finetune", "the whole backbone, all labels", "[proposal]", (OURS,)),
    *(
        Protocol(
            f"finetune-{name}",
            f"the whole backbone, {words} of the labels",
            "[proposal]",
            (replace(OURS, fraction=fraction),),
        )
        for name, (words, fraction) in FEW.items()
    ),
)
