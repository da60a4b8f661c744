"""The flags of train.py: what may be written, what is refused at once, what a resumed run takes over."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saccade.base.errors import UserError
from saccade.base.own import absolute, moved
from saccade.base.program import command_parser
from saccade.losses.registry import methods
from saccade.models.backbone import check_backbone, known_backbone
from saccade.pipelines.build import executors, find_executor
from saccade.pipelines.data import NAMES
from saccade.pipelines.render import BACKENDS
from saccade.pipelines.scale import DECODES
from saccade.pipelines.sources.mixed import PLUS
from saccade.pipelines.sources.options import add_flags
from saccade.runs.checkpoint import checkpoints
from saccade.runs.choice import check_recipe_name, chosen_recipe, method_of
from saccade.runs.interval import USUAL, Interval
from saccade.runs.plain_recipe import Fault, unknown
from saccade.runs.precision import PRECISIONS
from saccade.runs.recipe_file import RUN, is_file, read_recipe_file
from saccade.runs.record import check_local, read_flags
from saccade.runs.screen import KINDS

DATA_FLAGS = (
    "data",
    "val_data",
    "labelled_data",
    "data_dir",
)  # where the images lie may change, which they are may not
MAX_WORKERS = 1024
RESUMABLE = {
    "resume",
    "operation",
    "allow_changes",
    "workers",
    "cache",
    "cache_limit",
    "device",
    "compile",
    "renderer",
    "log",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep",
    "no_report",
    "track",
    "allow_pipe",
    "rank_timeout",
    "labels",
    *DATA_FLAGS,
}
# What makes a recipe; a resumed run has them in the recipe of its checkpoint.
RECIPE_FLAGS = (
    "method",
    "stec_base",
    "recipe",
    "backbone",
    "image_size",
    "epochs",
    "batch_size",
    "lr",
    "set",
    "precision",
)
# What else decides what is learned: a run's recipe.toml has them too.
RUN_FLAGS: dict[str, type] = {
    **dict.fromkeys(
        (*DATA_FLAGS, "labels", "init", "image_key", "label_key", "value_range", "sampling", "decode"), str
    ),
    **dict.fromkeys(("channels", "steps", "seed", "accumulate", "shard_group"), int),
    "joint_views": bool,
    "precision": str,
}

EXAMPLES = {
    "--method stec": "an embedded data set",
    "--method resa --data cifar10": "the published recipe",
    "--data PHOTOS": "your own images: on a CPU, or if they are few, in minutes",
    "--init outputs/RUN --data MORE_PHOTOS": "from weights that exist; also a file of other code, or timm",
    "--recipe mine.toml --data PHOTOS": "a recipe of your own, which saccade recipes METHOD RECIPE --toml begins",
    "--resume outputs/RUN": "after a crash or Ctrl-C: exactly where it was",
}
DESCRIPTION = """Pre-train a vision backbone without labels. With no flags but --method it trains on an embedded
data set, so that everything can be seen working in three minutes on two CPU cores."""


class Mixture(argparse.Action):
    """Several values as one text, A + B:2."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        setattr(namespace, self.dest, PLUS.join(values))


