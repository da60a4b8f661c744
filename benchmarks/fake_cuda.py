"""A training step of every method on CUDA tensors without a GPU: shapes, devices, dtypes and layouts, no values.

torch's FakeTensorMode knows what each operator gives for CUDA tensors; autograd asks the CUDA runtime for a device
first, which a stub of a dozen functions answers. `environment()` has it loaded ahead of the runtime in a new process,
`pretend()` there does the rest.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from saccade.models.learner import Learner
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.order import Order
from saccade.pipelines.pipeline import Batch
from saccade.pipelines.sources import Source
from saccade.tools.benchmark.trainer import Trainer

STUB = """
/* One make-believe GPU: enough of the CUDA runtime for autograd's device threads. Nothing can run on it. */
#include <string.h>
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 0; return 0; }
static int unsupported(void) { return 801; }
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaGetDevice(int *d) { *d = 0; return 0; }
int cudaSetDevice(int d) { return 0; }
int cudaStreamIsCapturing(void *s, int *status) { *status = 0; return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }
int cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned v, unsigned long long flags, int *s) {
    *f = strcmp(name, "cuDevicePrimaryCtxGetState") ? (void *)unsupported : (void *)cuDevicePrimaryCtxGetState;
    if (s) *s = 0;
    return 0;
}
int cudaGetDriverEntryPoint(const char *name, void **f, unsigned long long flags, int *s) {
    return cudaGetDriverEntryPointByVersion(name, f, 0, flags, s);
}
int cudaGetDeviceProperties(char *p, int d) {  /* cudaDeviceProp's warpSize and major, of CUDA 12 and 13 */
    *(int *)(p + 308) = 32;
    *(int *)(p + 360) = 9;
    return 0;
}
"""
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select"}
WITHOUT_KERNEL = {
    "aten::empty",
    "aten::empty_strided",
    "aten::empty_like",
    "aten::new_empty",
    "aten::new_empty_strided",
}


def environment(folder: Path) -> dict[str, str] | None:
    """What a process needs in its environment to `pretend`; None where torch has no CUDA or no C compiler is here."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not torch.version.cuda or torch.cuda.is_available() or compiler is None:
        return None
    source, library = folder / "stub.c", folder / "libcuda-stub.so"
    source.write_text(STUB)
    name = "-Wl,-soname,libcuda.so.1"  # torch opens the driver by this name and finds it loaded
    subprocess.run([compiler, "-shared", "-fPIC", name, "-o", str(library), str(source)], check=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}  # a run on the CPU sets USE_CPU
    return {**kept, "LD_PRELOAD": str(library)}


def pretend() -> None:
    """Make this process believe in its GPU; only fake tensors may be put there."""
    torch.cuda._initialized = True
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    torch.cuda.manual_seed_all = lambda seed: None
    library = torch.library.Library("aten", "IMPL")
    for name in ("_fused_sgd_", "_fused_adamw_", "_fused_adam_"):
        library.impl(name, lambda *_, **__: None, "Meta")
    torch.cuda._fakes = library  # registrations end with the object


# ------------------------------------------------------------------ tracing


@dataclass(frozen=True)
class Operator:
    """One call: what it computes in, what it must at least read and write, and what would stop or slow a real GPU."""

    name: str
    dtype: str
    flops: int
    read: int  # bytes
    written: int
    launches: int  # kernels at least
    faults: tuple[str, ...] = ()


class Trace(TorchDispatchMode):
    """Records every operator; to be entered inside FakeTensorMode."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operators.append(_operator(func, args, kwargs or {}, result))
        return result

    @property
    def faults(self) -> list[str]:
        return sorted({f"{o.name}: {fault}" for o in self.operators for fault in o.faults})


def _operator(func: Any, args: tuple, kwargs: dict, result: Any) -> Operator:
    inputs, outputs = _tensors((args, kwargs)), _tensors(result)
    name = func._schema.name
    free = func.is_view or name in WITHOUT_KERNEL or not any(t.is_cuda for t in (*inputs, *outputs))
    mutated = _mutated(func, args, kwargs)
    written = [t for t in outputs if all(t is not u for u in (*inputs, *mutated))] + mutated
    count = flop_registry.get(func._overloadpacket)
    return Operator(
        name,
        str(next((t.dtype for t in (*outputs, *inputs)), "")).removeprefix("torch."),
        count(*args, **kwargs, out_val=result) if count else 0,
        0 if free else sum(_bytes(t) for t in inputs),
        0 if free else sum(_bytes(t) for t in written),
        0 if free else _launches(name, inputs),
        _faults(name, inputs, outputs),
    )


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
    """Of the memory a tensor's elements take, an expanded one's once; 0 on the CPU."""
    return (
        t.element_size() * math.prod(n for n, stride in zip(t.shape, t.stride(), strict=True) if stride)
        if t.is_cuda
        else 0
    )


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


# ------------------------------------------------------------------- a step


def fake_trainer(argv: list[str], source: Source) -> tuple[Trainer, Batch, FakeTensorMode]:
    """The run `train.py ARGV` would start on a GPU, everything on it fake, and a batch for it."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    move = lambda learner, *_, **to: _put_on_gpu(learner, mode, to.get("memory_format"))  # noqa: E731
    with patch.object(Learner, "to", move):
        trainer = Trainer([*argv, "--device", "cuda", "--pipeline", "reference", "--workers", "0"], source)
    recipe = trainer.config.recipe
    pipeline = build_pipeline(source, recipe.views, Order(len(source), recipe.batch_size), "resident", "cpu")
    batch = next(iter(pipeline))
    dtype = torch.bfloat16 if trainer.precision == "bf16" else torch.float32
    with mode:
        views = {name: _fake(view.to(dtype)) for name, view in batch.views.items()}
        params = {
            name: replace(p, **{f.name: _fake(getattr(p, f.name)) for f in fields(p)})
            for name, p in batch.params.items()
        }
        label = None if batch.label is None else _fake(batch.label)
    return trainer, Batch(views, params, batch.index, label), mode


def trace_step(trainer: Trainer, batch: Batch, mode: FakeTensorMode) -> Trace:
    """The second step's operators: the first makes the optimizer's state."""
    with mode:
        trainer.step(batch)
        with Trace() as trace:
            trainer.step(batch)
    return trace


def _fake(t: Tensor, memory_format: torch.memory_format | None = None) -> Tensor:
    """The same shape and dtype on the GPU, laid out as `t` is or as asked, within the mode that is on."""
    laid = t if memory_format is None or t.ndim != 4 else torch.empty_like(t, memory_format=memory_format)
    return torch.empty_strided(laid.shape, laid.stride(), dtype=t.dtype, device="cuda")


def _moves(t: Tensor, memory_format: torch.memory_format | None) -> bool:
    return not t.is_cuda or (memory_format is not None and t.ndim == 4)


def _put_on_gpu(module: nn.Module, mode: FakeTensorMode, memory_format: torch.memory_format | None) -> nn.Module:
    """`Module.to` for fakes, which torch's own cannot: parameters and buffers replaced, shared ones shared still."""
    made: dict[int, Tensor] = {}
    with mode:
        for part in module.modules():
            for name, p in part._parameters.items():
                if p is not None and _moves(p, memory_format):
                    part._parameters[name] = made.setdefault(
                        id(p), nn.Parameter(_fake(p.detach(), memory_format), requires_grad=p.requires_grad)
                    )
            for name, b in part._buffers.items():
                if b is not None and _moves(b, memory_format):
                    part._buffers[name] = made.setdefault(id(b), _fake(b, memory_format))
    return module
