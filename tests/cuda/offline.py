"""A stand-in for Triton's driver: the product's own launches are bound and compiled for a GPU that is not here."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", re.DOTALL)


@dataclass(frozen=True)
class Launch:
    """A kernel that was launched; stack: bytes of a thread that did not fit into its registers."""

    kernel: str
    grid: tuple[int, int, int]
    registers: int
    stack: int


class StandIn:
    """Answers what Triton asks of a driver; a launch is noted instead of made."""

    def __init__(self, capability: int) -> None:
        self.capability, self.launched, self._binaries = capability, [], {}
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 99 << 10},  # of the smallest GPU in question
            load_binary=self._load,
            unload_module=lambda module: None,
        )

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps its kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def launcher_cls(self, source, metadata):
        return lambda x, y, z, stream, function, *_: self.launched.append(Launch(function[0], (x, y, z), *function[1:]))

    def _load(self, name: str, binary: bytes, shared: int, device: int):
        usage = _resources(binary)
        return name, (name, *usage), *usage, 1024


def _resources(binary: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack and local memory, as the disassembler reads them from a cubin."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    _, registers, stack, local = USAGE.search(said).groups()
    return int(registers), int(stack) + int(local)


@cache
def _stand_in(capability: int) -> StandIn:
    """One for each: Triton's compiled kernels keep the launcher they were given."""
    return StandIn(capability)


@contextmanager
def pretending(capability: int) -> Iterator[StandIn]:
    """Within, launches go to a GPU of this compute capability (90 is Hopper) that is not there."""
    stand_in = _stand_in(capability)
    stand_in.launched.clear()
    driver.set_active(cast(Any, stand_in))
    try:
        yield stand_in
    finally:
        driver._active = None
