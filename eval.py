"""Measure a backbone:  python eval.py RUN_FOLDER --protocol knn

A run folder, one of its checkpoints, or weights that other code wrote (the papers' own, MoCo, DINO, timm ...). Prints
a table and, as the last line, one JSON object. `python eval.py --help` lists the flags; evaluation/protocols.py holds
the papers' protocols.
"""

from __future__ import annotations

if __name__ == "__main__" and not __package__:
    from base.checkout import start  # by its place on disk: is the installed saccade this checkout?

    start("eval.py")

from saccade.base.libraries import prepare_libraries

prepare_libraries()  # before torch is imported

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from saccade.base.command import exit_code
from saccade.base.errors import UserError
from saccade.base.files import write_atomically
from saccade.base.machine import git_commit, versions
from saccade.base.program import command_parser
from saccade.base.text import printable
from saccade.evaluation.beside import beside, spread
from saccade.evaluation.evaluate import Evaluation
from saccade.evaluation.groups import grouped, read_groups
from saccade.evaluation.options import (
    add_crop_flags,
    add_machine_flags,
    add_model_flags,
    add_overwrite_flag,
    check_numbers,
    check_out,
    check_shared,
    chosen_settings,
    chosen_subject,
    shown_to,
)
from saccade.evaluation.processes import on_processes
from saccade.evaluation.protocol import Protocol
from saccade.evaluation.readable import readable
from saccade.evaluation.registry import find_protocol, protocols
from saccade.evaluation.subject import Subject
from saccade.pipelines.data import open_data
from saccade.pipelines.sources import Source
from saccade.pipelines.sources.holdout import hold_out
from saccade.pipelines.sources.options import add_flags
from saccade.runs.ranks import Ranks
from saccade.runs.record import check_local


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 when measured, 2 on bad input, 130 when interrupted."""
    return exit_code("eval.py", lambda: evaluate(parser().parse_args(argv)))


def evaluate(flags: argparse.Namespace) -> None:
    """Open the backbone and the images, run the protocol, print and write what it found."""
    check_flags(flags)
    with on_processes(flags) as ranks:
        found = [measured(flags, place, ranks) for place in flags.path]
        if len(found) > 1:
            print_runs(flags.path, found)
        print(json.dumps(found[0] if len(found) == 1 else {"runs": dict(zip(flags.path, found, strict=True))}))


def measured(flags: argparse.Namespace, place: str, ranks: Ranks) -> dict[str, Any]:
    """The result of one backbone, printed, and kept in its run folder."""
    groups = read_groups(flags.plot_groups) if flags.plot_groups else {}
    subject = ranks.first_on_each_node("opening the backbone", lambda: chosen_subject(flags, place))
    protocol = find_protocol(flags.protocol or usual_protocol(flags, subject, ranks), subject.image_size)
    opened = ranks.first_on_each_node("opening the images", lambda: open_both(flags, subject, protocol))
    train, test, data = opened
    if ranks.main:
        for source in {id(s): s for s in (train, test)}.values():
            source.account.show()
    evaluation = Evaluation(protocol, subject, train, test, data, chosen_settings(flags, ranks))
    said = [(name, source.account.line()) for name, source in (("train", train), ("test", test))]
    train, test = evaluation.train, evaluation.test  # the labelled images
    result = {**evaluation.result(), "unreadable": len({*train.known_bad, *test.known_bad})}
    result["interval"] = spread(result["top1"], len(test))["interval"]
    if not flags.no_baselines:
        result["beside"] = beside(evaluation)
    ranks.on_main("writing", lambda: write(result, evaluation, said, flags, groups))
    return result


def write(
    result: dict[str, Any],
    evaluation: Evaluation,
    said: list[tuple[str, str]],
    flags: argparse.Namespace,
    groups: Mapping[str, str],
) -> None:
    if flags.features_out:
        save_features(evaluation, Path(flags.features_out))
    if flags.plot:
        draw(evaluation, flags, groups)
    print_table(result, evaluation, said)
    if folder := evaluation.subject.folder:
        keep(result, folder, evaluation.protocol.name, flags)


def keep(result: dict[str, Any], folder: Path, protocol: str, flags: argparse.Namespace) -> None:
    """evaluations/PROTOCOL[-DATA].json of the run folder; one that cannot be written is said, and costs no more."""
    named = protocol if flags.data is None else f"{protocol}-{Path(flags.data).stem}"
    path = folder / "evaluations" / (re.sub(r"[^\w.-]+", "_", named)[:100] + ".json")
    record = {**result, "data_given": flags.data, "val_data_given": flags.val_data, "commit": git_commit()}
    text = json.dumps({**record, "versions": versions()}, indent=2) + "\n"
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda file: file.write(text.encode()))
        print(f"kept in {printable(str(path))}")
    except (OSError, UserError) as error:
        print(f"note: {printable(str(path))} cannot be written ({printable(str(error))})", file=sys.stderr)


EXAMPLES = {
    "outputs/RUN": "as its recipe's paper evaluates, on the run's own images",
    "outputs/A outputs/B --protocol knn": "nearest neighbours, two runs in one table",
    "resnet50.pth --data PHOTOS/train --val-data PHOTOS/val": "weights that other code wrote",
}


def parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {p.name:<15} {p.summary}" for p in protocols().values())
    p = command_parser("eval.py", f"Measure the quality of a frozen backbone.\n\nprotocols:\n{listed}", EXAMPLES)
    p.add_argument(
        "path",
        nargs="+",
        metavar="RUN_FOLDER_OR_CHECKPOINT",
        help="one or several: a run folder, a file of its checkpoints/, a file of weights that other code wrote, or a "
        "timm name",
    )
    what = p.add_argument_group("what to measure")
    what.add_argument(
        "--protocol",
        help="one of those above, or your own: path/to/file.py, package.module (default: the run's recipe's own on the "
        "run's images, else knn)",
    )
    what.add_argument(
        "--data", help="training images: a folder, an .npz, or a name such as cifar10 (default: the run's)"
    )
    add_flags(what)
    what.add_argument(
        "--val-data", help="images to test on (default: the run's, or a val/ or test/ split beside --data)"
    )
    what.add_argument("--data-dir", help="where cifar10, cifar100 and stl10 are kept (default: the run's, or data)")
    add_model_flags(p.add_argument_group("the model"))
    change = p.add_argument_group("departures from the protocol (the output says so)")
    change.add_argument("--epochs", type=int, help="epochs of a linear probe; its schedule is squeezed into them")
    change.add_argument("--lr", type=float, help="learning rate of a linear probe")
    add_crop_flags(change)
    change.add_argument("--k", type=int, help="neighbours of kNN")
    change.add_argument(
        "--batch-norm-drift",
        action="store_true",
        help="rsa-small: the backbone in train mode while the classifier learns, as in RSA's code",
    )
    machine = p.add_argument_group("machine")
    add_machine_flags(machine)
    machine.add_argument(
        "--no-baselines", action="store_true", help="do not measure raw pixels and the untrained network beside it"
    )
    machine.add_argument(
        "--keep-features",
        action="store_true",
        help="keep them as float16 in the cache folder: extracted once for all protocols, gone on with after a stop",
    )
    machine.add_argument("--seed", type=int, default=0, help="of a linear probe's start and order (default: 0)")
    out = p.add_argument_group("also write")
    out.add_argument("--features-out", metavar="FILE.npz", help="the features and labels of both sets")
    out.add_argument("--plot", metavar="FILE.png", help="the test features in two dimensions, coloured by class")
    add_overwrite_flag(out)
    out.add_argument(
        "--plot-by", default="pca", choices=("pca", "tsne", "umap"), help="how they are laid out (default: pca)"
    )
    out.add_argument("--plot-groups", metavar="CSV", help="colour by coarser classes: cifar100, or class,group rows")
    return p


def check_flags(flags: argparse.Namespace) -> None:
    """Raise UserError for values that no data or machine could make right."""
    if flags.protocol:
        find_protocol(flags.protocol)
    check_shared(flags)
    check_numbers(flags, ("epochs", "k"), least=1)
    check_numbers(flags, ("seed",), least=0)
    if flags.lr is not None and not 0 < flags.lr < float("inf"):
        raise UserError(f"--lr {flags.lr} is no learning rate; give a positive number.")
    check_out(flags, features_out=(".npz",), plot=(".png",))
    if len(flags.path) > 1 and (flags.features_out or flags.plot):
        raise UserError("--features-out and --plot write one file; give one run, or leave them out.")


def usual_protocol(flags: argparse.Namespace, subject: Subject, ranks: Ranks) -> str:
    """A run's recipe's own on the run's own images, else kNN. A name alone: no code that a received folder names."""
    if subject.run is None or flags.data is not None or subject.run.protocol not in protocols():
        return "knn"
    usual = find_protocol(subject.run.protocol, subject.image_size)
    if lacking := next(filter(None, (measure.lacks(subject) for measure in usual.measures)), None):
        if ranks.main:
            print(f"kNN, not the recipe's own {usual.name}: the run lacks {lacking}", file=sys.stderr)
        return "knn"
    return usual.name


