"""A paper's ablation: a named small change of any recipe of its method, `--recipe cifar10-no-sinkhorn`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from saccade.losses.recipe import TrainingRecipe

Recipe = TrainingRecipe[Any]


@dataclass(frozen=True)
class Ablation:
    """What it is called, what it changes, where it is from. results: data set -> the published number, where known."""

    name: str
    summary: str
    source: str
    change: Callable[[Recipe], Recipe]
    results: Mapping[str, str] = field(default_factory=dict)

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe with the change, under its own name and source."""
        changed = self.change(recipe)
        result = self.results.get(recipe.data)
        said = f"{self.summary}: {self.source}" + (f"; published: {result}" if result else "; no number found")
        return replace(
            changed,
            variant=f"{recipe.variant}-{self.name}" if recipe.variant else self.name,
            sources={**changed.sources, "ablation": said},
        )


def with_options(**options: Any) -> Callable[[Recipe], Recipe]:
    """The change of some of the method's options."""
    return lambda recipe: replace(recipe, options=replace(recipe.options, **options))


def by_data(*linear: float) -> dict[str, str]:
    """RSA's columns of linear top-1: CIFAR-10, CIFAR-100, STL-10, Tiny-ImageNet, ImageNet-100."""
    sets = ("cifar10", "cifar100", "stl10", "tiny-imagenet", "imagenet100")
    return {data: f"linear {value}" for data, value in zip(sets, linear, strict=True)}


def split(name: str, ablations: tuple[Ablation, ...]) -> tuple[str, Ablation | None]:
    """ "cifar10-no-sinkhorn" -> "cifar10" and that ablation; the name itself and None where it ends in none."""
    ends = [a for a in ablations if name.endswith(f"-{a.name}")]
    chosen = max(ends, key=lambda a: len(a.name), default=None)
    return (name, None) if chosen is None else (name.removesuffix(f"-{chosen.name}"), chosen)
