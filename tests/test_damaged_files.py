"""Damaged files of every kind that is read: a sentence or what they held, never a traceback, a hang or a crash."""

import json
import re
import resource
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from saccade import train
from saccade.base.errors import UserError
from saccade.evaluation.subject import open_subject
from saccade.models.backbone import BackboneSpec, create_backbone, export_backbone, load_backbone
from saccade.pipelines.data import open_data
from saccade.pipelines.sources.decode import BadImage
from saccade.runs.checkpoint import load_checkpoint
from saccade.runs.flags import parse_flags
from saccade.runs.folder import RunFolder
from saccade.runs.resume import taken_up
from tests.pipelines.files import beton_with, picture, stored, tar_with

HANG, ROOM = 20, 6 << 30  # seconds that one file may take; bytes beyond what the process has
FEW, MANY = 12, 2000
TOKEN = re.compile(  # a value of JSON, roughly
    rb'[:\[,]\s*("[^"]{0,60}"|-?[\d.]+(?:e-?\d+)?|true|false|null)'
)
NUMBERS = [b"0", b"-1", b"1e999", b"99999999999999999999999", b"0.5", b"null", b'"x"', b"[]", b"{}", b"true", b"NaN"]


def mutated(rng: np.random.Generator, content: bytes, front: int) -> bytes:
    """A few bytes flipped, overwritten, cut, repeated or put in, mostly in the first `front`; values of JSON."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, max(1, min(front, len(data)) if rng.random() < 0.8 else len(data))))
        length = int(rng.integers(1, 9))
        kind = rng.integers(0, 8)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            data[at : at + length] = rng.bytes(length)
        elif kind == 2:
            data[at : at + length] = bytes([int(rng.choice([0, 255, 127, 128]))]) * length
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            data[at:at] = data[at : at + 8 * length]
        elif kind == 6:
            data[at:at] = rng.bytes(length)
        elif tokens := _tokens(data):
            start, end = tokens[int(rng.integers(0, len(tokens)))]
            data[start:end] = NUMBERS[int(rng.integers(0, len(NUMBERS)))]
    return bytes(data)


def _tokens(data: bytearray) -> list[tuple[int, int]]:
    """Where values of JSON lie."""
    import re

    return [
        m.span(1) for m in re.finditer(rb'[:\[,]\s*("[^"]{0,60}"|-?[\d.]+(?:e-?\d+)?|true|false|null)', data[:20000])
    ]


@contextmanager
def limited() -> Iterator[None]:
    """A process that can take so much memory only, and so many seconds."""

    def hung(*_: object) -> None:
        raise AssertionError(f"no end within {HANG} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, hung)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def read_all(place: Path) -> None:
    source = open_data(str(place))[0]
    for i in range(min(len(source), 8)):
        try:
            source.size(i), source.read(i)
        except BadImage:
            continue
    source.reader.close()


# --- what is damaged: kind -> (its file, what reads it, how much of its front is its table) ---------------------------


def a_run(folder: Path) -> Path:
    np.savez(folder / "data.npz", images=np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8))
    small = ["--backbone", "test_resnet", "--batch-size", "8", "--eval-every", "0", "--device", "cpu"]
    out = folder / "run"
    assert train.main(["--data", str(folder / "data.npz"), "--steps", "2", "--out", str(out), *small]) == 0
    return out


def checkpoint(folder: Path) -> tuple[Path, Callable[[], object], int]:
    out = a_run(folder)
    file = next((out / "checkpoints").glob("*.safetensors"))
    return file, lambda: load_checkpoint(out, say=str), 30_000


def record(folder: Path) -> tuple[Path, Callable[[], object], int]:
    out = a_run(folder)

    def read() -> None:
        for how in (lambda: taken_up(parse_flags(["--resume", str(out)])), lambda: open_subject(out)):
            try:
                how()
            except UserError:
                continue

    return out / "config.json", read, 1 << 20


def metrics(folder: Path) -> tuple[Path, Callable[[], object], int]:
    file = folder / "metrics.jsonl"
    lines = [{"step": s, "loss": 1.5, "lr": 0.1, "knn_top1": 20.0, "host": "x"} for s in range(6)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def read() -> None:
        run = RunFolder(folder)
        assert all(isinstance(r["step"], int) for r in run.metrics())
        run.rewind(3)

    return file, read, 1 << 20


def beton(folder: Path) -> tuple[Path, Callable[[], object], int]:
    images = [(stored(picture(i), "JPEG"), 48, 48) for i in range(6)]
    beton_with(file := folder / "x.beton", images)
    return file, lambda: read_all(file), 1300


def tar(folder: Path) -> tuple[Path, Callable[[], object], int]:
    files = {f"{i}.{e}": d for i in range(6) for e, d in (("jpg", stored(picture(i), "JPEG")), ("cls", b"%d" % i))}
    tar_with(file := folder / "x.tar", files)

    def read() -> None:
        file.with_name("x.tar.index").unlink(missing_ok=True)
        read_all(file)

    return file, read, 512


def tar_index(folder: Path) -> tuple[Path, Callable[[], object], int]:
    file, read, _ = tar(folder)
    read()
    return file.with_name("x.tar.index"), lambda: read_all(file), 1 << 20


def npz(folder: Path) -> tuple[Path, Callable[[], object], int]:
    file, rng = folder / "x.npz", np.random.default_rng(0)
    np.savez(file, images=rng.integers(0, 256, (6, 8, 8, 3), np.uint8), labels=np.arange(6))
    return file, lambda: read_all(file), 250


def parquet(folder: Path) -> tuple[Path, Callable[[], object], int]:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [{"bytes": stored(picture(i), "PNG"), "path": None} for i in range(6)]
    pq.write_table(pa.table({"image": images, "label": list(range(6))}), file := folder / "x.parquet")
    return file, lambda: read_all(file), 1 << 20


def backbone(folder: Path) -> tuple[Path, Callable[[], object], int]:
    spec = BackboneSpec("test_resnet", "plain")
    description = {"image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3, "method": "x", "data": "x", "steps": 1}
    for name, content in export_backbone(create_backbone(spec, 32), spec, 32, description).items():
        (folder / name).write_bytes(content)

    def read() -> None:
        for how in (lambda: load_backbone(folder), lambda: open_subject(folder)):
            try:
                how()
            except UserError:
                continue

    return folder / "backbone.json", read, 1 << 20


KINDS = [checkpoint, record, metrics, beton, tar, tar_index, npz, parquet, backbone]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_a_damaged_file_is_a_sentence_or_what_it_held(kind, count, tmp_path, capsys):
    home = tmp_path / "home"
    home.mkdir()
    file, read, front = kind(home)
    content, found, seeds = file.read_bytes(), Counter(), {}
    read()  # undamaged
    for seed in range(count):
        data = mutated(np.random.default_rng(seed), content, front)
        file.unlink(missing_ok=True)  # as another file: the last one may be mapped
        file.write_bytes(data)
        try:
            with limited():
                read()
        except (UserError, BadImage):
            continue
        except Exception:
            where = "".join(traceback.format_exc().splitlines(keepends=True)[-5:])
            found[where] += 1
            seeds.setdefault(where, seed)
    assert [p.name for p in tmp_path.iterdir()] == ["home"]  # nothing outside
    assert not found, "\n".join(f"{n} times, first by seed {seeds[w]}:\n{w}" for w, n in found.most_common(8))
    capsys.readouterr()
