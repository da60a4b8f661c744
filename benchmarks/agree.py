"""python -m benchmarks.agree: the same steps on several executors, side by side: equal samples, pixels, losses?"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.lockstep import CONTROL, Agreement, LossTolerance, compare
from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.base.machine import available_cpus, git_commit, hardware, versions
from saccade.losses.recipe import ScheduleSpec
from saccade.pipelines.data import open_data
from saccade.pipelines.order import Order
from saccade.pipelines.sources import FolderSource, Source
from saccade.runs.config import Config, resolve
from saccade.runs.flags import check_flags, parse_flags

EXECUTORS = ("reference", "threads", "dali", "ffcv", "ffcv-raw")
RECIPES = {"ressl": "imagenet-5crop"}  # where no --recipe is given; else imagenet100
_QUEUE = 128  # batches a queue holds at most, so that it is full of real keys within the run
_HIDDEN = 256  # units of a head's hidden layer at most, to go with a small backbone


def main(argv: list[str] | None = None) -> int:
    """Trains one learner per executor from the same weights on the same order, step by step, and compares sample
    numbers, drawn parameters, pixels (0 to 255) and losses with `reference`. The exit code is 1 if anything is outside
    of its tolerance."""
    flags = _parser().parse_args(argv)
    executors = _check(flags)
    photos, runs = open_photos(flags.data), []
    configs = [configure(flags, method, photos) for method in flags.method.split(",")]
    with tempfile.TemporaryDirectory(prefix="saccade-agree-") as scratch:
        sources = {
            name: packed(photos, Path(scratch), name) if name.startswith("ffcv") else photos for name in executors
        }
        for config in configs:
            started = time.monotonic()
            found = compare(config, sources, flags.steps, available_cpus() if flags.workers is None else flags.workers)
            show(config, found)
            runs.append(
                {
                    "command": "python -m benchmarks.agree " + shlex.join(sys.argv[1:] if argv is None else argv),
                    "date": time.strftime("%Y-%m-%d"),
                    "commit": git_commit(),
                    "seconds": round(time.monotonic() - started),
                    "hardware": hardware(),
                    "versions": versions(),
                    "loss_tolerance": asdict(LossTolerance()),
                    **describe(config, len(photos), found),
                }
            )
            if flags.json:
                add_to(Path(flags.json), runs)
    failed = [
        f"{run['method']} {e['executor']}: {what}" for run in runs for e in run["executors"] for what in e["failures"]
    ]
    print(f"outside of tolerance: {'; '.join(failed)}" if failed else "all within tolerance")
    return 1 if failed else 0


# --- what is compared ----------------------------------------------------------------------------------------------


def open_photos(data: str) -> FolderSource:
    """The folder of photos; UserError if it is none."""
    photos = open_data(data)[0]
    if not isinstance(photos, FolderSource):
        raise UserError(
            f"--data {data}: a folder of photos is needed, which `reference` reads and tools.convert packs."
        )
    return photos


def packed(photos: FolderSource, folder: Path, executor: str) -> Source:
    """The photos as a .beton in `folder`: JPEG files as they are for ffcv, pixels for ffcv-raw."""
    from saccade.tools.convert import main as convert

    beton = folder / f"{executor}.beton"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        store = "raw" if executor == "ffcv-raw" else "keep"
        convert([str(photos.folder), str(beton), "--split", "train", "--store", store])
    source = open_data(str(beton))[0]
    if len(source) != len(photos):
        raise UserError(
            f"--data {photos.name}: {len(photos) - len(source)} of the {len(photos)} photos cannot be read, so a "
            ".beton has other sample numbers; take them away."
        )
    return source


def configure(flags: argparse.Namespace, method: str, source: Source) -> Config:
    """train.py's, but float32 on a CPU, a warm-up of a tenth of the steps, small heads, a queue that fills."""
    config = resolve(_train_flags(flags, method), source, Path("."))
    recipe, options = config.recipe, config.recipe.options
    most = {"queue_size": _QUEUE * recipe.batch_size, "projector_hidden": _HIDDEN, "predictor_hidden": _HIDDEN}
    options = replace(
        options, **{name: min(value, getattr(options, name)) for name, value in most.items() if hasattr(options, name)}
    )
    steps_per_epoch = Order(len(source), recipe.batch_size).steps()
    warmup = ScheduleSpec("warmup_cosine", {"warmup_epochs": flags.steps / 10 / steps_per_epoch})
    return replace(config, recipe=replace(recipe, options=options, schedule=warmup, batch_norm="local"))


