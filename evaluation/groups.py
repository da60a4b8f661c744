"""Coarser classes for a picture of features: CIFAR-100's twenty, or a table of the user's own."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from saccade.base.errors import UserError
from saccade.base.text import printable

CIFAR100 = {  # Krizhevsky 2009, table of superclasses
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}


def read_groups(place: str) -> dict[str, str]:
    """class -> group: "cifar100", or a CSV of two columns, class and group, with or without a heading."""
    if place == "cifar100":
        return {name: group for group, names in CIFAR100.items() for name in names.split()}
    try:
        rows = list(csv.reader(Path(place).read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"--plot-groups {place}: cannot be read ({error}); give cifar100, or a CSV of class and group."
        ) from error
    if not rows or any(len(row) != 2 for row in rows):
        raise UserError(f"--plot-groups {place}: every line must be a class and its group; give such a CSV.")
    return {name.strip(): group.strip() for name, group in rows}


def grouped(labels: Tensor, classes: Sequence[str] | None, groups: Mapping[str, str]) -> tuple[Tensor, list[str]]:
    """Labels (N,) as numbers of groups, and the groups' names. UserError for a class that has no group."""
    lacking = [name for name in classes or () if name not in groups]
    if not classes or lacking:
        what = f"say nothing of the class {printable(lacking[0])}" if lacking else "need classes with names"
        raise UserError(f"the groups of --plot-groups {what}; give a CSV of class and group with all of them.")
    names = sorted({groups[name] for name in classes})
    number = torch.tensor([names.index(groups[name]) for name in classes])
    return number[labels], names
