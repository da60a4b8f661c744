"""What a run says on the screen and leaves in its folder, at its start and at its end."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import Any

from saccade import __version__
from saccade.base.files import write_atomically
from saccade.base.machine import git_commit, git_diff, hardware, versions
from saccade.base.text import printable
from saccade.models.backbone import export_backbone
from saccade.pipelines.order import ORDER_VERSION
from saccade.runs.collapse import all_alike
from saccade.runs.config import Config
from saccade.runs.folder import RunFolder
from saccade.runs.memory import in_parts
from saccade.runs.monitor import BASELINES
from saccade.runs.pictures import plot_curves, save_png, view_grid
from saccade.runs.record import RECIPE, published, write_record
from saccade.runs.resume import write_recipe
from saccade.runs.session import Session


def announce(session: Session, folder: RunFolder) -> None:
    """Print the resolved run; write config.json, recipe.toml, views.png, the checkout's changes if any."""
    config, pipeline, total_steps = session.config, session.pipeline, session.total_steps
    recipe, source, accelerator = config.recipe, session.source, session.accelerator
    parameters = sum(p.numel() for p in session.learner.student.backbone.parameters()) / 1e6
    spec, schedule = recipe.optimizer, recipe.schedule
    lines = (
        ("method", f"{recipe.method}  {recipe.options}"),
        (
            "data",
            printable(f"{source.name}: {source.describe()}"),
        ),
        *([("sampling", printable(session.sampling.told))] if session.sampling else ()),
        (
            "recipe",
            f"{recipe.data} at {recipe.image_size} px"
            + (f"  (proposal: {'; '.join(recipe.proposals.values())})" if recipe.proposals else ""),
        ),
        ("pipeline", f"{pipeline.choice}; views {', '.join(recipe.views.names)}"),
        (
            "backbone",
            f"{recipe.backbone.name}, stem {recipe.backbone.stem}, {parameters:.2f} M parameters"
            + (printable(f"; from {config.init}") if config.init else ""),
        ),
        (
            "optimizer",
            f"{spec.name}, lr {spec.lr:.4g}, weight decay {spec.weight_decay:g}, {schedule.kind} "
            + " ".join(f"{k}={v}" for k, v in schedule.options.items()),
        ),
        ("steps", f"{total_steps} of {recipe.batch_size} images, {len(pipeline)} an epoch"),
        (
            "machine",
            (
                f"{accelerator.device}, {accelerator.num_processes} process(es), "
                f"precision {session.precision}, {'compiled' if session.compiles else 'not compiled'}"
            ),
        ),
        ("precision", _precision(config)),
        ("run folder", str(config.out)),
    )
    for name, text in lines:
        print(f"{name:>10}  {text}", flush=True)
    warmup = round(schedule.options.get("warmup_epochs", 0) * len(pipeline))
    if warmup >= total_steps:
        print(
            f"{'note':>10}  the warm-up of {warmup} steps is longer than the run: the learning rate never "
            f"reaches {spec.lr:.4g}; shorten it with --set schedule.options.warmup_epochs=0",
            flush=True,
        )
    objective = session.learner.objective
    used = {*objective.student_views, *objective.teacher_views}
    used |= {view.parent for view in recipe.views if view.parent}
    if config.accumulate > 1:
        print(f"{'note':>10}  a step in {config.accumulate} parts: {in_parts(session, config.accumulate)}", flush=True)
    if idle := [name for name in recipe.views.names if name not in used]:
        print(
            f"{'note':>10}  {recipe.method} uses the views {', '.join(sorted(used))}; {', '.join(idle)} is rendered "
            f"for nothing: take it out with --set views.{idle[0]}=none",
            flush=True,
        )
    source.account.show()
    if warning := all_alike(source):
        print(warning, file=sys.stderr, flush=True)
    if not config.resume:
        exported = "teacher" if session.learner.objective.evaluate_teacher else "student"
        made = {"exported": exported, "version": __version__, "order": ORDER_VERSION, "versions": versions()}
        made["commit"] = git_commit()
        write_recipe(config)
        write_record(config.out, {"recipe_file": RECIPE, **config.to_json(), **_data(session), **made})
        if changes := git_diff():
            write_atomically(config.out / "checkout.diff", lambda f: f.write((changes + "\n").encode()))
        save_png(view_grid(source, recipe.views, config.seed), config.out / "views.png")


