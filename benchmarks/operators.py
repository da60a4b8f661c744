"""What the operators of a step on CUDA tensors, fake or real, compute, move, launch, and do wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select"}
EMPTY = {f"aten::{name}" for name in ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided")}


@dataclass(frozen=True)
class Operator:
    """One call. reads, writes: bytes of each block of memory on the GPU, by block; none where nothing runs there."""

    name: str
    region: str
    dtype: str
    flops: int
    reads: dict[int, int]
    writes: dict[int, int]
    launches: int  # kernels at least
    faults: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(self.reads.values()) + sum(self.writes.values())


class Trace(TorchDispatchMode):
    """Records every operator, with the region that was set; to be entered inside FakeTensorMode."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self.region = "update"
        self._seen: list[Any] = []  # kept, so that a block of memory is known by its address

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operators.append(self._operator(func, args, kwargs or {}, result))
        return result

    @property
    def faults(self) -> list[str]:
        return sorted({f"{o.name}: {fault}" for o in self.operators for fault in o.faults})

    def _operator(self, func: Any, args: tuple, kwargs: dict, result: Any) -> Operator:
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        name = func._schema.name
        free = func.is_view or name in EMPTY or not any(t.is_cuda for t in (*inputs, *outputs))
        mutated = _mutated(func, args, kwargs)
        written = [t for t in outputs if all(t is not u for u in (*inputs, *mutated))] + mutated
        count = flop_registry.get(func._overloadpacket)
        return Operator(
            name,
            self.region,
            str(next((t.dtype for t in (*outputs, *inputs)), "")).removeprefix("torch."),
            count(*args, **kwargs, out_val=result) if count else 0,
            {} if free else self._blocks(inputs),
            {} if free else self._blocks(written),
            0 if free else _launches(name, inputs),
            _faults(name, inputs, outputs),
        )

    def _blocks(self, tensors: list[Tensor]) -> dict[int, int]:
        blocks: dict[int, int] = {}
        for t in tensors:
            if t.is_cuda:
                memory = t.untyped_storage()
                self._seen.append(memory)
                blocks[memory._cdata] = blocks.get(memory._cdata, 0) + _bytes(t)
        return blocks


def _tensors(values: Any) -> list[Tensor]:
    return list({id(t): t for t in tree_leaves(values) if isinstance(t, Tensor)}.values())


def _mutated(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    arguments = [a for a in func._schema.arguments if not a.kwarg_only]
    given = [
        *zip(arguments, args, strict=False),
        *((a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs),
    ]
    return _tensors([value for a, value in given if a.alias_info is not None and a.alias_info.is_write])


def _bytes(t: Tensor) -> int:
    """Of the memory a tensor's elements take, an expanded one's once."""
    return t.element_size() * math.prod(n for n, stride in zip(t.shape, t.stride(), strict=True) if stride)


def _launches(name: str, inputs: list[Tensor]) -> int:
    """At least; torch's fused updates take so many tensors, and chunks of 65,536 elements, at once."""
    if not name.startswith(("aten::_foreach", "aten::_fused")):
        return 1
    chunks = sum(-(-t.numel() // 65536) for t in inputs)
    return max(1, -(-len(inputs) // 110), -(-chunks // 960))


def _faults(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> tuple[str, ...]:
    """What makes the host wait, or a tensor that lies where or as it should not."""
    found = []
    on_gpu, on_cpu = [t for t in inputs if t.is_cuda], [t for t in inputs if not t.is_cuda and t.ndim]
    if on_gpu and on_cpu:
        found.append("a tensor of the CPU among tensors of the GPU")
    elif on_cpu and any(t.is_cuda for t in outputs):
        found.append("a copy from pageable memory")
    elif on_gpu and outputs and not any(t.is_cuda for t in outputs):
        found.append("a copy to the CPU")
    if name in WAITING or (name.startswith("aten::index") and any(t.dtype is torch.bool for t in inputs)):
        found.append("its result's shape or value is asked for by the host")
    if name in ("aten::convolution", "aten::convolution_backward"):
        maps = [t for t in inputs if t.ndim == 4]
        if not all(t.is_contiguous(memory_format=torch.channels_last) for t in maps):
            found.append("not channels-last")
    return tuple(found)
