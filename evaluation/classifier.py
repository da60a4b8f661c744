"""classifier.safetensors of a run folder: the classifier that was fine-tuned with the backbone, its classes, and the
temperature by which its confidence means what it says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.runs.tensor_file import Damaged, read_tree, write_tree

NAME = "classifier.safetensors"


@dataclass(frozen=True)
class Classifier:
    """weight (C, D) and bias (C,); classes: their C names; logits are divided by the temperature."""

    weight: Tensor
    bias: Tensor
    classes: tuple[str, ...]
    temperature: float = 1.0

    def layer(self) -> nn.Linear:
        """(N, D) features -> (N, C) logits whose softmax is the confidence."""
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(self.weight / self.temperature)
            layer.bias.copy_(self.bias / self.temperature)
        return layer.eval()


def write_classifier(folder: Path, found: Classifier) -> None:
    tree = {**vars(found), "classes": list(found.classes)}
    write_atomically(folder / NAME, lambda file: write_tree(file, tree))


def read_classifier(folder: Path) -> Classifier | None:
    """That of a folder; None where there is none. UserError where it is damaged."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        tree = read_tree(path)
        found = Classifier(tree["weight"], tree["bias"], tuple(map(str, tree["classes"])), float(tree["temperature"]))
        whole = found.weight.ndim == 2 and found.weight.shape[:1] == found.bias.shape == (len(found.classes),)
    except (OSError, Damaged, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be used ({error}); fine-tune again.") from error
    if not whole or not found.temperature > 0:
        raise UserError(f"{path} is no classifier of {len(found.classes)} classes; fine-tune again.")
    return found