# --- what is shown -------------------------------------------------------------------------------------------------


def describe(config: Config, images: int, found: list[Agreement]) -> dict[str, Any]:
    """The run as plain values, for JSON."""
    recipe = config.recipe
    return {
        "method": recipe.method,
        "recipe": recipe.name,
        "data": config.data,
        "images": images,
        "steps": config.steps,
        "batch_size": recipe.batch_size,
        "image_size": recipe.image_size,
        "views": {v.name: v.size for v in recipe.views},
        "backbone": recipe.backbone.name,
        "optimizer": recipe.optimizer.name,
        "lr": recipe.optimizer.lr,
        "seed": config.seed,
        "executors": [
            {**asdict(f), **_summary(f), "failures": f.failures()} for f in found if f.executor != "reference"
        ],
        "reference_losses": next(f.losses for f in found if f.executor == "reference"),
    }


def add_to(file: Path, runs: list[dict[str, Any]]) -> None:
    """Write the runs, in place of those of the same method and recipe; what the file has of others stays."""
    new = {(run["method"], run["recipe"]) for run in runs}
    kept = [run for run in read_runs(file) if (run["method"], run["recipe"]) not in new]
    content = {"runs": kept + runs}
    write_atomically(file, lambda f: f.write((json.dumps(content, indent=1) + "\n").encode()))


