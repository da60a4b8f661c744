"""The parts of the GPU report that ask whether the GPU is right, before any asks how fast it is."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor

from benchmarks.gpu_part import Bench, Part, small_argv
from saccade.losses.registry import methods
from saccade.pipelines.draw import draw
from saccade.pipelines.order import Order
from saccade.pipelines.render import render
from saccade.pipelines.views import View, Views
from saccade.tools.benchmark.rows import Row
from saccade.tools.benchmark.suites import noise, photo_recipe, photos
from saccade.tools.benchmark.trainer import Trainer

PIXELS = 1e-4  # of a normalised view: two orders of summation in float32
STEP = 1e-3  # of a parameter's largest entry: one step in float32 by two libraries
BETWEEN_DECODERS = 0.05  # mean of a normalised view; another picture differs by 0.3 and more


def kernels(bench: Bench) -> Iterator[Row]:
    """The compiled renderer against plain torch in float64 on the CPU, on every published kind of view."""
    backend = "triton" if bench.is_cuda else "numba"
    recipes = {f"{name} cifar10": method.recipe("cifar10", 32).views for name, method in methods().items()}
    recipes["photos"] = photo_recipe(bench.size.photo, crops=2)
    recipes["cubic"] = Views(tuple(_cubic(view) for view in photo_recipe(bench.size.photo)))
    for name, views in recipes.items():
        pixels = torch.from_numpy(noise(16, 64).array()).permute(0, 3, 1, 2).contiguous()
        params = draw(views, 0, 0, torch.arange(16), torch.full((16, 2), 64))
        expected = render(pixels, views, params, backend="torch")
        moved = {view: p.to(bench.device) for view, p in params.items()}
        found = render(pixels.to(bench.device), views, moved, backend=backend)
        yield _judged(bench, name, backend, max(_largest(found[v].cpu(), expected[v]) for v in expected), PIXELS)


def parity(bench: Bench) -> Iterator[Row]:
    """`tools.parity`: every executor that is here, those of the device included, against `reference`."""
    from saccade.tools.parity import main

    out, said = bench.scratch / "parity.json", io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main(["--images", "2" if bench.size.miniature else "8", "--json", str(out)])
    pixels = json.loads(out.read_text())["pixels"]
    for executor in dict.fromkeys(row["executor"] for row in pixels):
        used = [
            max(r["mean"] / r["allowed_mean"], r["largest"] / r["allowed_largest"])
            for r in pixels
            if r["executor"] == executor
        ]
        yield _judged(bench, "every operation and recipe", executor, max(used), 1.0)
    if code:
        yield bench.row("wrong", "tools.parity", error=said.getvalue().strip().splitlines()[-1])


def dali_buffer(bench: Bench) -> Iterator[Row]:
    """DALI's views where the render waits behind a long kernel: memory let go too early would be overwritten."""
    if find_spec("nvidia") is None or find_spec("nvidia.dali") is None:
        yield bench.row("skipped", "dali", why="DALI is not installed")
        return
    from saccade.pipelines.dali import DaliPipeline

    views, source = photo_recipe(64), photos(bench.scratch, 1)

    class Late(DaliPipeline):
        def _render(self, *args, **options):
            if self.device.type == "cuda":
                torch.cuda._sleep(100_000_000)  # some 50 ms in which DALI is done with the next chunks
            return super()._render(*args, **options)

    def made(kind: type[DaliPipeline], device: torch.device) -> list[dict[str, Tensor]]:
        with kind(source, views, Order(len(source), 4), device, threads=4, cuts=True) as pipeline:
            return [{name: view.float().cpu() for name, view in batch.views.items()} for batch in pipeline]

    expected, found = made(DaliPipeline, torch.device("cpu")), made(Late, bench.device)
    worst = max(float((a[n] - b[n]).abs().mean()) for a, b in zip(found, expected, strict=True) for n in a)
    yield _judged(bench, "views rendered late", "dali", worst, BETWEEN_DECODERS)


def steps(bench: Bench) -> Iterator[Row]:
    """One step of each method in float32 on the device and on the CPU, from the same weights and views."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for method in methods():
        before, views, after = _one_step(method, bench.device.type)
        _, same, expected = _one_step(method, "cpu", before)
        error = max(_largest(after[k], v) / float(v.abs().max().clamp(min=1e-3)) for k, v in expected.items())
        row = _judged(bench, method, "step", error, STEP)
        row.more["largest_update"] = max(_largest(v, before[k]) for k, v in expected.items())
        row.more["views_difference"] = max(_largest(views[n], same[n]) for n in views)
        yield row


def repeatable(bench: Bench) -> Iterator[Row]:
    """Five steps twice from one seed, by default and with torch's deterministic algorithms: equal bit for bit?"""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    source = noise(64, 32)
    for deterministic in (True, False):
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        for method in ("stec", "ressl", "resa"):
            first, second = (_weights(method, source, bench.device.type) for _ in range(2))
            different = sum(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
            row = bench.row("right", f"{method}, five steps", deterministic=deterministic, different=different)
            if deterministic and different:
                row.kind, row.more["error"] = "wrong", f"{different} of {len(first)} tensors differ between two runs"
            yield row
    torch.use_deterministic_algorithms(False)


RIGHT: dict[str, Part] = {
    "kernels": kernels,
    "parity": parity,
    "dali_buffer": dali_buffer,
    "steps": steps,
    "repeatable": repeatable,
}


def _judged(bench: Bench, what: str, who: str, error: float, allowed: float) -> Row:
    row = bench.row("right", what, difference=float(f"{error:.3g}"), allowed=allowed)
    row.executor = who
    if not error <= allowed:  # a NaN is no agreement
        row.kind, row.more["error"] = "wrong", f"differs by {error:.3g}, {allowed:g} is allowed"
    return row


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


def _cubic(view: View) -> View:
    return replace(view, crop=replace(view.crop, interpolation="bicubic"))


def _one_step(
    method: str, device: str, weights: dict[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """A float32 step on `device`, from `weights` where given: weights before, views, parameters after, on the CPU."""
    os.environ.pop("ACCELERATE_USE_CPU", None)
    for state in (AcceleratorState, GradientState, PartialState):  # Accelerate takes one device for a process
        state._reset_state()
    argv = [*small_argv(method, "test_resnet"), "--batch-size", "16", "--precision", "fp32", "--no-compile"]
    trainer = Trainer([*argv, "--device", device], noise(32, 32))
    if weights is not None:
        trainer.learner.load_state_dict(weights)
    before = _on_cpu(trainer.learner.state_dict())
    batch = next(iter(trainer.pipeline))
    trainer.session.step(batch, lr=0.1)
    trainer.pipeline.close()
    return before, _on_cpu(batch.views), _on_cpu(dict(trainer.learner.named_parameters()))


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().clone() for name, t in tensors.items()}


def _weights(method: str, source, device: str) -> list[Tensor]:
    trainer = Trainer(
        [*small_argv(method, "test_resnet"), "--batch-size", "16", "--no-compile", "--device", device], source
    )
    batches = iter(trainer.pipeline)
    for _ in range(min(5, len(trainer.pipeline))):
        trainer.step(next(batches))
    return [t.detach().cpu().clone() for t in trainer.learner.state_dict().values()]
