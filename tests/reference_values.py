"""Reference values of the methods' original code: `reference/*.npz`, described in the README beside them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).with_name("reference")


def load_reference(name: str) -> dict[str, Any]:  # Any: what a file holds under a key is known when it is read
    """Arrays of `<name>.npz` as tensors (0-d for scalars; text as str)."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: str(a) if a.dtype.kind == "U" else torch.from_numpy(np.array(a)) for key, a in arrays.items()}


def assert_close(actual: Tensor | float | None, expected: Tensor | float | None, tolerance: float) -> None:
    """|actual - expected| <= tolerance * max(1, |expected|), compared in float64; None (no gradient) is refused."""
    assert actual is not None and expected is not None
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    expected = torch.as_tensor(expected, dtype=torch.float64).detach()
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