def open_both(flags: argparse.Namespace, subject: Subject, protocol: Protocol) -> tuple[Source, Source, str]:
    """The training and the test source, and the data set's name in the recipes ("custom" for a folder or an .npz)."""
    run, options = subject.run, shown_to(subject, flags)
    if flags.data is not None:
        data, val_data, named = flags.data, flags.val_data, flags.data
    elif run is not None:
        for place in (run.data, run.val_data):
            check_local(place, "--data", Path(subject.name))
        data, val_data, named = run.data, flags.val_data or run.val_data, run.recipe_data
        options = replace(run.options, **{name: value for name, value in vars(options).items() if value is not None})
    else:
        raise UserError(f"{subject.name} does not say on which images to measure it; give --data.")
    data_dir = flags.data_dir or (run.data_dir if run else "data")
    train, test = open_data(data, val_data, data_dir, labelled=True, options=options)
    train, test = readable(train), test and readable(test)
    if test is None:
        train, test, how = hold_out(train, alone=protocol.alone)
        train.account.guess(how)
    if len(subject.mean) != train.channels:
        raise UserError(
            f"{subject.name} takes images of {len(subject.mean)} channels, {train.name} has {train.channels}; give "
            f"--channels {len(subject.mean)}, or other images."
        )
    return train, test, named


