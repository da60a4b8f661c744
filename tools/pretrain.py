"""Training from Python: `saccade.pretrain(method="rsa", data="PHOTOS", epochs=100)` is train.py with these flags."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from saccade import train
from saccade.base.errors import UserError
from saccade.base.text import did_you_mean
from saccade.models.backbone import load_backbone
from saccade.runs.flags import parse_flags, parser
from saccade.runs.folder import RunFolder
from saccade.runs.recipe_file import spelt


@dataclass(frozen=True)
class Trained:
    """A finished run. `summary` is its summary.json: kNN top-1 and the baselines in percent, rates, counts."""

    folder: Path
    summary: Mapping[str, Any]

    def backbone(self) -> nn.Module:
        """The exported backbone, in eval mode on the CPU: (N, 3, S, S) -> (N, D)."""
        return load_backbone(self.folder)[0]

    def metrics(self) -> list[dict[str, Any]]:
        """metrics.jsonl: one record for each logged step or evaluation."""
        return RunFolder(self.folder).metrics()

    def __repr__(self) -> str:
        knn = self.summary.get("knn_top1")
        score = "" if knn is None else f", kNN top-1 {knn:.1f} %"
        return f"<Trained {self.summary['method']}, {self.summary['steps']} steps{score}: {self.folder}>"


def pretrain(**flags: Any) -> Trained:
    """Train, or with `resume` go on, as train.py does; the flags are its own, with _ for -, `set` a dict.

    Raises UserError for what train.py refuses, and KeyboardInterrupt where a signal stopped the run, after it saved.
    `saccade.pretrain(method="simclr", data="PHOTOS", steps=300, set={"options.temperature": 0.5})` gives a Trained.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # argparse prints its usage, and leaves the process
            written = parse_flags(as_arguments(flags), "saccade.pretrain")
    except SystemExit as error:
        raise UserError(said.getvalue().rpartition("error: ")[2].strip() + ".") from error
    if written.out is None:
        written.out = str(train.new_folder(written))
    code = train.pretrain(written)
    folder = Path(written.out)
    if code:
        raise KeyboardInterrupt(
            f"the run was stopped and saved; continue with saccade.pretrain(resume={str(folder)!r})"
        )
    return Trained(folder, json.loads((folder / "summary.json").read_text()))


def as_arguments(flags: Mapping[str, Any]) -> list[str]:
    """Keyword arguments as they would stand on the command line. UserError for a name that train.py has not."""
    actions = {action.dest: action for action in parser()._actions}
    arguments: list[str] = []
    for name, value in flags.items():
        if name not in actions:
            raise UserError(f"pretrain has no {name}{did_you_mean(name, actions)}; see train.py --help.")
        action = actions[name]
        if value is None:
            continue
        if isinstance(value, bool):
            off = isinstance(action, argparse.BooleanOptionalAction) and not value
            arguments += [action.option_strings[-1 if off else 0]] if value or off else []
        elif isinstance(value, Mapping):
            arguments += [f"{action.option_strings[0]}={key}={_text(item)}" for key, item in value.items()]
        elif isinstance(value, list | tuple) and isinstance(action, argparse._AppendAction):
            arguments += [f"{action.option_strings[0]}={item}" for item in value]
        elif isinstance(value, list | tuple):
            arguments += [action.option_strings[0], *map(str, value)]
        else:
            arguments += [f"{action.option_strings[0]}={value}"]
    return arguments


def _text(value: Any) -> str:
    """A value as --set takes it."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else spelt(value)
