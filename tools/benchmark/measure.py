"""Times contenders against each other: in turns, round after round, so that a busy machine slows all of them alike."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from saccade.base.errors import UserError
from saccade.tools.benchmark.rows import Row

LOADERS = ("loader", "baseline", "peer")


@dataclass
class Contender:
    """Something that makes images: `start()` gives an iterator whose every item is the number of images just made.

    warm_up: items not timed at the start of each turn; stride: items come in bunches of so many (a loader's workers).
    """

    row: Row
    start: Callable[[], Iterator[int]]
    warm_up: int = 1
    stride: int = 1
    close: Callable[[], None] = lambda: None
    rates: list[float] = field(default_factory=list)  # images per second of each round
    used: list[tuple[float, float]] = field(default_factory=list)  # CPU seconds per second, MiB, of each round


_FIRST = 0.3  # seconds of a turn that is not counted unless it is the only one: longer than what was made ahead


def measure(
    contenders: list[Contender],
    device: torch.device,
    rounds: int,
    seconds: float,
    budget: float = float("inf"),
    tolerant: bool = False,
) -> list[Row]:
    """`rounds` turns of `seconds` for each contender, after one that is not counted. Fills and returns their rows.

    No turn is begun after `budget` seconds but those of the first, uncounted round; where that took so long, it is what
    counts, and a round that was not finished counts for nobody. tolerant: a contender that fails is left out from there
    on, and its row says why under more["error"], instead of ending the measurement of the others; one whose row says so
    from the beginning never runs.
    """
    start, running = time.monotonic(), [c for c in contenders if "error" not in c.row.more]
    bar = tqdm(total=(rounds + 1) * len(contenders), file=sys.stderr, leave=False, unit="turn")
    try:
        for i in range(rounds + 1):
            for contender in list(running):
                if i and time.monotonic() - start > budget:
                    return _rows(contenders)
                bar.set_postfix_str(f"{contender.row.kind} {contender.row.executor} {contender.row.recipe}")
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                try:
                    rate, cpu, memory = _turn(contender, device, seconds if i else min(seconds, _FIRST))
                except Exception as error:
                    if not tolerant:
                        raise
                    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                    contender.row.more["error"] = f"{kind}{str(error)[:300]}"
                    running.remove(contender)
                    continue
                contender.rates.append(rate)
                contender.used.append((cpu, memory))
                if device.type == "cuda":
                    held = torch.cuda.max_memory_allocated(device) / 2**20
                    contender.row.vram_mib = max(contender.row.vram_mib or 0.0, held)
                bar.update()
        return _rows(contenders)
    finally:
        bar.close()
        for contender in contenders:
            contender.close()


def _rows(contenders: list[Contender]) -> list[Row]:
    """The rows, filled from the rounds that all have finished, but for the first where there are others."""
    measured = [c for c in contenders if "error" not in c.row.more]
    whole = min((len(c.rates) for c in measured), default=0)
    for c in measured:
        kept = slice(min(1, whole - 1), whole)
        c.rates, c.used = c.rates[kept], c.used[kept]
        _fill(c)
    _compare(measured)
    return [c.row for c in contenders]


def _turn(contender: Contender, device: torch.device, seconds: float) -> tuple[float, float, float]:
    """Images per second, CPU seconds per second and MiB of one turn; a turn of 0 seconds is one bunch."""
    with closing(_as_generator(contender.start())) as items:
        for _ in range(contender.warm_up):
            next(items)
        clock, cpu, images, made = Clock(device), cpu_seconds(), 0, 0
        while made == 0 or made % contender.stride or clock.passed() < seconds:
            images += next(items)
            made += 1
        elapsed = clock.stop()
        return images / elapsed, (cpu_seconds() - cpu) / elapsed, memory_mib()


def _as_generator(items: Iterator[int]) -> Generator[int, None, None]:
    yield from items


class Clock:
    """Wall time on a CPU; on a GPU between two events, so that what was launched is also done."""

    def __init__(self, device: torch.device) -> None:
        self._events = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            self._events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._events[0].record()
        self._start = time.perf_counter()

    def passed(self) -> float:
        return time.perf_counter() - self._start

    def stop(self) -> float:
        """Seconds since the start."""
        if self._events is None:
            return self.passed()
        self._events[1].record()
        self._events[1].synchronize()
        return max(self._events[0].elapsed_time(self._events[1]) / 1000, self.passed())


def _fill(contender: Contender) -> None:
    row, views = contender.row, contender.row.views_per_image
    row.rounds, row.images_per_second = len(contender.rates), statistics.median(contender.rates)
    row.views_per_second = row.images_per_second * views
    row.views_per_second_low, row.views_per_second_high = min(contender.rates) * views, max(contender.rates) * views
    row.cpu_percent = 100 * statistics.median(cpu for cpu, _ in contender.used)
    row.memory_mib = max(memory for _, memory in contender.used) or None


def _compare(contenders: list[Contender]) -> None:
    """Ratios within a round, then their median: what the machine did to a round falls out."""
    loaders = [c for c in contenders if c.row.kind in LOADERS and c.row.backbone is None]
    plain = next((c for c in loaders if c.row.executor == "torchvision-pil"), None)
    if plain is not None:
        for c in loaders:
            c.row.times_baseline = _ratio(c, plain)
    if any(c.row.kind == "peer" for c in loaders):
        others = [c for c in loaders if c.row.kind != "loader"]
        for c in loaders:
            c.row.times_best_other = statistics.median(
                rate / max(other.rates[i] for other in others) for i, rate in enumerate(c.rates)
            )
    model = next((c for c in contenders if c.row.kind == "model"), None)
    whole = next((c for c in contenders if c.row.kind == "baseline" and c.row.backbone), None)
    for c in contenders:
        if c.row.kind == "train" and model is not None:
            c.row.share_of_model = _ratio(c, model)
        if c.row.kind == "train" and whole is not None:
            c.row.times_baseline = _ratio(c, whole)


def _ratio(mine: Contender, other: Contender) -> float:
    return statistics.median(a / b for a, b in zip(mine.rates, other.rates, strict=True))


def _family() -> list[int]:
    """This process and its living descendants."""
    found, left = [], [os.getpid()]
    while left:
        pid = left.pop()
        found.append(pid)
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                left += [int(child) for child in (task / "children").read_text().split()]
        except OSError:  # ended meanwhile, or no /proc
            continue
    return found


def cpu_seconds() -> float:
    """CPU time of this process and its workers so far."""
    total, tick = sum(os.times()[:4]), os.sysconf("SC_CLK_TCK")  # with the children that have ended
    for pid in _family()[1:]:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / tick
        except OSError:
            continue
    return total


def memory_mib() -> float:
    """Memory of this process and its workers, pages they share counted once; 0 where it cannot be told."""
    total = 0.0
    for pid in _family():
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(text.partition("\nPss:")[2].split()[0]) / 1024
        except (OSError, IndexError):
            continue
    return total
