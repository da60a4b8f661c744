"""Reads a file of weights: .safetensors, or what torch.save wrote. Nothing in it is ever executed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from saccade.base.errors import UserError


class _Record:
    """Stands for any class a file names (a Lightning AttributeDict, argparse's Namespace): plain values, no code."""

    def __new__(cls, *unused: object, **also_unused: object) -> OrderedDict:  # type: ignore[misc]
        return OrderedDict()


def read_weights(path: Path) -> Mapping[str, Any]:
    """What the file holds, on the CPU: tensors by name, and whatever stands beside them; UserError for no such file.

    torch's own reader of weights alone does the work; the classes that it does not know become plain records, so that
    a file with a Namespace or hyper-parameters in it can be read without importing or running what it names.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        names = get_unsafe_globals_in_checkpoint(path) if _is_zip(path) else []
        with safe_globals([(_Record, name) for name in names]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers raise whatever the bytes of a stranger lead them to
        raise UserError(
            f"{path} cannot be read as weights (.safetensors, or .pth and the like that torch.save made of tensors and "
            f"plain values): {type(error).__name__}."
        ) from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds a {type(found).__name__}, not weights by name; save its state_dict().")
    return found


def tensors(found: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