def parser(
    prog: str = "train.py", description: str = DESCRIPTION, examples: dict[str, str] = EXAMPLES
) -> argparse.ArgumentParser:
    """The flags of train.py, grouped."""
    p = command_parser(prog, description, examples)
    what = p.add_argument_group("what to train")
    what.add_argument(
        "--method",
        type=absolute,
        help=f"one of {', '.join(methods())}, or your own: path/to/file.py, package.module (default: the recipe "
        "file's, or stec)",
    )
    what.add_argument(
        "--data",
        default="textures",
        nargs="+",
        action=Mixture,
        metavar="DATA",
        help="a folder of images, an .npz, a .beton, tar shards (a path, x-{000..127}.tar, a URL), or one of "
        f"{', '.join(NAMES)}; several are mixed, A B:2 shows B's images twice an epoch (default: textures, embedded)",
    )
    what.add_argument("--val-data", help="images to evaluate on (default: a val/ or test/ split found beside the data)")
    add_flags(what)
    what.add_argument("--allow-pipe", action="store_true", help="allow pipe: URLs in --data; they run a shell command")
    what.add_argument(
        "--sampling",
        metavar="HOW",
        help="for long tails: balanced (each class as often as any other), sqrt (by the square root of its images) or "
        "a column of weights in the CSV of --labels (default: each image once an epoch)",
    )
    what.add_argument(
        "--labelled-data",
        help="labelled images beside unlabelled --data, for the classifier that SimCLR and S-TEC "
        "train and for kNN (default: with stl10 its own 5,000)",
    )
    what.add_argument("--data-dir", default="data", help="where cifar10, cifar100 and stl10 are kept (default: data)")
    what.add_argument(
        "--recipe",
        help="take this recipe, of those that saccade recipes METHOD lists, or a recipe file, FILE.toml "
        "(default: --data, or the nearest in size)",
    )
    what.add_argument(
        "--operation",
        action="append",
        type=absolute,
        default=[],
        metavar="FILE.py:CLASS",
        help="allow an operation of your own in the recipe file, or in the run that is resumed; its code runs",
    )
    what.add_argument(
        "--backbone",
        type=absolute,
        help="any timm model name, or your own: path/to/file.py:NAME, package.module:NAME (default: the recipe's)",
    )
    what.add_argument(
        "--init",
        metavar="WEIGHTS",
        help="start from weights that exist: a run folder, a file that other code wrote, or timm, for timm's own "
        "(default: random)",
    )
    what.add_argument(
        "--image-size", type=int, help="pixels of a full-size view (default: the recipe's, or the images')"
    )
    what.add_argument(
        "--stec-base",
        default="simclr",
        help="what --method stec adds its inverse model to: simclr, or byol, which is "
        "our extension, not the authors' (default: simclr)",
    )
    training = p.add_argument_group("training (default: the recipe's value)")
    training.add_argument("--epochs", type=int, help="passes over the data")
    training.add_argument("--steps", type=int, help="optimizer steps in all, instead of --epochs")
    training.add_argument("--batch-size", type=int, help="images per optimizer step, over all processes")
    training.add_argument(
        "--accumulate",
        type=int,
        default=1,
        help="split a step into this many forward passes, where memory holds no more; batch norm, and losses that "
        "compare images (docs/methods.md), see a part (default: 1)",
    )
    training.add_argument("--lr", type=float, help="peak learning rate (default: the recipe's, scaled with the batch)")
    training.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change any value of the recipe, e.g. options.temperature=0.2 or views.weak.blur=none (docs/recipes.md)",
    )
    training.add_argument("--seed", type=int, default=0)
    training.add_argument(
        "--joint-views",
        action=argparse.BooleanOptionalAction,
        help="the student's views of one size in one forward: faster where batches are small; their BatchNorm "
        "statistics are then shared, which changes the method (default: as the method has it)",
    )
    machine = p.add_argument_group("machine")
    machine.add_argument(
        "--pipeline",
        default="auto",
        type=absolute,
        help=f"executor: {', '.join(executors())}, or your own: path/to/file.py:Class (default: auto)",
    )
    machine.add_argument(
        "--shard-group",
        type=int,
        default=0,
        metavar="N",
        help="tar shards: shuffle the images of N shards at a time (default: 0, all images at once)",
    )
    machine.add_argument(
        "--workers", type=int, help="decoding processes or threads per process (default: from the CPUs)"
    )
    machine.add_argument(
        "--cache",
        metavar="ram|disk:FOLDER",
        help="keep what is decoded as raw pixels, in memory or on a disk: later epochs and runs do not decode again",
    )
    machine.add_argument(
        "--cache-limit",
        type=float,
        metavar="GB",
        help="the most the cache may take, per process in memory (default: half of what is free)",
    )
    machine.add_argument(
        "--decode",
        default="exact",
        help="exact, or scaled: JPEGs much larger than the views are decoded at 1/2, 1/4 or 1/8 where all crops allow "
        "it, which is faster; views of photos differ by less than 1 of 255 on average (default: exact)",
    )
    machine.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    machine.add_argument(
        "--precision",
        default="auto",
        help="auto, recipe (what it was published in), fp32, bf16 or fp16 (default: bf16 on a GPU, else fp32)",
    )
    machine.add_argument(
        "--renderer",
        default="auto",
        help=f"what computes the views: {', '.join(BACKENDS)} (default: auto, the fastest that works here)",
    )
    machine.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile (default: on a GPU)")
    machine.add_argument(
        "--rank-timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="several processes: end all when one has stood still for so long (default: 600)",
    )
    run = p.add_argument_group("the run")
    run.add_argument("--out", help="run folder (default: outputs/METHOD-DATA-TIME)")
    run.add_argument(
        "--resume",
        metavar="FOLDER",
        help="continue the run in this folder from its last checkpoint; auto: the run in --out, or start it, so that "
        "the same command may be given again and again",
    )
    run.add_argument(
        "--allow-changes",
        action="store_true",
        help="go on with another --lr, --set or recipe.toml than the checkpoint's; what changes is said and recorded",
    )
    run.add_argument(
        "--log",
        default="auto",
        help="what shows how far it is: a bar, lines, or json, the lines of metrics.jsonl alone on standard output "
        "(default: auto, a bar on a terminal, else lines)",
    )
    run.add_argument("--log-every", type=int, default=10, help="steps between lines of metrics.jsonl (default: 10)")
    run.add_argument(
        "--eval-every", type=int, help="epochs between kNN evaluations, 0 for none (default: ten times a run, or fewer)"
    )
    run.add_argument(
        "--checkpoint-every",
        default=USUAL,
        metavar="INTERVAL",
        help="how often it is saved: minutes (10m, and at the end of an epoch), steps (500) or epochs (1ep) "
        f"(default: {USUAL})",
    )
    run.add_argument(
        "--no-report",
        action="store_true",
        help="make no report.html at the end (default: within a tenth of the time)",
    )
    run.add_argument("--keep", type=int, default=2, help="checkpoints kept (default: 2)")
    run.add_argument("--track", default="", help="also log to tensorboard, wandb, csv (comma-separated; default: none)")
    return p


