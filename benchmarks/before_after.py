"""Is a loader slower than it was?  python -m benchmarks.before_after OLD_CHECKOUT [--suite multicrop] [--json FILE]

Two checkouts, a process each, take turns at equal batches; a third process is OLD once more and takes the same turns:
what two processes of one code differ by is the noise that a difference must exceed. CPU time, which a busy machine
disturbs less than the clock. Starts them anew `--starts` times: which is the faster one changes from start to start.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
KEPT = "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=2147483647"  # as runs keep what they free
BATCHES = {"cifar": 48, "photos": 10, "multicrop": 6}


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("old", type=Path, help="a folder named saccade that holds the other checkout")
    p.add_argument("--suite", choices=BATCHES, default="multicrop")
    p.add_argument("--starts", type=int, default=4)
    p.add_argument("--turns", type=int, default=3, help="of each loader in each process, after one that is not counted")
    p.add_argument("--scratch", type=Path, default=Path("/tmp/saccade-before-after"), help="where the images are made")
    p.add_argument("--json", type=Path)
    flags = p.parse_args(argv)
    flags.scratch.mkdir(parents=True, exist_ok=True)
    ratios: dict[str, dict[str, list[float]]] = {}
    for start in range(flags.starts):
        for loader, found in one_start(flags).items():
            for which, ratio in found.items():
                ratios.setdefault(loader, {}).setdefault(which, []).append(ratio)
        print(f"start {start + 1} of {flags.starts} ended", file=sys.stderr, flush=True)
    rows = {loader: {which: summary(each) for which, each in found.items()} for loader, found in ratios.items()}
    print(f"{'CPU time, ' + flags.suite:<24}{'now / old':>22}{'old / old':>22}")
    for loader, row in rows.items():
        cells = "".join(f"{x['median']:>10.3f} ({x['low']:.2f}-{x['high']:.2f})" for x in row.values())
        print(f"{loader:<24}{cells}")
    if flags.json:
        record = {"suite": flags.suite, "starts": flags.starts, "old": commit(flags.old), "now": commit(HERE)}
        flags.json.write_text(json.dumps({**record, "cpu": os.cpu_count(), "rows": rows}, indent=1) + "\n")


def one_start(flags: argparse.Namespace) -> dict[str, dict[str, float]]:
    """loader -> the median over turns of CPU time an image, now and of the copy, each over old's."""
    processes, loaders = {}, []
    for which, checkout in (("old", flags.old), ("now", HERE), ("copy", flags.old)):
        processes[which] = serve(flags, checkout)
        loaders = json.loads(read(processes[which]))  # one after the other: the first makes the images
    spent: dict[str, dict[str, list[float]]] = {loader: {which: [] for which in processes} for loader in loaders}
    for turn in range(flags.turns + 1):
        for loader in loaders:
            for which in sorted(processes, reverse=bool(turn % 2)):
                process = processes[which]
                assert process.stdin
                process.stdin.write(f"{loader}\n")
                process.stdin.flush()
                seconds = float(read(process))
                if turn:
                    spent[loader][which].append(seconds)
    for process in processes.values():
        process.communicate()
    middle = {loader: {w: statistics.median(each) for w, each in found.items()} for loader, found in spent.items()}
    return {loader: {w: m[w] / m["old"] for w in ("now", "copy")} for loader, m in middle.items()}


def serve(flags: argparse.Namespace, checkout: Path) -> subprocess.Popen[str]:
    """A process that times the loaders of one checkout, whatever is installed."""
    arguments = [sys.executable, __file__, "--serve", flags.suite, str(flags.scratch)]
    path = {"PYTHONPATH": str(checkout.resolve().parent), "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    path["GLIBC_TUNABLES"] = KEPT
    env = {**os.environ, **path}
    return subprocess.Popen(arguments, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def read(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise SystemExit("before_after: a process of it ended; what it printed is above.")
    return line


def server() -> None:
    """Prints the loaders' names, then, for each name it reads, CPU seconds an image."""
    import torch

    torch.set_num_threads(1)
    from saccade.tools.benchmark.contenders import loaders
    from saccade.tools.benchmark.suites import build_suite

    suite, scratch = sys.argv[2:4]
    work = build_suite(suite, Path(scratch), None, None, False, copies=6)
    some = ("resident",) if suite == "cifar" else ()
    made = {c.row.executor: c for c in loaders(work, some, torch.device("cpu"), workers=1) if c.row.kind == "loader"}
    made.pop("reference", None)  # its workers take seconds to start
    print(json.dumps(list(made)), flush=True)
    for name in sys.stdin:
        print(turn(made[name.strip()], BATCHES[suite]), flush=True)


def turn(contender: Any, batches: int) -> float:
    items = contender.start()
    for _ in range(contender.warm_up):
        next(items)
    before, images = cpu_seconds(), 0
    for _ in range(batches):
        images += next(items)
    return (cpu_seconds() - before) / images


def cpu_seconds() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def summary(ratios: list[float]) -> dict[str, float]:
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def commit(checkout: Path) -> str:
    found = subprocess.run(["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    server() if sys.argv[1:2] == ["--serve"] else main()
