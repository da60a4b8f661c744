"""python -m tools.bench: how fast the loaders, the model and a whole run are here, next to torchvision's DataLoader."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from saccade.base.allocator import keep_freed_memory
from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.machine import available_cpus
from saccade.base.program import command_parser
from saccade.base.text import did_you_mean
from saccade.pipelines.build import executors, find_executor
from saccade.pipelines.data import open_data
from saccade.pipelines.sources.options import add_flags, options_of
from saccade.runs.check_recipe import MAX_IMAGE_SIZE
from saccade.runs.flags import check_flags
from saccade.runs.flags import parser as train_parser
from saccade.tools.benchmark.baseline import FLAVOURS
from saccade.tools.benchmark.compare import compare
from saccade.tools.benchmark.contenders import entrants, loader_workers, loaders, peers, steps
from saccade.tools.benchmark.forecast import FittingBatch, LoaderCost, Part, loader_cost, planned, step_turns
from saccade.tools.benchmark.measure import measure
from saccade.tools.benchmark.peers.registry import PEERS, Peer, chosen
from saccade.tools.benchmark.picture import draw_bars
from saccade.tools.benchmark.rows import Row, counted, environment, notes, table, write_rows
from saccade.tools.benchmark.suites import SUITES, Work, build_suite, describe
from saccade.tools.benchmark.trainer import Trainer

EXAMPLES = {
    "--quick": "is everything fast here? under a minute",
    "--cifar cifar10 --photos PHOTOS --json cpu.json --picture cpu.png": "docs/performance.md's table",
    "--peers --photos PHOTOS --json peers.json": "our loaders beside other libraries', in one run",
    "--method resa --data photos/ --batch-size 64": "your method on your images",
    "--compare old.json new.json": "exit code 1 if anything became slower",
}


def main(argv: list[str] | None = None) -> int:
    """Loader ceiling, model ceiling and what is reached, measured in turns with torchvision's DataLoader."""
    flags = parser().parse_args(argv)
    _check(flags)
    if flags.compare:
        return compare(Path(flags.compare[0]), Path(flags.compare[1]), flags.tolerance, flags.force)
    torch.set_num_threads(available_cpus())  # which OMP_NUM_THREADS=1 in a shell would hide
    if not torch.cuda.is_available():
        keep_freed_memory()  # as train.py does
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seconds, rounds = flags.seconds or (0.25 if flags.quick else 2.0), 3 if flags.quick else 5
    rows: list[Row] = []
    machine = environment()
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as scratch:
        own = flags.method or flags.data or flags.recipe
        plan = _own(flags, seconds, device) if own else _suites(flags, Path(scratch), seconds, device)
        ahead = planned(plan.parts, rounds, seconds, 10.0 if flags.quick else float("inf"))
        print("\n".join([*plan.said, f"forecast  {ahead}"]), flush=True)
        for part in plan.parts:
            made = measure(part.make(), device, part.rounds, seconds, part.budget, tolerant=bool(flags.peers))
            rows += [replace(row, memory_mib=None) for row in made] if flags.peers else made  # all of them wait there
            if flags.json:  # after each part: a stopped run leaves what it has
                write_rows(Path(flags.json), rows, machine)
    print(table(rows))
    ours = [row for row in rows if row.kind == "loader"]
    if ours and all("error" in row.more for row in ours):
        raise UserError(f"--executors {flags.executors}: {ours[0].more['error']}")
    hardware = machine["hardware"]
    described = ", ".join([str(hardware.get("cpu")), f"{hardware['cpus']} CPUs", *hardware.get("gpus", ())])
    print("".join(f"\n{note}" for note in notes(rows)))
    print(f"\n{described}; medians of {counted(rows)} in turns; x PIL: the median of the ratios within a round")
    if flags.picture:
        draw_bars(rows, Path(flags.picture), f"{described}, {machine['date'][:10]}")
    return 0


@dataclass
class Plan:
    """What is measured, and what is to be said before. skipped: by work, the executors that are left out, and why."""

    parts: list[Part] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)

    def check(self, asked: tuple[str, ...]) -> None:
        """Say which of the executors that were asked for cannot do which work; UserError for one that can do none."""
        for name in asked:
            reasons = {work: found[name] for work, found in self.skipped.items() if name in found}
            if reasons and len(reasons) == len(self.skipped):
                raise UserError(f"--executors {name}: {next(iter(reasons.values()))}")
            self.said += [f"without {name}, {work}: {reason}" for work, reason in reasons.items()]


