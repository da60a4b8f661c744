"""Pre-train a vision backbone without labels:  accelerate launch train.py --method stec

Read from top to bottom: flags become a configuration, the configuration a session (views, network, optimizer), and the
loop takes its steps, looks now and then whether the backbone learns, and saves. `train.py --help` lists the flags;
runs/session.py holds the step, losses/ the methods, pipelines/ the views; docs/ explains them.
"""

from __future__ import annotations

if __name__ == "__main__" and not __package__:
    from base.checkout import start  # by its place on disk: is the installed saccade this checkout?

    start("train.py")

from saccade.base.libraries import prepare_libraries

prepare_libraries()  # before torch is imported

import argparse
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from shlex import quote

from saccade.base.command import exit_code
from saccade.evaluation.online import OnlineKNN
from saccade.evaluation.registry import check_recipe
from saccade.evaluation.report import report_after
from saccade.pipelines.build import of_all_processes
from saccade.pipelines.data import open_data, open_labelled
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.options import options_of
from saccade.runs.checkpoint import Found, check_space
from saccade.runs.config import Kept, resolve
from saccade.runs.flags import DATA_FLAGS, check_flags, labelled_beside, method_of, parse_flags
from saccade.runs.flags import parser as parser  # for the shell's completion
from saccade.runs.folder import RunFolder, default_folder
from saccade.runs.forecast import told_forecast
from saccade.runs.interrupt import Interrupt
from saccade.runs.monitor import Monitor
from saccade.runs.ranks import DIVERGED, Ranks, start_processes
from saccade.runs.record import follow_data
from saccade.runs.report import announce, finish
from saccade.runs.resume import follow_changes, taken_up
from saccade.runs.saver import Saver
from saccade.runs.screen import records_apart
from saccade.runs.session import Session, start_accelerator
from saccade.runs.trackers import start_trackers


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 when done, 2 on bad input; 130 (Ctrl-C), 143 (SIGTERM) or 75 (start it again) when stopped."""
    return exit_code("train.py", lambda: pretrain(parse_flags(sys.argv[1:] if argv is None else argv)))


def pretrain(flags: argparse.Namespace) -> int:
    """Check what was asked for; then until the run has ended, signals stop it in an orderly way."""
    check_flags(flags)
    flags, kept = taken_up(flags) if flags.resume else (flags, None)
    with Interrupt() as interrupt, records_apart(flags.log):
        return open_and_train(flags, kept, interrupt)


def open_and_train(flags: argparse.Namespace, kept: Kept | None, interrupt: Interrupt) -> int:
    """Open the images, resolve every value of the run, put it together, train."""
    with Ranks(start_processes(flags.device, flags.rank_timeout).device, flags.rank_timeout) as ranks:
        train_data, val_data, labelled = ranks.first_on_each_node("opening the images", lambda: open_all(flags, kept))
        out = Path(flags.out or ranks.of_main("the run folder", str(new_folder(flags))))
        config = resolve(flags, train_data, out, kept)
        check_recipe(config.recipe.protocol)
        ranks.same("--resume", str(config.resume))
        accelerator = start_accelerator(config.device, config.precision)
        agree = partial(ranks.common, "choosing the executor", choose=of_all_processes)
        with (
            Session(config, accelerator, train_data, labelled, agree=agree) as session,
            RunFolder(config.out) as folder,
        ):
            judge = OnlineKNN(session, val_data)
            ranks.on_main("making the run folder", lambda: begin(session, folder, judge))
            ranks.words(config.out)
            return train(session, folder, judge, interrupt, ranks, kept.checkpoint if kept else None)


def open_all(flags: argparse.Namespace, kept: Kept | None) -> tuple[Source, Source | None, Source | None]:
    """The images to train on, to evaluate on, and those with labels beside unlabelled ones."""
    train_data, val_data = open_data(
        flags.data,
        flags.val_data,
        flags.data_dir,
        allow_pipe=flags.allow_pipe or None,
        options=options_of(flags),
        unlabelled=(kept.recipe.companion is not None) if kept else labelled_beside(flags),
    )
    return train_data, val_data, open_labelled(flags.labelled_data, flags.data, flags.data_dir, train_data)


def new_folder(flags: argparse.Namespace) -> Path:
    """A folder of its own for a run that was given none."""
    return default_folder(method_of(flags).name, flags.data)


def begin(session: Session, folder: RunFolder, judge: OnlineKNN) -> None:
    ahead = told_forecast(session, judge.memory())
    check_space(folder.path, session.checkpoint_size(), session.config.keep)
    folder.create(session.config.resume)
    announce(session, folder)
    if ahead:
        print(f"{'forecast':>10}  {ahead}", flush=True)


def train(
    session: Session,
    folder: RunFolder,
    judge: OnlineKNN,
    interrupt: Interrupt,
    ranks: Ranks,
    checkpoint: Found | None = None,
) -> int:
    """The loop: from the first step, or from the last checkpoint, to the last step."""
    config, accelerator, pipeline = session.config, session.accelerator, session.pipeline
    state = {}
    if checkpoint is not None:
        say = partial(print, file=sys.stderr) if accelerator.is_main_process else str
        state = checkpoint.taken(session.foreign, session.total_steps, say)
        session.load_state_dict(state)
        ranks.same("the step of the last checkpoint", str(session.steps))
        if accelerator.is_main_process:
            folder.rewind(session.steps)
            follow_data(config.out, {name: getattr(config, name) for name in DATA_FLAGS})
            follow_changes(config, folder, state)
    session.prepare()
    start_trackers(accelerator, config, session.steps)
    with Monitor(folder, session, state.get("totals")) as monitor:
        judge.monitor = monitor
        baselines = state.get("baselines") or ranks.on_main("measuring the baselines", judge.baselines) or {}
        interrupt.saves()
        evaluations = evaluation_steps(config.eval_every, session.steps_per_epoch, session.total_steps, judge.times)
        if state and session.steps in evaluations:
            ranks.on_main("measuring kNN", judge.make_up)
        compiling, stop = session.compiles, 0
        done = session.steps >= session.total_steps
        with Saver(session, folder, monitor, baselines, ranks) as saver:
            while not done:
                for batch in monitor.batches(pipeline):
                    ranks.at(f"in step {session.steps + 1}")
                    with monitor.compiling() if compiling else nullcontext():
                        losses = session.step(batch)
                    compiling = False
                    monitor.step(losses)
                    ranks.at(f"after step {session.steps}")
                    if evaluate := session.steps in evaluations:
                        last = session.steps == session.total_steps
                        ranks.on_main("measuring kNN", judge.score if last else lambda: interrupt.give_up(judge.score))
                    stop = ranks.agreed(interrupt.code, session.diverged, now=evaluate)
                    if stop == DIVERGED:
                        saver.settle()
                        raise monitor.diverged()
                    if done := session.steps == session.total_steps or stop > 0:
                        saver.last()
                        break
                    saver.step()
    ranks.on_main("writing the last checkpoint", lambda: None)  # a launcher ends the others when one has ended
    interrupt.done()
    if session.steps < session.total_steps:
        monitor.message(
            f"stopped at step {session.steps} of {session.total_steps}; "
            f"continue with: saccade train --resume {quote(str(config.out))}"
        )
        return stop
    ranks.on_main("writing the backbone", lambda: finish(session, folder, monitor.totals, baselines))
    ranks.on_main("judging the backbone", judge.conclude)
    ranks.on_main("making the report", lambda: monitor.message(report_after(session, monitor.totals["seconds"])))
    accelerator.end_training()
    return 0


def evaluation_steps(every: int | None, steps_per_epoch: int, total_steps: int, most: int | None = None) -> set[int]:
    """When kNN is measured, in steps: every `every` epochs (None: about ten times a run, at most `most` times), and at
    the end; 0: never."""
    if every == 0:
        return set()
    often = max(total_steps // 10, -(-total_steps // (most or total_steps)))
    stride = every * steps_per_epoch if every else max(steps_per_epoch, often)
    return set(range(stride, total_steps + 1, stride)) | {total_steps}


if __name__ == "__main__":
    sys.exit(main())
