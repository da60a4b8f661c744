"""The name a command was called by, and the parser that says it."""

from __future__ import annotations

import argparse
import sys
from inspect import cleandoc


def program(otherwise: str) -> str:
    """`saccade NAME` where cli.py has started the command; else `otherwise`, how it is run from a checkout."""
    return sys.argv[0] if sys.argv[0].startswith("saccade ") else otherwise


def command_parser(otherwise: str, description: str, examples: dict[str, str]) -> argparse.ArgumentParser:
    """A parser whose --help ends with `examples`: arguments of the command, and what they do ("" where it is plain)."""
    name = program(otherwise)
    typed = f"python {name}" if name.endswith(".py") else name
    width = max(map(len, examples))
    lines = [f"  {typed} {arguments:<{width}}  {meaning}".rstrip() for arguments, meaning in examples.items()]
    return argparse.ArgumentParser(
        prog=name,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=cleandoc(description),
        epilog="\n".join(["examples:", *lines]),
    )