def _own(flags: argparse.Namespace, seconds: float, device: torch.device) -> Plan:
    """The user's own method and data: the loaders' part and the steps'."""
    source, fitting = _open(flags), FittingBatch(seconds, loader_cost)
    trainer = Trainer(_train_flags(flags), source, fitting=fitting)
    recipe = trainer.config.recipe
    work = Work(f"{recipe.data} {describe(recipe.views)}", recipe.views, source.name, source, recipe.batch_size)
    parts = [
        _loaders(work, _only(flags) or ("auto",), fitting.loader or loader_cost(source, recipe.views), device),
        Part(lambda: steps(work, trainer, None), step_turns(fitting.cost, recipe.batch_size, (1, 1), device)),
    ]
    return Plan(parts, [fitting.said] if fitting.said else [])


def _suites(flags: argparse.Namespace, scratch: Path, seconds: float, device: torch.device) -> Plan:
    """Loaders of three kinds of work, and steps of one."""
    plan, only = Plan(), _only(flags)
    for suite in flags.suites.split(",") if flags.suites else SUITES[:-1] if flags.quick else SUITES:
        data = flags.cifar if suite == "cifar" else flags.photos
        work = build_suite(suite, scratch, flags.batch_size, flags.image_size, flags.quick, data=data)
        cost, skipped = loader_cost(work.source, work.recipe), plan.skipped.setdefault(work.recipe_name, {})
        if flags.peers:
            plan.parts.append(_beside_peers(work, only, chosen(flags.peers), cost, scratch, skipped))
            continue
        plan.parts.append(_loaders(work, only, cost, device, skipped))
        if suite == "cifar":
            fitting = FittingBatch(seconds, insists=False)
            plan.parts.append(_steps(work, flags.quick, fitting, device))
            plan.said += [fitting.said] if fitting.said else []
    plan.check(only)
    return plan


def _loaders(
    work: Work, only: tuple[str, ...], cost: LoaderCost, device: torch.device, skipped: dict[str, str] | None = None
) -> Part:
    """skipped: gets the executors that cannot do this work, and why; without it one in `only` is a UserError."""
    found = entrants(work, only, device, skipped)
    baselines = len(FLAVOURS) if work.source.channels == 3 else 0
    turns = cost.turns(work.batch_size, found, baselines, loader_workers())
    return Part(lambda: loaders(work, only, device, skipped=skipped), turns)


def _beside_peers(
    work: Work,
    only: tuple[str, ...],
    wanted: dict[str, Peer],
    cost: LoaderCost,
    scratch: Path,
    skipped: dict[str, str],
) -> Part:
    """Our loaders, torchvision's and other libraries', all on the CPU."""
    ours = _loaders(work, only, cost, torch.device("cpu"), skipped)
    turns = [
        cost.peer(
            work.batch_size, peer.pace, peer.first * (len(work.recipe.views) if peer.beton else 1), loader_workers()
        )
        for peer in wanted.values()
        if peer.suits(work)
    ]
    return Part(lambda: [*ours.make(), *peers(work, wanted, scratch)], [*ours.turns, *turns])


def _steps(work: Work, quick: bool, fitting: FittingBatch, device: torch.device) -> Part:
    """The recipe's ResNet-18 on a GPU; on a CPU timm's smallest ResNet, so that a step takes a fraction of a second."""
    gpu = device.type == "cuda"
    argv = ["--recipe", "cifar10", "--backbone", "resnet18" if gpu else "test_resnet"]
    argv += ["--image-size", str(work.image_size), "--batch-size"]
    batch = 1024 if gpu else 64 if quick else 256
    trainer = Trainer(["--method", "stec", *argv, str(batch)], work.source, fitting=fitting)
    batch = trainer.config.recipe.batch_size
    # SimCLR is S-TEC without the head that needs drawn parameters, which torchvision does not tell
    plain = Trainer(["--method", "simclr", *argv, str(batch)], work.source, plain=True)
    bunches = (1, 1, loader_workers())
    return Part(lambda: steps(work, trainer, plain), step_turns(fitting.cost, batch, bunches, device))


