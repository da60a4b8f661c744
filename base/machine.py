"""What this machine is and which versions run on it: for records, and for how many workers to start."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "numpy",
    "pillow",
    "simplejpeg",
    "numba",
    "nvidia-dali-cuda130",
    "ffcv",
    "webdataset",
)
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
ROOT = Path(__file__).resolve().parents[1]  # of a checkout, or of the installed package


def available_cpus() -> int:
    """CPUs this process may use: affinity and the cgroup's quota, not what the machine has."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cpus = min(cpus, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2: the affinity is what counts
    return cpus


def available_memory() -> float:
    """Bytes that this process may still take: the system's, or what its cgroups or its own limits (ulimit -v, -d) leave
    where that is less; inf if unknown. Cached files count as free: they give way."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        own = [line.rstrip().split(":", 2) for line in OWN_CGROUPS.read_text().splitlines()]
    except (OSError, ValueError, StopIteration):
        return float("inf")  # not Linux
    kinds = {
        "": (CGROUPS, "memory.max", "memory.current", "inactive_file"),
        "memory": (CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }  # version 2, and 1
    for _, controllers, path in own:
        for name in kinds.keys() & set(controllers.split(",")):
            root, *files = kinds[name]
            folder = root / path.lstrip("/")
            for place in (folder, *folder.parents):  # in a container the path may be the host's: the root is its own
                if place.is_relative_to(root):
                    free = min(free, _cgroup_leaves(place, *files))
    return max(0.0, min(free, _limits_leave()))


def _limits_leave() -> float:
    """Bytes to the process's own limits of addresses and of data."""
    try:
        sizes = [os.sysconf("SC_PAGE_SIZE") * int(pages) for pages in Path("/proc/self/statm").read_text().split()]
    except (OSError, ValueError):
        return float("inf")
    limits = (resource.RLIMIT_AS, sizes[0]), (resource.RLIMIT_DATA, sizes[5])
    soft = ((resource.getrlimit(limit)[0], size) for limit, size in limits)
    return min((float(most - size) for most, size in soft if most != resource.RLIM_INFINITY), default=float("inf"))


def _cgroup_leaves(folder: Path, limit: str, used: str, cached: str) -> float:
    try:
        most, taken = (int((folder / name).read_text()) for name in (limit, used))
        words = (folder / "memory.stat").read_text().split()
        return most - taken + int(words[words.index(cached) + 1])
    except (OSError, ValueError):  # "max", or no such group
        return float("inf")


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has had at a time: of a GPU's memory by torch, on a CPU of the machine's."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def versions() -> dict[str, str]:
    """Installed versions of the packages a run depends on, and Python's."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the code that runs, with "+" if it was changed; None outside a checkout of ours."""
    commit = _git("rev-parse", "HEAD") if _is_checkout() else None
    return commit and commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def git_diff() -> str:
    """What the checkout's tracked files changed since its commit; "" where nothing did, or where there is none."""
    return (_git("diff", "HEAD") or "") if _is_checkout() else ""


def _is_checkout() -> bool:
    """An installed package may lie inside somebody else's repository (their .venv): that is not our commit."""
    top = _git("rev-parse", "--show-toplevel")
    return bool(top) and Path(top).resolve() == ROOT


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """What this machine is, for summaries and measurements."""
    import torch  # here: the ground floor is loaded before torch is

    described: dict[str, Any] = {
        "machine": platform.machine(),
        "cpus": available_cpus(),
        "threads": torch.get_num_threads(),
    }
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        described["cpu"] = names[0] if names else platform.processor()
        described["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (OSError, ValueError):
        pass
    if torch.cuda.is_available():
        described["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return described