def parse_flags(argv: Sequence[str], prog: str = "train.py") -> argparse.Namespace:
    """The flags, with `given`, the names of those written; with a run's recipe.toml what else that run was started
    with; with --resume those of the interrupted run, where those of machine, logging, data and recipe may differ."""
    flags = parser(prog).parse_args(argv)
    given = {name: getattr(flags, name) for name in _written(argv, prog)}
    if flags.resume == "auto":
        flags.resume = begun(given.pop("out", None))
    if flags.resume is None:
        run = run_table(flags.recipe, given) if is_file(flags.recipe) else {}
        return argparse.Namespace(**{**vars(flags), **run, "given": tuple(given), "final": bool(run)})
    saved = read_flags(
        Path(flags.resume), {**vars(parser(prog).parse_args([])), **dict.fromkeys(("resume", "out"))}, given
    )
    differs = [
        n for n in sorted(given) if n not in RESUMABLE and given[n] != saved[n] and not moved(given[n], saved[n])
    ]
    if not flags.allow_changes and not set(differs) <= set(RECIPE_FLAGS):  # those are compared with the recipe later
        dropped = "; ".join(f"drop --{n.replace('_', '-')} {given[n]}: it was {saved[n]}" for n in differs)
        may = ", ".join(sorted(f"--{n.replace('_', '-')}" for n in RESUMABLE))
        raise UserError(
            f"--resume continues the run as it was; {dropped} ({may} may change, all others with --allow-changes)."
        )
    return argparse.Namespace(**{**saved, **given, "resume": flags.resume, "out": flags.resume, "given": tuple(given)})


def as_typed(flags: Mapping[str, Any]) -> str:
    """The command that a run with these flags is started by; what is as usual is left out."""
    words = ["saccade", "train"]
    for action in parser()._actions:
        value = flags.get(action.dest, action.default)
        usual = (action.default, os.path.abspath(str(action.default)) if action.dest == "data_dir" else None)
        if value in usual or action.dest in ("resume", "allow_changes", "help"):
            continue
        flag = action.option_strings[0]
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [word for one in (value if isinstance(value, list) else [value]) for word in (flag, str(one))]
    return shlex.join(words)


