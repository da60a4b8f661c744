"""Labelled images that cannot be read are not measured on: another's picture would stand in, with their label."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from saccade.base.machine import available_cpus
from saccade.base.text import printable
from saccade.pipelines.sources import BadImage, Source

READ = 5_000


def readable(source: Source) -> Source:
    """Without the images that cannot be read, which are said: another's picture with their label would stand in.
    Up to READ images: of more, a few weigh nothing. UserError where more than a tenth cannot be read."""
    if len(source) > READ or source.array() is not None:
        return source

    def reads(i: int) -> str | None:
        try:
            source.read(i)
        except BadImage as reason:
            return str(reason)
        return None

    with ThreadPoolExecutor(available_cpus()) as pool:
        reasons = list(pool.map(reads, range(len(source))))
    bad = {source.name_of(i): reason for i, reason in enumerate(reasons) if reason is not None}
    if not bad:
        return source
    source.report_bad(bad)
    named = ", ".join([*bad][:3]) + (" ..." if len(bad) > 3 else "")
    print(printable(f"{'unreadable':>10}  {len(bad):,} of {len(source):,} images, left out: {named}"), file=sys.stderr)
    return source.subset(np.array([i for i, reason in enumerate(reasons) if reason is None]))
