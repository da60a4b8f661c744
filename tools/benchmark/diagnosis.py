"""From measured speeds to a diagnosis: pure functions, so that every verdict can be tested."""

from __future__ import annotations

from dataclasses import dataclass

from saccade.runs.config import LARGEST_CIFAR


@dataclass(frozen=True)
class Speeds:
    """Images per second of each part; None where there is no such part. Sizes in GiB."""

    title: str
    executor: str
    device: str  # cpu or cuda
    precision: str
    loader: float
    model: float
    whole: float
    geometry: float | None = None  # the loader without colour and blur
    decode: float | None = None
    disk: float | None = None
    copy: float | None = None
    cpus: int = 1
    machine_cpus: int = 1
    workers: int | None = None
    threads: int = 1
    free_memory: float = 0.0
    decoded_set: float | None = None  # the whole set as pixels
    shared_memory: float | None = None  # free in /dev/shm
    is_jpeg: bool = False
    stem: str = "plain"
    image_size: int = 32  # pixels of a full-size view


def bottleneck(s: Speeds) -> tuple[str, str]:
    """One of disk, decode, colour, crop, copy, model; and why."""
    if s.model <= 0.9 * s.loader and (s.copy is None or s.model <= s.copy):
        return "model", f"the loader makes {s.loader / s.model:.1f} times what the step takes"
    if s.copy is not None and s.copy < min(s.loader, s.model):
        return "copy", f"the device takes in {s.copy:,.0f} images/s, the step could use {s.model:,.0f}"
    share = f"the loader makes {s.loader:,.0f} images/s, the step could use {s.model:,.0f}"
    if s.disk is not None and s.disk < 1.2 * s.loader:
        return "disk", f"{share}, and the files come at {s.disk:,.0f} images/s"
    if s.decode is not None and 1 / s.decode > 0.5 / s.loader:
        return "decode", f"{share}; decoding is {min(1.0, s.loader / s.decode):.0%} of its work"
    if s.geometry is not None and 1 / s.loader - 1 / s.geometry > 0.5 / s.loader:
        return "colour", f"{share}; colour and blur are {1 - s.loader / s.geometry:.0%} of its work"
    return "crop", share


def advise(s: Speeds, part: str) -> list[str]:
    """What to change, the largest gain first, each with the gain to expect of the whole run."""

    def gain(loader: float) -> str:
        reached = min(loader, s.model) if s.device == "cuda" else 1 / (1 / loader + 1 / s.model)
        return f"up to {max(1.0, reached / s.whole):.1f} times the images/s of now"

    if part == "model":
        return _for_the_model(s)
    if part == "copy":
        return (
            [f"--precision bf16: half the bytes to copy, {gain(min(s.loader, 2 * (s.copy or 0)))}"]
            if s.precision == "fp32"
            else ["use an executor that renders on the device (resident, dali): only the images' bytes are copied"]
        )
    advice = []
    fits = s.decoded_set is not None and s.executor != "resident" and s.decoded_set < 0.5 * s.free_memory
    if part in ("disk", "decode") and fits:
        advice.append(
            f"the decoded set is {s.decoded_set:.1f} GiB and fits into memory: --cache ram (threads, ffcv) decodes in "
            "the first epoch only; or saccade convert DATA raw.beton --store raw, then --data raw.beton: no decoding, "
            f"{gain(_without(s.loader, s.decode))}"
        )
    if part == "disk":
        advice.append("copy the data to a local disk, or saccade convert DATA DIR --to wds: large files read in order")
    if s.executor == "reference":
        advice.append(f"--pipeline threads: one decode an image, and compiled views, {gain(8 * s.loader)}")
    if part == "decode" and s.is_jpeg:
        advice.append(
            "smaller images: saccade convert DATA DIR --to folder --max-side 256 decodes a quarter of the pixels, "
            f"{gain(_without(s.loader, s.decode, 0.7))}"
        )
        if s.executor in ("threads", "ffcv"):
            advice.append("--decode scaled: photos many times as large as the views are decoded at a part of it")
    if s.workers is not None and s.workers < s.cpus:
        advice.append(
            f"--workers {s.cpus}: only {s.workers} of {s.cpus} CPUs decode, {gain(s.loader * s.cpus / s.workers)}"
        )
    if part in ("colour", "crop") and s.device == "cpu":
        advice.append("more CPU cores: rendering scales with them, and nothing else is in its way")
    return advice or ["more CPU cores, or fewer or smaller views"]


def _for_the_model(s: Speeds) -> list[str]:
    advice = []
    if s.whole < 0.9 * s.model and s.device == "cuda":
        advice.append(
            f"end to end reaches {s.whole / s.model:.0%} of the step alone: the GPU waits between steps; a larger "
            f"--batch-size makes the pauses rarer, up to {s.model / s.whole:.1f} times"
        )
    if s.device == "cuda" and s.precision == "fp32":
        advice.append("--precision bf16: two to three times on GPUs with tensor cores")
    if s.device == "cuda":
        advice.append("--compile (the default on a GPU) and the largest --batch-size that fits")
    elif s.stem.startswith("cifar") and s.image_size > LARGEST_CIFAR:
        advice.append(
            f"--set backbone.stem=plain: at {s.image_size} pixels the {s.stem} stem costs a CPU about ten times the "
            "plain one, for details that such images show without it"
        )
    if s.device == "cpu":
        advice.append("this is a CPU: a GPU runs the step many times faster; the loader would then be what counts")
        advice.append(
            "a smaller --backbone (test_resnet) or --image-size: the step's cost grows with the square of the size"
        )
    return advice


def _without(loader: float, part: float | None, share: float = 1.0) -> float:
    """The loader's rate if `share` of a part of its work fell away; at most ten times."""
    left = 1 / loader - share / part if part else 1 / loader
    return min(10 * loader, 1 / left if left > 0 else 10 * loader)


def warnings_for(s: Speeds) -> list[str]:
    """What is wrong with the machine, whatever the bottleneck."""
    found = []
    if s.cpus < s.machine_cpus:
        found.append(
            f"only {s.cpus} of the machine's {s.machine_cpus} CPUs may be used here (cgroup or affinity); ask for more "
            "if the loader is the bottleneck."
        )
    if s.threads < s.cpus and s.device == "cpu":
        found.append(f"torch computes with {s.threads} threads on {s.cpus} CPUs; unset OMP_NUM_THREADS.")
    if s.free_memory < 2:
        found.append(f"only {s.free_memory:.1f} GiB of memory are free; the system may stop the run.")
    if s.executor == "resident" and s.decoded_set and s.decoded_set > 0.8 * s.free_memory:
        found.append(f"the decoded set takes {s.decoded_set:.1f} GiB of the {s.free_memory:.1f} free; use threads.")
    if s.shared_memory is not None and s.shared_memory < 1 and s.executor == "reference":
        found.append(
            f"/dev/shm has {s.shared_memory:.2f} GiB free: worker processes die with a bus error; start the container "
            "with --shm-size 8g, or use --pipeline threads, which starts none."
        )
    if s.disk is not None and s.disk < s.model:
        found.append(
            f"the disk gives {s.disk:,.0f} images/s, less than the step's {s.model:,.0f}; the first epoch will wait."
        )
    return found
