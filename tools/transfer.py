"""saccade transfer RUN ... --data BIRDS CARS: one protocol on several labelled data sets, one table.

Rows are data sets, columns backbones: runs, checkpoints, or weights that other code wrote. Each set is tested on the
split that lies beside it, or on a fifth of each of its classes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.base.machine import git_commit, hardware, versions
from saccade.base.program import command_parser
from saccade.base.text import printable
from saccade.evaluation.evaluate import Evaluation
from saccade.evaluation.options import (
    add_machine_flags,
    add_overwrite_flag,
    check_machine,
    check_numbers,
    check_out,
    chosen_settings,
)
from saccade.evaluation.processes import on_processes
from saccade.evaluation.protocol import Protocol
from saccade.evaluation.registry import find_protocol
from saccade.evaluation.subject import Subject, open_subject, untrained
from saccade.pipelines.data import open_data
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.holdout import hold_out
from saccade.runs.ranks import Ranks

EXAMPLES = {
    "outputs/RUN --data BIRDS CARS": "a linear probe on two folders of labelled images",
    "outputs/A outputs/B resnet50.pth --data cifar10 FLOWERS --protocol knn": "three backbones by kNN",
}


def parser() -> argparse.ArgumentParser:
    p = command_parser("python -m tools.transfer", __doc__ or "", EXAMPLES)
    p.add_argument("backbones", nargs="+", metavar="RUN_OR_FILE", help="run folders, checkpoints, or weights")
    p.add_argument("--data", nargs="+", required=True, help="labelled data sets: folders, .npz, cifar10 ...")
    p.add_argument("--data-dir", default="data", help="where cifar10, cifar100 and stl10 are kept (default: data)")
    p.add_argument("--protocol", default="linear", help="as in saccade eval (default: linear)")
    p.add_argument("--epochs", type=int, help="of a probe or of fine-tuning, instead of the protocol's")
    p.add_argument("--seed", type=int, default=0, help="of a probe's start and order (default: 0)")
    p.add_argument("--json", metavar="FILE.json", help="also write the rows there")
    add_overwrite_flag(p)
    add_machine_flags(p.add_argument_group("machine"))
    return p


def main(argv: list[str] | None = None) -> int:
    """Measure every backbone on every data set; UserError on bad input."""
    flags = parser().parse_args(argv)
    check_machine(flags)
    check_numbers(flags, ("epochs",), least=1)
    check_numbers(flags, ("seed",), least=0)
    check_out(flags, json=(".json",))
    find_protocol(flags.protocol)
    with on_processes(flags) as ranks:
        transfer(flags, ranks)
    return 0


def transfer(flags: argparse.Namespace, ranks: Ranks) -> None:
    def opened() -> list[Subject]:
        return [open_subject(Path(place).expanduser()) for place in flags.backbones]

    subjects = ranks.first_on_each_node("opening the backbones", opened)
    subjects += [without_training(subject) for subject in subjects if subject.run][:1]
    rows = []
    for place in flags.data:
        found: dict[str, Any] = {"data": place, "top1": {}}
        for subject in subjects:
            protocol = find_protocol(flags.protocol, subject.image_size)
            train, test = ranks.first_on_each_node(
                "opening the images", partial(labelled, place, flags.data_dir, protocol, ranks.main)
            )
            if train.channels != len(subject.mean):
                raise UserError(
                    f"{subject.name} takes {len(subject.mean)} channels, {train.name} has {train.channels}."
                )
            result = Evaluation(protocol, subject, train, test, place, chosen_settings(flags, ranks)).result()
            print(printable(f"{place}, {subject.name}: {result['top1']:.2f} %"), flush=True)
            found["top1"][subject.name] = result["top1"]
            found |= {name: result[name] for name in ("n_train", "n_test", "classes", "protocol", "deviations")}
        rows.append(found)
    print_table(rows, [subject.name for subject in subjects])
    if flags.json and ranks.main:
        record = {"rows": rows, "seed": flags.seed, "commit": git_commit(), "hardware": hardware()}
        text = json.dumps({**record, "versions": versions()}, indent=1)
        write_atomically(Path(flags.json), lambda file: file.write(text.encode()))


def without_training(subject: Subject) -> Subject:
    network = untrained(subject)
    assert network is not None, "a run says how its network is made"
    return replace(subject, name="untrained", backbone=network, network="given")


def labelled(place: str, data_dir: str, protocol: Protocol, heard: bool = True) -> tuple[Source, Source]:
    """(training, test) images of a data set, its own split or one held out; heard: what was guessed is printed."""
    train, test = open_data(place, None, data_dir, labelled=True)
    if test is None:
        train, test, how = hold_out(train, alone=protocol.alone)
        train.account.guess(how)
    for source in {id(s): s for s in (train, test)}.values() if heard else ():
        source.account.show()
    return train, test


def print_table(rows: list[dict[str, Any]], names: list[str]) -> None:
    cells = [("top-1 %", "images", "classes", *names)]
    for row in rows:
        numbers = (f"{row['top1'][name]:.2f}" for name in names)
        cells.append((row["data"], f"{row['n_train']:,} + {row['n_test']:,}", str(row["classes"]), *numbers))
    widths = [max(len(printable(line[i])) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  ".join(f"{printable(cell):<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    run_command("tools.transfer", main)