def draw(evaluation: Evaluation, flags: argparse.Namespace, groups: Mapping[str, str]) -> None:
    from saccade.evaluation.plot import plot_features

    shown, names = evaluation.test_features, evaluation.test.classes
    if groups:
        labels, names = grouped(shown.labels, names, groups)
        shown = replace(shown, labels=labels)
    title = f"{evaluation.subject.name}, {evaluation.test.name}"
    plot_features(shown, names, Path(flags.plot), title, flags.plot_by, flags.seed)


def save_features(evaluation: Evaluation, path: Path) -> None:
    train, test = evaluation.train_features, evaluation.test_features
    write_atomically(
        path,
        lambda file: np.savez(
            file,
            train_features=train.features.numpy(),
            train_labels=train.labels.numpy(),
            train_names=names_of(evaluation.train),
            test_features=test.features.numpy(),
            test_labels=test.labels.numpy(),
            test_names=names_of(evaluation.test),
        ),
    )


def names_of(source: Source) -> np.ndarray:
    return np.array([printable(source.key_of(i)) for i in range(len(source))])


def print_table(result: dict, evaluation: Evaluation, said: list[tuple[str, str]]) -> None:
    subject, protocol, train, test = evaluation.subject, evaluation.protocol, evaluation.train, evaluation.test
    rows = [
        ("backbone", f"{subject.name}: {result['backbone']}, {result['network']} network"),
        *(("read as", line) for line in subject.read),
        ("protocol", f"{protocol.name}: {protocol.summary} ({protocol.source})"),
        (
            "train on",
            f"{train.name}: {result['n_train']} images, {result['classes']} classes, {result['image_size']} px",
        ),
        (
            "input",
            f"mean {result['mean']}, std {result['std']}, crop {result['crop_fraction']}, {result['interpolation']}",
        ),
        ("test on", f"{test.name}: {result['n_test']} images"),
        ("features", f"{result['features']}, std {result['feature_std']}, effective rank {result['effective_rank']}"),
    ]
    rows += [(name, line) for name, line in said if line]
    if result["unreadable"]:
        names = ", ".join(list({**train.known_bad, **test.known_bad})[:3])
        rows.append(
            (
                "unreadable",
                f"{result['unreadable']} images, left out (replaced where there are thousands): {names}",
            )
        )
    rows += [("departs", text) for text in result["deviations"]] + [("note", text) for text in result["notes"]]
    print("\n".join(f"{name:>10}  {printable(str(text))}" for name, text in rows))
    print(f"\n{'':>40}{'top-1 %':>9}{'top-5 %':>9}")
    for name, top1, top5 in evaluation.rows:
        print(f"{name:>40}{top1:>9.2f}{top5:>9.2f}")
    low, high = result["interval"]
    print(f"{'95 % interval of the last top-1':>40}{low:>9.2f} to {high:.2f}")
    if others := result.get("beside"):
        print(f"\n{'beside it':>40}{'top-1 %':>9}\n{'chance, the commonest class':>40}{others['chance']:>9.2f}")
        for name, one in others["knn"].items():
            print(f"{name + ', kNN':>40}{one['top1']:>9.2f}   {one['interval'][0]:.2f} to {one['interval'][1]:.2f}")
    print(f"\n{result['seconds']} s")


def print_runs(places: list[str], found: list[dict[str, Any]]) -> None:
    """One row a backbone."""
    width = max(len(printable(place)) for place in places)
    untrained_too = "untrained, kNN" if all("untrained" in r.get("beside", {}).get("knn", {}) for r in found) else ""
    print(f"\n{'':<{width}}  {'protocol':<15}{'top-1 %':>9}  {'95 % interval':<16}{'images':>7}  {untrained_too}")
    for place, result in zip(places, found, strict=True):
        interval = "{:.2f} to {:.2f}".format(*result["interval"])
        other = f"{result['beside']['knn']['untrained']['top1']:.2f}" if untrained_too else ""
        row = f"{result['protocol']:<15}{result['top1']:>9.2f}  {interval:<16}{result['n_test']:>7,}  {other}"
        print(f"{printable(place):<{width}}  {row}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