def _only(flags: argparse.Namespace) -> tuple[str, ...]:
    return tuple(flags.executors.split(",")) if flags.executors else ()


def _train_flags(flags: argparse.Namespace) -> list[str]:
    """The flags of train.py that this command shares with it."""
    argv = ["--data", flags.data or "textures", "--data-dir", flags.data_dir]
    for name in ("method", "image_size", "batch_size", "backbone", "recipe", "precision"):
        if getattr(flags, name) is not None:
            argv += [f"--{name.replace('_', '-')}", str(getattr(flags, name))]
    return [*argv, *(f"--set={setting}" for setting in flags.set)]


def _namespace(argv: list[str]) -> argparse.Namespace:
    namespace = train_parser("tools.bench").parse_args(argv)
    check_flags(namespace)
    return namespace


def _open(flags: argparse.Namespace):
    _namespace(_train_flags(flags))
    return open_data(flags.data or "textures", None, flags.data_dir, options=options_of(flags))[0]


def _check(flags: argparse.Namespace) -> None:
    for name in ("image_size", "batch_size", "seconds"):
        value = getattr(flags, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} {value} is not positive; give a number above 0.")
    if flags.image_size and flags.image_size > MAX_IMAGE_SIZE:
        raise UserError(f"--image-size {flags.image_size} is too large; give {MAX_IMAGE_SIZE} or less.")
    if flags.peers and (flags.method or flags.data or flags.recipe):
        raise UserError("--peers compares on CIFAR-sized images and photos; give yours by --cifar or --photos instead.")
    chosen(flags.peers or "all")
    for name in filter(None, (flags.suites or "").split(",")):
        if name not in SUITES:
            raise UserError(f"--suites {name} is unknown{did_you_mean(name, SUITES)}; use some of {', '.join(SUITES)}.")
    for name in filter(None, (flags.executors or "").split(",")):
        find_executor(name)


def parser() -> argparse.ArgumentParser:
    command = command_parser("python -m tools.bench", main.__doc__ or "", EXAMPLES)
    what = command.add_argument_group("what to measure (default: CIFAR-sized images and photos)")
    what.add_argument("--method", help="measure this method's recipe")
    what.add_argument("--data", help="on these images: whatever train.py takes")
    add_flags(what)
    what.add_argument("--data-dir", default="data")
    what.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for train.py")
    what.add_argument("--cifar", metavar="DATA", help="real images for the CIFAR part (default: noise of their size)")
    what.add_argument("--suites", help=f"only these kinds of work, e.g. photos (of {', '.join(SUITES)})")
    what.add_argument("--photos", metavar="FOLDER", help="real JPEGs for the photo parts (default: made-up ones)")
    what.add_argument(
        "--executors",
        help=f"only these, e.g. dali,ffcv (of {', '.join(executors())}, or your own: path/to/file.py:Class)",
    )
    what.add_argument(
        "--peers",
        nargs="?",
        const="all",
        metavar="NAMES",
        help=f"loaders only, beside those of other libraries, all or some of: {', '.join(PEERS)}",
    )
    what.add_argument("--image-size", type=int, help="pixels of a full-size view")
    what.add_argument("--batch-size", type=int)
    for name in ("backbone", "recipe", "precision"):
        what.add_argument(f"--{name}", help="as for train.py")
    what.add_argument("--quick", action="store_true", help="at most three short rounds, about a minute in all")
    what.add_argument("--seconds", type=float, help="of one turn (default: 2)")
    out = command.add_argument_group("what to write")
    out.add_argument("--json", metavar="FILE", help="the rows, with versions, hardware, commit and date")
    out.add_argument("--picture", metavar="FILE", help="bars: loader ceilings, model ceiling, end to end")
    other = command.add_argument_group("other jobs")
    other.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"), help="exit code 1 if NEW is slower than OLD")
    other.add_argument("--tolerance", type=float, default=0.1, help="the share by which a rate may fall (default: 0.1)")
    other.add_argument("--force", action="store_true", help="compare measurements of different machines")
    return command


if __name__ == "__main__":
    run_command("tools.bench", main)