def _data(session: Session) -> dict[str, Any]:
    """What reading the data came to, for the record."""
    source, sampling = session.source, session.sampling
    chosen = source.reader.value_range
    return {
        "account": source.account.to_json(),
        "fingerprint": session.pipeline.state_dict()["images"],
        "value_range": None if chosen is None else str(chosen),
        "sampled": sampling.told if sampling else None,
    }


def _precision(config: Config) -> str:
    if config.precision == config.published_precision:
        return f"{config.precision}, as the recipe"
    asked = config.flags["precision"] != "auto" or any(s.startswith("precision=") for s in config.flags["set"])
    why = "as asked" if asked else "this device's default"
    return f"{config.precision}, {why}; the recipe was published in {config.published_precision} (--precision recipe)"


def finish(session: Session, folder: RunFolder, totals: dict[str, float], baselines: dict[str, float]) -> None:
    """Write summary.json, curves.png and the backbone; print a short summary."""
    config, learner, step = session.config, session.learner, session.steps
    recipe, records = config.recipe, folder.metrics()
    description = {
        "features": learner.objective.features,
        "mean": recipe.views.mean,
        "std": recipe.views.std,
        "method": recipe.method,
        "data": published(config.data),
        "steps": step,
        "value_range": _data(session)["value_range"],
        **({"classes": list(classes)} if (classes := session.source.classes) else {}),
    }
    for name, content in export_backbone(learner.backbone, recipe.backbone, recipe.image_size, description).items():
        write_atomically(config.out / name, lambda f, content=content: f.write(content))
    knn = next((r["knn_top1"] for r in reversed(records) if r["step"] and "knn_top1" in r), None)
    tested = next((r["knn_test"] for r in records if "knn_test" in r), None)
    scores = {"knn_top1": knn, **{name: baselines.get(name) for name in BASELINES}, "knn_test": tested}
    summary = {
        "method": recipe.method,
        "data": config.data,
        "backbone": recipe.backbone.name,
        "epochs": session.epoch,
        "steps": step,
        "seconds": round(totals["seconds"], 2),
        "images_per_second": round(totals["images"] / max(totals["seconds"], 1e-9), 1),
        "data_wait": round(totals["waited"] / max(totals["seconds"], 1e-9), 4),
        "checkpoint_wait": round(totals["stood"] / max(totals["seconds"] + totals["stood"], 1e-9), 6),
        **scores,
        "bad_images": len(session.source.known_bad),
        "versions": versions(),
        "commit": git_commit(),
        "hardware": hardware(),
    }
    folder.write_json("summary.json", summary)
    plot_curves(
        records,
        config.out / "curves.png",
        {n.removesuffix("_knn_top1").replace("_", " "): v for n, v in baselines.items() if v is not None},
        printable(f"{recipe.method} on {Path(config.data).name}: {recipe.backbone.name}, {step} steps"),
    )
    print(
        f"\ntrained {step} steps in {totals['seconds']:.0f} s: {summary['images_per_second']:.0f} images/s, "
        f"{summary['data_wait']:.0%} of it waiting for data"
    )
    start = "starting" if config.init else "untrained"
    if knn is None:
        print("kNN top-1: not measured (--eval-every 0, or no labelled images to test on: give --val-data)")
    else:
        print(
            f"kNN top-1: raw pixels {scores['raw_pixel_knn_top1']:.1f} %, {start} backbone "
            f"{scores['untrained_knn_top1']:.1f} %, trained backbone {knn:.1f} %"
        )
    if summary["bad_images"]:
        print(f"{summary['bad_images']} unreadable images were replaced; {config.out}/bad_images.txt lists them")
    images = "" if knn is not None or baselines else " --data LABELLED_IMAGES"
    print(
        f"backbone: {config.out}/backbone.safetensors   "
        f"evaluate it: saccade eval {quote(str(config.out))} --protocol linear{images}"
    )
