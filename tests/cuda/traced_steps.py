"""In a process that `fake_cuda.environment` was made for: prints what a step of each method does on a GPU, as JSON."""

import json
import sys

from benchmarks.fake_cuda import fake_trainer, pretend, trace_step
from saccade.losses.registry import methods
from saccade.tools.benchmark.suites import noise

SMALL = ["--image-size", "32", "--batch-size", "16", "--no-compile"]
CASES = {name: ["--method", name, "--recipe", "cifar10", "--backbone", "test_resnet"] for name in methods()}
CASES["adamw and a ViT"] = ["--method", "moco-v3", "--recipe", "imagenet-vit", "--backbone", "test_vit"]
CASES["accumulated"] = [*CASES["stec"], "--accumulate", "2"]


def report(argv: list[str], source) -> dict:
    try:
        trainer, batch, mode = fake_trainer([*argv, *SMALL], source)
        trace = trace_step(trainer, batch, mode)
    except Exception as error:
        return {"faults": [f"{type(error).__name__}: {str(error).splitlines()[0]}"]}
    products = ("aten::convolution", "aten::convolution_backward", "aten::addmm", "aten::mm")
    updates = ("aten::_fused_sgd_", "aten::_fused_adamw_", "aten::_foreach_lerp_", "aten::_foreach_add_")
    return {
        "faults": trace.faults,
        "operators": len(trace.operators),
        "products": {name: sorted({o.dtype for o in trace.operators if o.name == name}) for name in products},
        "updates": sorted({o.dtype for o in trace.operators if o.name.startswith(updates)}),
        "parameters": sorted({f"{p.device.type} {p.dtype}" for p in trainer.learner.parameters()}),
        "teacher": trainer.learner.teacher is not None,
        "batch_norm": trainer.config.recipe.batch_norm,
        "optimizer": trainer.config.recipe.optimizer.name,
    }


if __name__ == "__main__":
    pretend()
    images = noise(64, 32)
    json.dump({name: report(CASES[name], images) for name in sys.argv[1:]}, sys.stdout)
