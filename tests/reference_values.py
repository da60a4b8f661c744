"""Reference values of the methods' original code: `reference/*.npz`, described in the README beside them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).with_name("reference")


def load_reference(name: str) -> dict[str, Tensor | str]:
    """Arrays of `<name>.npz` as tensors (0-d for scalars; text as str)."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: str(a) if a.dtype.kind == "U" else torch.from_numpy(np.array(a)) for key, a in arrays.items()}


def assert_close(actual: Tensor | float, expected: Tensor | float, tolerance: float) -> None:
    """|actual - expected| <= tolerance * max(1, |expected|), compared in float64."""
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    expected = torch.as_tensor(expected, dtype=torch.float64).detach()
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
