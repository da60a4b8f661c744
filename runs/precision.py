"""What the forward passes of a run compute in: as asked for, else bfloat16 on a GPU and float32 on a CPU."""

from __future__ import annotations

import argparse

import torch

from saccade.base.errors import UserError
from saccade.losses.recipe import TrainingRecipe

PRECISIONS = ("fp32", "bf16", "fp16")


def on_gpu(device: str) -> bool:
    """Whether a run with this --device trains on a GPU."""
    return device != "cpu" and torch.cuda.is_available()


def training_precision(flags: argparse.Namespace, recipe: TrainingRecipe) -> str:
    """fp32, bf16 or fp16: that of --precision or of --set precision=, which is already in the recipe; "recipe" is the
    recipe's. UserError where the two contradict each other, and for fp16 on a CPU.
    """
    asked = f"--precision {flags.precision}"
    if any(setting.partition("=")[0] == "precision" for setting in flags.set):
        if flags.precision not in ("auto", "recipe", recipe.precision):
            raise UserError(f"{asked} and --set precision={recipe.precision} contradict each other; give one of them.")
        asked, chosen = f"--set precision={recipe.precision}", recipe.precision
    elif flags.precision == "auto":
        chosen = "bf16" if on_gpu(flags.device) else "fp32"
    elif flags.precision == "recipe":
        asked, chosen = f"--precision recipe, which is {recipe.precision} here,", recipe.precision
    else:
        chosen = flags.precision
    if chosen == "fp16" and not on_gpu(flags.device):
        raise UserError(f"{asked} needs a GPU; use fp32 or bf16 on a CPU.")
    return chosen
