"""saccade completion bash: a script by which the shell completes commands, flags, methods and file names."""

from __future__ import annotations

import argparse
from importlib import import_module

from saccade.base.command import run_command
from saccade.base.errors import UserError
from saccade.base.program import command_parser
from saccade.cli import COMMANDS
from saccade.evaluation.registry import protocols
from saccade.losses.registry import methods
from saccade.pipelines.build import executors

EXAMPLES = {
    "bash >> ~/.bash_completion": "",
    "zsh > ~/.zfunc/_saccade": "a folder of fpath",
}


def parser() -> argparse.ArgumentParser:
    command = command_parser("python -m tools.completion", main.__doc__ or "", EXAMPLES)
    command.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return command


def main(argv: list[str] | None = None) -> int:
    """Print a script by which the shell completes commands, flags, methods and file names."""
    flags = parser().parse_args(argv)
    try:
        import shtab
    except ImportError:
        raise UserError("completion needs the package shtab; pip install shtab.") from None
    known = {"method": list(methods()), "protocol": list(protocols()), "pipeline": list(executors())}
    whole = argparse.ArgumentParser(prog="saccade")
    whole.add_argument("--version", action="store_true")
    commands = whole.add_subparsers()
    for name, (module, summary) in COMMANDS.items():
        single = import_module(module).parser()
        for action in single._actions:
            action.choices = known.get(action.dest, action.choices)
            if action.choices is None and action.nargs != 0:
                action.complete = shtab.FILE
        commands.add_parser(name, parents=[single], add_help=False, help=summary)
    print(shtab.complete(whole, flags.shell))
    return 0


if __name__ == "__main__":
    run_command("tools.completion", main)
