"""The name a command was called by, and the parser that says it."""

from __future__ import annotations

import argparse
import sys
from inspect import cleandoc
from typing import NoReturn

from saccade.base.text import did_you_mean, printable


def program(otherwise: str) -> str:
    """`saccade NAME` where cli.py has started the command; else `otherwise`, how it is run from a checkout."""
    return sys.argv[0] if sys.argv[0].startswith("saccade ") else otherwise


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage before it."""

    def parse_args(self, args=None, namespace=None):
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [flag for action in self._actions for flag in action.option_strings]
            hint = did_you_mean(unknown[0].partition("=")[0], known) if unknown[0].startswith("-") else ""
            self.error(f"unknown argument {unknown[0]}{hint}")
        return found

    def error(self, message: str) -> NoReturn:
        self.exit(2, printable(f"{self.prog}: {message}; --help lists what there is.") + "\n")


def command_parser(otherwise: str, description: str, examples: dict[str, str]) -> argparse.ArgumentParser:
    """A parser whose --help ends with `examples`: arguments of the command, and what they do ("" where it is plain)."""
    name = program(otherwise)
    typed = f"python {name}" if name.endswith(".py") else name
    width = max(map(len, examples))
    lines = [f"  {typed} {arguments:<{width}}  {meaning}".rstrip() for arguments, meaning in examples.items()]
    return CommandParser(
        prog=name,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=cleandoc(description),
        epilog="\n".join(["examples:", *lines]),
    )