def read_runs(file: Path) -> list[dict[str, Any]]:
    """The runs that an earlier call wrote; none without a file."""
    try:
        runs = json.loads(file.read_text())["runs"] if file.exists() else []
        return [run for run in runs if run["method"] and run["recipe"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--json {file} holds something else than what this command wrote; choose another file."
        ) from error


def _summary(found: Agreement) -> dict[str, float]:
    return {
        "pixel_mean": max(found.mean.values()),
        "pixel_largest": max(found.largest.values()),
        "loss_shared_largest": max(found.shared),
        "loss_step_1": found.trained[0],
        "loss_first_10": max(found.trained[:10]),
        "loss_last": found.trained[-1],
        "loss_largest": max(found.trained),
    }


def show(config: Config, found: list[Agreement]) -> None:
    """The table of one run, and what was allowed."""
    recipe, judge = config.recipe, found[0].losses
    steps, sizes = len(judge), sorted({view.size for view in recipe.views}, reverse=True)
    print(
        f"\n{recipe.method} {recipe.name}: {steps} steps of {recipe.batch_size} images, views of "
        f"{', '.join(map(str, sizes))} px, {recipe.backbone.name}, float32;\n"
        f"reference's loss {judge[0]:.4f} at step 1, {judge[-1]:.4f} at step {steps}; losses are relative differences\n"
    )
    rows: list[tuple[str, ...]] = [
        ("", "same", "same", "pixels", "0-255", "same", "own", "learner", "", ""),
        ("executor", "samples", "params", "mean", "largest", "weights", "step 1", "first 10", f"step {steps}", "any"),
    ]
    for f in found[1:]:
        s, mark = _summary(f), " *" if f.failures() else ""
        losses = [f"{value:.1e}" for name, value in s.items() if name.startswith("loss")]
        pixels = f"{s['pixel_mean']:.5f}", f"{s['pixel_largest']:.4f}"
        rows.append((f.executor + mark, f"{f.same_samples}/{steps}", f"{f.same_params}/{steps}", *pixels, *losses))
    allowed, pixels = LossTolerance(), found[1].allowed
    limits = f"{allowed.shared:.0e}", "", f"{allowed.first_10:.0e}", f"{allowed.last:.0e}", ""
    rows.append(("allowed", "all", "all", f"{pixels.mean:.5f}", f"{pixels.largest:.4f}", *limits))
    for first, *cells in rows:
        print(f"{first:<11}" + "".join(f"{cell:>10}" for cell in cells))
    print(
        f"pixels (of the worst view): {pixels.reason}\nlosses: {allowed.reason}\n{CONTROL}: reference's views with "
        "uniform noise as large as the mean pixel tolerance, to show what that does to losses\n"
    )


# --- flags ---------------------------------------------------------------------------------------------------------


def _check(flags: argparse.Namespace) -> list[str]:
    """The executors, reference first; UserError where a flag cannot work."""
    executors = list(dict.fromkeys(filter(None, flags.executors.split(","))))
    for name in executors:
        if name not in EXECUTORS:
            raise UserError(
                f"--executors {name} is unknown; use reference and one or more of {', '.join(EXECUTORS[1:])}."
            )
    if "reference" not in executors or len(executors) < 2:
        raise UserError(
            f"--executors {flags.executors}: reference and at least one other are needed, e.g. reference,dali."
        )
    methods = flags.method.split(",")
    if flags.recipe and len(methods) > 1:
        raise UserError(f"--recipe {flags.recipe} goes with one method; --method names {len(methods)}.")
    if flags.json and not Path(flags.json).parent.is_dir():
        raise UserError(
            f"--json {flags.json}: the folder {Path(flags.json).parent} does not exist; make it or choose another."
        )
    if flags.json:
        read_runs(Path(flags.json))
    return sorted(executors, key=EXECUTORS.index)


def _train_flags(flags: argparse.Namespace, method: str) -> argparse.Namespace:
    """The run as train.py's flags, checked."""
    recipe = flags.recipe or RECIPES.get(method, "imagenet100")
    argv = [f"--method={method}", f"--data={flags.data}", f"--recipe={recipe}", "--device=cpu", "--precision=fp32"]
    for name in ("backbone", "image_size", "batch_size", "steps", "lr", "seed", "workers"):
        if getattr(flags, name) is not None:
            argv.append(f"--{name.replace('_', '-')}={getattr(flags, name)}")
    parsed = parse_flags(argv, "benchmarks.agree")
    check_flags(parsed)
    return parsed


def _parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(prog="benchmarks.agree", description=main.__doc__)
    command.add_argument("--data", required=True, metavar="PHOTOS", help="a folder of photos")
    command.add_argument("--method", default="rsa,ressl", help="one or more, with commas between (default: rsa,ressl)")
    command.add_argument("--recipe", help="the published recipe (default: imagenet-5crop for ressl, else imagenet100)")
    command.add_argument(
        "--executors",
        default="reference,threads,dali,ffcv",
        help=f"some of {', '.join(EXECUTORS)}; ffcv reads the JPEG files from a .beton, ffcv-raw pixels",
    )
    command.add_argument("--steps", type=int, default=200, help="optimizer steps (default: 200)")
    command.add_argument(
        "--image-size", type=int, default=48, help="pixels of the largest view, others scale with it (default: 48)"
    )
    command.add_argument(
        "--batch-size", type=int, default=8, help="(default: 8; reference takes about 0.1 s of a core per image)"
    )
    command.add_argument("--backbone", default="test_byobnet", help="any timm model (default: test_byobnet)")
    command.add_argument("--lr", type=float, help="peak learning rate (default: the recipe's, scaled with the batch)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--workers", type=int, help="of each executor (default: the CPUs)")
    command.add_argument(
        "--json", metavar="FILE", help="also write all numbers as JSON, beside what it has of other methods"
    )
    return command


if __name__ == "__main__":
    run_command("benchmarks.agree", main)
