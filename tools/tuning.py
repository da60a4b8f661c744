"""What `saccade finetune` does with labelled images: train on them, test on others, or in folds on themselves."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.evaluation.evaluate import Settings
from saccade.evaluation.features import Features, extract
from saccade.evaluation.finetune import FineTuning, fine_tune
from saccade.evaluation.kept import Kept, key_of
from saccade.evaluation.linear import Preparation, Probe, cached_batches, linear_head, train_probe
from saccade.evaluation.shares import shared_pipeline
from saccade.evaluation.subject import Subject
from saccade.models.backbone import shown_share
from saccade.pipelines.order import Order
from saccade.pipelines.sources import Source
from saccade.pipelines.views import View, Views
from saccade.runs.ranks import SHARED_CACHE

FOLDS, BATCH, STEPS = 5, 32, 300  # images a step; steps at least
WHOLE = FineTuning(30, BATCH, lr=3e-4, head_lr=3e-3, lr_batch=None, optimizer="adamw", weight_decay=0.05)
HEAD = Probe(100, 64, 0.02, lr_batch=256, optimizer="nesterov", weight_decay=1e-4, prepare="standardise")


@dataclass(frozen=True)
class Recipe:
    """How it is trained: the whole network, or, where `head_only`, a linear classifier on fixed features."""

    head_only: bool
    epochs: int
    lr: float | None
    seed: int

    def told(self, labels: int) -> str:
        if self.head_only:
            return f"a linear classifier on fixed features, {self.epochs} epochs"
        rate = self.whole(labels).lr
        return f"the whole network, {self.epochs} epochs of crops and flips, AdamW at {rate:g}, cosine"

    def whole(self, labels: int) -> FineTuning:
        how = replace(WHOLE, epochs=self.epochs, batch_size=min(WHOLE.batch_size, labels))
        return how if self.lr is None else replace(how, lr=self.lr, head_lr=10 * self.lr)

    def head(self, labels: int) -> Probe:
        how = replace(HEAD, epochs=self.epochs, batch_size=min(HEAD.batch_size, labels))
        return how if self.lr is None else replace(how, lr=self.lr, lr_batch=None)


@dataclass(frozen=True)
class Fitted:
    """A backbone and a classifier (D -> C) on its features, both on the CPU and in eval mode."""

    backbone: nn.Module
    head: nn.Linear


def recipe_of(flags: argparse.Namespace, labels: int) -> Recipe:
    """30 epochs, or as many as STEPS steps take; 100 of a classifier alone."""
    usual = HEAD.epochs if flags.head_only else max(WHOLE.epochs, -(-STEPS // max(1, labels // BATCH)))
    return Recipe(flags.head_only, flags.epochs or usual, flags.lr, flags.seed)


def features(backbone: nn.Module, source: Source, subject: Subject, s: Settings) -> Features:
    """As saccade eval extracts them."""
    shown = (subject.image_size, subject.mean, subject.std, shown_share(subject.image_size))
    return extract(backbone, source, *shown, s.device, s.batch_size, s.precision, s.executor, s.workers, ranks=s.ranks)


def logits(fitted: Fitted, source: Source, subject: Subject, s: Settings) -> Tensor:
    """(N, C) of a source's images."""
    with torch.no_grad():
        return fitted.head(features(fitted.backbone.to(s.device), source, subject, s).features)


def fit(recipe: Recipe, subject: Subject, train: Source, classes: int, s: Settings) -> Fitted:
    """Trained on all of `train`; stopped and called again, it goes on after the last epoch that is kept."""
    if train.labels is None:
        raise UserError(f"{train.name} has no labels; give --labels CSV, or a folder with a sub-folder for each class.")
    found = (fit_head if recipe.head_only else fit_whole)(recipe, subject, train, classes, s)
    return Fitted(found.backbone.cpu().eval(), found.head.cpu().eval())


def fit_whole(recipe: Recipe, subject: Subject, train: Source, classes: int, s: Settings) -> Fitted:
    how = recipe.whole(len(train))
    views = Views((View("train", subject.image_size, how.crop, flip=0.5),), subject.mean, subject.std)
    one_left = len(train) % how.batch_size == 1
    backbone = subject.backbone.to(s.device)
    kept = Kept(key_of(backbone, (train,), "finetune", how, recipe, views, s.precision), s.ranks)
    with shared_pipeline(train, views, how.batch_size, s, recipe.seed, one_left) as pipeline:
        tuned = fine_tune(how, backbone, pipeline, classes, None, recipe.seed, s.precision, s.progress, kept, s.ranks)
    return Fitted(tuned.backbone, tuned.classifier)


def fit_head(recipe: Recipe, subject: Subject, train: Source, classes: int, s: Settings) -> Fitted:
    how, backbone = recipe.head(len(train)), subject.backbone.to(s.device)
    found = features(backbone, train, subject, s)
    prepare = Preparation(how.prepare, found.features, s.device)
    batches = cached_batches(found.features, found.labels, how, recipe.seed, s.device)
    steps = Order(len(train), how.batch_size, drop_last=False).steps()
    head = linear_head(how, (found.features.shape[1], classes), recipe.seed).to(s.device)
    train_probe(how, head, batches, steps, None, s.device, prepare)
    with torch.no_grad():  # standardising is part of the classifier: one layer
        head.weight.mul_(prepare.scale)
        head.bias.sub_(head.weight @ prepare.mean)
    return Fitted(backbone, head)


def folds_of(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """(N,) the fold of each image: each class spread evenly over `most`. UserError where that is one."""
    if len(np.unique(labels)) < 2 or np.bincount(labels).max() < 2:
        raise UserError("folds need two classes, one of them with two labelled images; label more images.")
    random, fold, start = np.random.default_rng(seed), np.zeros(len(labels), np.int64), 0
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        fold[rows] = (start + np.arange(len(rows))) % most
        start += len(rows)
    return fold


def in_folds(
    recipe: Recipe, subject: Subject, train: Source, classes: int, s: Settings, most: int
) -> tuple[Tensor, Kept]:
    """(N, C) logits of each image by a network that was trained on the other folds, and where they are kept until all
    is done."""
    assert train.labels is not None
    fold = folds_of(train.labels, most, recipe.seed)
    found = torch.zeros(len(train), classes)
    key = key_of(subject.backbone, (train,), "folds", recipe, most, s.precision, subject.mean, subject.std)
    kept = Kept(key, s.ranks)
    state = kept.read() or {"done": 0, "logits": found}
    s.ranks.same("what is kept of the folds", f"{state['done']} of them", SHARED_CACHE)
    found = state["logits"]
    for number in range(state["done"], most):
        print(f"fold {number + 1} of {most}", flush=True)
        rows = np.flatnonzero(fold == number)
        others = train.subset(np.flatnonzero(fold != number), f"{train.name}, without fold {number + 1}")
        fitted = fit(recipe, subject, others, classes, s)
        found[torch.from_numpy(rows)] = logits(fitted, train.subset(rows), subject, s)
        kept.write({"done": number + 1, "logits": found}, now=True)
    return found, kept
