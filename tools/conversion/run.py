"""One conversion: forecast, write in parts, read back, publish."""

from __future__ import annotations

import errno
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from saccade.base.errors import UserError
from saccade.base.progress import progress_bar
from saccade.base.text import printable
from saccade.pipelines.manifest import Manifest, Split
from saccade.pipelines.sources import BadImage, Source
from saccade.pipelines.sources.open import DataSet
from saccade.tools.conversion.forecast import check_space, forecast, prepared_or_bad
from saccade.tools.conversion.job import WRITERS, Job, check, describe, plan_of
from saccade.tools.conversion.journal import Journal, publish
from saccade.tools.conversion.verify import verify_split
from saccade.tools.conversion.writers import Item, Row, Writer

_LIST = 20  # bad images named in a message


def convert(job: Job, data: DataSet) -> Manifest:
    """Write `data` to job.dst. UserError on anything the user can set right; what is done by then is kept."""
    check(job, data)
    print(describe(job.src, data), flush=True)
    for source in data.splits.values():
        source.account.show()
    orders = {name: _order(reader, job.shuffle) for name, reader in data.splits.items()}
    partial = job.dst.with_name(job.dst.name + ".partial")
    with ThreadPoolExecutor(job.workers, "convert") as pool:
        expected = forecast(job, data, pool)
        journal = Journal(partial, plan_of(job, data))
        try:
            check_space(job, partial, expected)
            manifest = _write_all(job, data, orders, journal, partial, pool)
        except BaseException as error:
            pool.shutdown(cancel_futures=True)
            journal.discard()
            if isinstance(error, KeyboardInterrupt) and partial.exists():
                print(
                    f"\n{partial} keeps the parts that are done; the same command goes on from there.", file=sys.stderr
                )
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"{job.dst}: the disk is full; make room and repeat the command, it goes on from the parts "
                    f"in {partial}."
                ) from error
            raise
    _publish(job, manifest, partial)
    journal.close()
    return manifest


def _order(reader: Source, shuffle: int | None) -> np.ndarray:
    return np.arange(len(reader)) if shuffle is None else np.random.default_rng(shuffle).permutation(len(reader))


# ------------------------------------------------------------------- writing


def _write_all(
    job: Job, data: DataSet, orders: dict[str, np.ndarray], journal: Journal, partial: Path, pool: ThreadPoolExecutor
) -> Manifest:
    splits, left_out = {}, {}
    with progress_bar(None, data.images, "convert", "images") as bar:
        written = {
            name: _write_split(job, name, reader, orders[name], journal, partial, pool, bar, left_out, data.images)
            for name, reader in data.splits.items()
        }
    for name, reader in data.splits.items():
        writer, rows = written[name]
        splits[name] = _summary(reader, rows, writer.finish(rows))
    manifest = Manifest(
        job.to, _classes(data), splits, job.src, asdict(job.settings) | {"shuffle": job.shuffle}, left_out
    )
    manifest.save(partial / "manifest.json")
    if job.verify != "none":
        total = sum(len(rows) for _, rows in written.values())
        with progress_bar(None, total if job.verify == "full" else min(total, 1000), "verify", "images") as bar:
            for name, reader in data.splits.items():
                verify_split(
                    job.to, partial, name, reader, written[name][1], job.settings, job.verify == "sample", pool, bar
                )
    return manifest


def _write_split(
    job: Job,
    split: str,
    reader: Source,
    order: np.ndarray,
    journal: Journal,
    partial: Path,
    pool: ThreadPoolExecutor,
    bar: tqdm,
    left_out: dict[str, str],
    images: int,
) -> tuple[Writer, list[Row]]:
    parts = [order[a : a + job.part_size] for a in range(0, len(order), job.part_size)]
    writer = WRITERS[job.to](partial, split, len(order), len(parts), reader.classes)
    done = [journal.part(split, number) for number in range(len(parts))]
    todo = [int(i) for number, part in enumerate(parts) if done[number] is None for i in part]
    stream, rows = _ahead(pool, lambda i: (i, prepared_or_bad(reader, i, job.settings)), todo, 4 * job.workers), []
    for number, part in enumerate(parts):
        before = done[number]
        if before is None:
            bad: dict[str, str] = {}
            made = writer.write(number, _items(split, reader, stream, len(part), bad, bar), rows)
            journal.record(split, number, made, bad)
        else:
            made, bad = before
            bar.update(len(part))
            bar.initial += len(part)  # the rate is that of this run
        rows += made
        left_out.update(bad)
        if len(left_out) > job.max_bad * images:
            journal.forget_bad()
            listed = "; ".join(f"{name} ({why})" for name, why in list(left_out.items())[:_LIST])
            raise UserError(
                f"{job.src}: {len(left_out)} images cannot be read so far, more than "
                f"{job.max_bad:.0%} of all {images}; "
                f"repair or remove them, or allow more with --max-bad: "
                f"{listed}{' ...' if len(left_out) > _LIST else ''}"
            )
    if not rows:
        raise UserError(f"{job.src}: not one image of {split} can be read.")
    return writer, rows


def _items(split: str, reader: Source, stream: Iterator, count: int, bad: dict[str, str], bar: tqdm) -> Iterator[Item]:
    for _ in range(count):
        i, image = next(stream)
        bar.update()
        if isinstance(image, BadImage):
            bad[f"{split}/{reader.key_of(i)}"] = str(image)
        else:
            yield Item(i, reader.key_of(i), reader.label_of(i), image)


def _ahead(pool: ThreadPoolExecutor, work: Callable, tasks: Iterable, window: int) -> Iterator:
    """Results of work(task) in the tasks' order, at most `window` under way."""
    waiting: deque = deque()
    for task in tasks:
        waiting.append(pool.submit(work, task))
        if len(waiting) >= window:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _summary(reader: Source, rows: list[Row], files: list[str]) -> Split:
    heights, widths, labels = ([getattr(row, what) for row in rows] for what in ("height", "width", "label"))
    labelled = min(labels) >= 0
    counts = np.bincount(labels, minlength=len(reader.classes or ())).tolist() if labelled else None
    return Split(len(rows), files, labelled, (min(heights), max(heights)), (min(widths), max(widths)), counts)


def _classes(data: DataSet) -> list[str] | None:
    return next((list(reader.classes) for reader in data.splits.values() if reader.classes), None)


# ------------------------------------------------------------------ publishing


def _publish(job: Job, manifest: Manifest, partial: Path) -> None:
    listing = "".join(f"{printable(n)}\t{printable(why)}\n" for n, why in sorted(manifest.left_out.items()))
    if not job.single:
        if listing:
            (partial / "bad_images.txt").write_text(listing)
        if job.dst.exists():
            job.dst.rmdir()
        publish(partial, partial, job.dst)
        return
    (split,) = manifest.splits.values()
    files = {name: replace(s, files=[job.dst.name]) for name, s in manifest.splits.items()}
    beside = replace(manifest, splits=files)
    beside.save(job.dst.with_name(job.dst.name + ".json"))
    if listing:
        job.dst.with_name(job.dst.name + ".bad.txt").write_text(listing)
    publish(partial, partial / split.files[0], job.dst)
