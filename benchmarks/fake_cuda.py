"""A training step of every method on CUDA tensors without a GPU: shapes, devices, dtypes and layouts, no values.

torch's FakeTensorMode knows what each operator gives for CUDA tensors; autograd asks the CUDA runtime for a device
first, which a stub of a dozen functions answers. `environment()` has it loaded ahead of the runtime in a new process,
`pretend()` there does the rest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.operators import Trace
from saccade.models.learner import Learner
from saccade.pipelines.draw import ViewParams, draw
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


_META = torch.library.Library("aten", "IMPL")  # what is registered ends with it


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
    torch.cuda.mem_get_info = lambda device=None: (80 << 30, 80 << 30)
    torch.cuda.memory_reserved = torch.cuda.memory_allocated = lambda device=None: 0
    fake_tensor.init_gpu_context = lambda *_: None  # an older torch would put a real tensor there
    for name in ("_fused_sgd_", "_fused_adamw_", "_fused_adam_"):
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):  # some torches have one
            _META.impl(name, lambda *_, **__: None, "Meta")


# ------------------------------------------------------------------- a step


def fake_trainer(argv: list[str], source: Source) -> tuple[Trainer, Batch, FakeTensorMode]:
    """The run `train.py ARGV` would start on a GPU, everything on it fake, and a batch for it."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    move = lambda learner, *_, **to: _put_on_gpu(learner, mode, to.get("memory_format"))  # noqa: E731
    with patch.object(Learner, "to", move):
        trainer = Trainer([*argv, "--device", "cuda", "--pipeline", "reference", "--workers", "0"], source)
    views, count = trainer.config.recipe.views, trainer.config.recipe.batch_size
    index, size = torch.arange(count), torch.tensor(source.size(0)).expand(count, 2)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(trainer.precision, torch.float32)
    with mode:
        shapes = {view.name: (count, 3, view.size, view.size) for view in views}
        pixels = {name: torch.empty(shape, dtype=dtype, device="cuda") for name, shape in shapes.items()}
        pixels = {name: view.contiguous(memory_format=torch.channels_last) for name, view in pixels.items()}
    drawn = draw(views, 0, 0, index, size)
    with mode:
        params = {name: _faked(p) for name, p in drawn.items()}
        label = None if source.labels is None else torch.zeros(count, dtype=torch.int64, device="cuda")
    return trainer, Batch(pixels, params, index, label), mode


def trace_step(trainer: Trainer, batch: Batch, mode: FakeTensorMode) -> Trace:
    """The second step's operators: the first makes the optimizer's state."""
    with mode:
        trainer.step(batch)
        with Trace() as trace, regions(trace, trainer):
            trainer.step(batch)
    return trace


@contextmanager
def regions(trace: Trace, trainer: Trainer) -> Iterator[None]:
    """Tell the networks' operators, forward and backward, from the loss's and the updates'.

    Backward: autograd takes the loss's nodes first, made last; from the first gradient that reaches an output of a
    network, it is in the networks.
    """

    def enter(region: str) -> None:
        trace.region = region

    def outputs(module: nn.Module, inputs: tuple, branch: object) -> None:
        enter("loss")
        for t in vars(branch).values():
            if t is not None and t.requires_grad:
                t.register_hook(lambda grad: enter("network"))

    networks = [n for n in (trainer.learner.student, trainer.learner.teacher) if n is not None]
    hooks = [n.register_forward_pre_hook(lambda module, inputs: enter("network")) for n in networks]
    hooks += [n.register_forward_hook(outputs) for n in networks]
    optimizer = trainer.session.optimizer
    with patch.object(optimizer, "step", lambda *a, step=optimizer.step, **k: (enter("update"), step(*a, **k))[1]):
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _faked(params: ViewParams) -> ViewParams:
    drawn = {key: {name: _fake(column) for name, column in columns.items()} for key, columns in params.drawn.items()}
    return ViewParams(_fake(params.source), _fake(params.box), _fake(params.flip), drawn)


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
                    made.setdefault(id(p), nn.Parameter(_fake(p.detach(), memory_format), p.requires_grad))
                    part.register_parameter(name, cast(nn.Parameter, made[id(p)]))
            for name, b in part._buffers.items():
                if b is not None and _moves(b, memory_format):
                    part._buffers[name] = made.setdefault(id(b), _fake(b, memory_format))
    return module