def run_table(file: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's recipe.toml says beside the recipe, without what is `given` now."""
    text = read_recipe_file(file)
    with text.blamed():
        run = text.values.get(RUN, {})
        if not isinstance(run, dict):
            raise Fault((RUN,), "give a table, or leave it out.")
        for name, value in run.items():
            if name not in RUN_FLAGS:
                raise unknown((RUN, name), RUN_FLAGS)
            if type(value) is not RUN_FLAGS[name] or (isinstance(value, str) and "\0" in value):
                raise Fault((RUN, name), f"that is no {RUN_FLAGS[name].__name__}.")
    for name in ("data", "val_data", "labelled_data"):
        if name in run and name not in given:
            check_local(run[name], f"--{name.replace('_', '-')}", Path(file))
    taken = {name: value for name, value in run.items() if name not in given}
    if "epochs" in given:  # which says the same as --steps
        taken.pop("steps", None)
    return taken


def begun(out: str | None) -> str | None:
    """The run folder, if there is a run to continue; None where one is to be started. UserError without a folder."""
    if out is None:
        raise UserError("--resume auto continues the run in --out FOLDER, or starts it; give --out.")
    return out if checkpoints(Path(out)) else None


def _written(argv: Sequence[str], prog: str) -> set[str]:
    """The names of the flags that stand on the command line, those at their default too."""
    silent = parser(prog)
    for action in silent._actions:
        action.default = argparse.SUPPRESS
    return set(vars(silent.parse_args(argv)))


def check_flags(flags: argparse.Namespace) -> None:
    """Raise UserError for values that no data or machine could make right."""
    for name in ("epochs", "steps", "batch_size", "accumulate", "log_every", "keep", "image_size"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} is not positive; give 1 or more.")
    for name in ("workers", "eval_every", "seed", "shard_group"):
        value = getattr(flags, name)
        if value is not None and value < 0:
            raise UserError(f"--{name.replace('_', '-')} {value} is negative; give 0 or more.")
    Interval.parse(flags.checkpoint_every)
    if flags.workers is not None and flags.workers > MAX_WORKERS:
        raise UserError(f"--workers {flags.workers} is too many; give {MAX_WORKERS} or fewer.")
    if not 1 <= flags.rank_timeout <= 1e6:
        raise UserError(f"--rank-timeout {flags.rank_timeout} is no time to wait; give 1 to 1000000 seconds.")
    if flags.seed >= 2**32:
        raise UserError(f"--seed {flags.seed} is too large; give a number below 2^32.")
    for name, known in (
        ("data", "a data set's name"),
        ("val_data", "a data set's name"),
        ("labelled_data", "a data set's name"),
        ("init", "timm"),
    ):
        if getattr(flags, name) is not None and not getattr(flags, name).strip():
            raise UserError(f"--{name.replace('_', '-')} is empty; give a folder, a file or {known}.")
    if flags.allow_changes and flags.resume is None:
        raise UserError("--allow-changes goes with --resume FOLDER; leave it out of a new run.")
    if flags.steps is not None and flags.epochs is not None:
        raise UserError("--steps and --epochs both say how long to train; give one of them.")
    if flags.lr is not None and not 0 < flags.lr < float("inf"):
        raise UserError(f"--lr {flags.lr} is no learning rate; give a positive number.")
    for name, allowed in (
        ("precision", ("auto", "recipe", *PRECISIONS)),
        ("renderer", BACKENDS),
        ("decode", DECODES),
        ("device", ("auto", "cpu", "cuda")),
        ("log", KINDS),
    ):
        if getattr(flags, name) not in allowed:
            raise UserError(f"--{name} {getattr(flags, name)} is unknown; use one of {', '.join(allowed)}.")
    unknown = set(filter(None, flags.track.split(","))) - {"tensorboard", "wandb", "csv"}
    if unknown:
        raise UserError(f"--track {', '.join(sorted(unknown))} is unknown; use tensorboard, wandb or csv.")
    for tracker in {"tensorboard", "wandb"} & set(flags.track.split(",")):
        if find_spec(tracker) is None:
            raise UserError(f"--track {tracker} needs the package {tracker}; pip install {tracker}, or leave it out.")
    find_executor(flags.pipeline)
    if flags.backbone:
        check_backbone(known_backbone(flags.backbone))
    if flags.resume is not None:
        return  # its recipe is the checkpoint's
    check_recipe_name(method_of(flags), flags.recipe)
    if is_file(flags.recipe):
        chosen_recipe(flags)  # before the images are opened


def labelled_beside(flags: argparse.Namespace) -> bool:
    """Whether the method takes labelled images beside unlabelled ones (SimCLR, S-TEC): they are not among them then."""
    return chosen_recipe(flags, flags.image_size).companion is not None
