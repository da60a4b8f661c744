"""A measurement on the processes that were launched, one or many: what every command of this kind is run inside."""

from __future__ import annotations

import argparse
import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout

from torch import distributed

from saccade.base.processes import asked_processes
from saccade.runs.interrupt import Interrupt
from saccade.runs.ranks import Ranks, start_processes

UNSAVED = "the same command goes on from what is kept, or begins anew"


@contextmanager
def on_processes(flags: argparse.Namespace) -> Iterator[Ranks]:
    """Each runs what is inside, alike, and meets the others where they share work; the main one alone is heard and
    writes. A signal to one, or its end, ends all within seconds, with a sentence."""
    with Interrupt(UNSAVED):
        device = None
        if asked_processes() > 1:
            device = start_processes(flags.device, flags.rank_timeout).device
            atexit.register(_parted)
        with (
            Ranks(device, flags.rank_timeout) as ranks,
            nullcontext() if ranks.main else _unheard(),
            ranks.alone("measuring"),
        ):
            yield ranks


def _parted() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()  # NCCL warns of one that is left


@contextmanager
def _unheard() -> Iterator[None]:
    sys.stdout.flush()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield
