"""Deep images, names that are no text, bombs: values against numpy's own arithmetic, and the line the user sees."""

import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from saccade import train
from saccade.base.errors import UserError
from saccade.base.files import lock
from saccade.base.text import printable
from saccade.pipelines.data import open_data
from saccade.pipelines.sources import BadImage, Options, decode
from saccade.pipelines.sources.decode import MAX_PIXELS
from saccade.pipelines.sources.options import read_value_range
from saccade.runs.folder import RunFolder, default_folder
from saccade.tools.convert import main as convert

RNG = np.random.default_rng(0)


def set_of(folder, *arrays, ending=".tif"):
    folder.mkdir(parents=True, exist_ok=True)
    for k, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{k}{ending}")
    return open_data(str(folder))[0]


@pytest.mark.parametrize(
    ("deep", "low", "high"),
    [
        (RNG.integers(0, 4096, (40, 40)).astype(np.uint16), 0, 4095),  # 12 bits in 16
        (RNG.integers(900, 1400, (40, 40)).astype(np.uint16), 900, 1400),  # an X-ray
        (RNG.integers(0, 65536, (40, 40)).astype(np.uint16), 0, 65535),
        (RNG.random((40, 40)).astype(np.float32), 0, 1),
        ((RNG.random((40, 40)) * 255).astype(np.float32), 0, 255),
        ((RNG.random((40, 40)) * 9000 - 500).astype(np.float32), -500, 8500),
        (RNG.integers(-1000, 3000, (40, 40)).astype(np.int32), -1000, 3000),  # Hounsfield units
    ],
    ids=["12 bits", "narrow", "16 bits", "0 to 1", "0 to 255", "float", "negative"],
)
def test_deep_images_keep_their_values(tmp_path, deep, low, high):
    source = set_of(tmp_path / "p", deep, deep[::-1].copy())
    want = ((deep.astype(np.float64) - low) / (high - low) * 255).clip(0, 255)
    found = source.read(0)
    assert found.shape == (40, 40, 3) and np.abs(found[..., 0] - want).mean() < 1.5
    assert any("more than 8 bits" in line and "--value-range" in line for line in source.account.warnings())


def test_one_range_holds_for_a_whole_set(tmp_path):
    dark, bright = np.full((9, 9), 100, np.uint16), np.full((9, 9), 4000, np.uint16)
    source = set_of(tmp_path / "p", dark, bright, ending=".png")
    assert int(source.read(1).max()) - int(source.read(0).max()) > 200
    given, _ = open_data(str(tmp_path / "p"), options=Options(value_range=read_value_range("0,8000")))
    assert int(given.read(1).max()) == 127 and not any("told by" in line for line in given.account.warnings())


@pytest.mark.parametrize(("text", "words"), [("0,100", "are clipped"), ("0,1000000", "is used by")])
def test_a_range_that_destroys_values_is_said(tmp_path, text, words):
    set_of(tmp_path / "p", RNG.integers(0, 4096, (40, 40)).astype(np.uint16))
    source, _ = open_data(str(tmp_path / "p"), options=Options(value_range=read_value_range(text)))
    assert any(words in line for line in source.account.warnings())


@pytest.mark.parametrize("text", ["1", "5,1", "a,b", "0,inf", "nan,1", "1,2,3"])
def test_no_range_is_refused(text):
    with pytest.raises(UserError, match="--value-range"):
        read_value_range(text)


@pytest.mark.parametrize("side", [13300, 14000])
def test_a_bomb_is_refused_by_its_header(side):
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    assert side * side > MAX_PIXELS and len(file.getvalue()) < 40_000
    with pytest.raises(BadImage, match=r"million pixels|DecompressionBomb"):
        decode(io.BytesIO(file.getvalue()))


@pytest.mark.slow
def test_many_threads_decode_within_the_budget():
    code = (
        "import io, resource\nfrom concurrent.futures import ThreadPoolExecutor\nfrom PIL import Image\n"
        "from saccade.pipelines.sources import decode\n"
        "file = io.BytesIO(); Image.new('1', (9000, 9000)).save(file, 'PNG'); data = file.getvalue()\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    assert all(pool.map(lambda _: decode(io.BytesIO(data)).shape == (9000, 9000, 3), range(8)))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(told.stdout) < 4000  # MiB; eight at once would take 8 GB


NAMES = [b"br\xfbl\xe9.jpg", b"new\nline.jpg", b"esc\x1b[31m.jpg", b"\xff\xfe.jpg", "naïve ☂.jpg".encode()]


@pytest.mark.parametrize("name", NAMES)
def test_bytes_that_are_no_text_in_a_name_reach_lists_and_records_escaped(tmp_path, name):
    folder = tmp_path / "p" / "cat"
    folder.mkdir(parents=True)
    for k in range(24):
        Image.new("RGB", (8, 8), (k, 0, 0)).save(folder / f"{k}.jpg")
    with open(os.fsencode(folder) + b"/" + name, "wb") as file:
        file.write(b"no image")
    source, _ = open_data(str(tmp_path / "p"))
    at = next(i for i in range(25) if source.key_of(i).endswith(os.fsdecode(name)))
    source.read_or_replace(at)
    RunFolder(tmp_path).list_bad(source.known_bad)
    lines = (tmp_path / "bad_images.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 and lines[0].split("\t")[0] == printable("cat/" + os.fsdecode(name))
    assert lines[0].isprintable() or "\t" in lines[0]
    json.dumps(source.known_bad).encode("utf-8")
    for to in ("wds", "folder", "parquet"):
        assert convert([str(tmp_path / "p"), str(tmp_path / to), "--to", to]) == 0


@pytest.mark.parametrize("name", [".hidden", "a/b", "..", "../x", " blank", ""])
def test_a_class_that_cannot_be_a_folder_is_refused_by_name(tmp_path, name):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=[0, 1, 0, 1], classes=["ok", name])
    with pytest.raises(UserError, match=r"cannot be a folder.s name.*--to wds"):
        convert([str(tmp_path / "x.npz"), str(tmp_path / "out"), "--to", "folder"])
    assert convert([str(tmp_path / "x.npz"), str(tmp_path / "shards"), "--to", "wds"]) == 0


@pytest.mark.parametrize("number", [38, 37, 95])  # ENOSYS, ENOLCK, EOPNOTSUPP: Lustre and NFS without locks
def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with open(tmp_path / "lock", "w") as file:
        lock(file)
    assert "has no locks" in capsys.readouterr().err


def test_runs_that_start_in_one_second_have_folders_of_their_own():
    names = {str(default_folder("stec", "some/da\nta.npz")) for _ in range(50)}
    assert len(names) > 40 and all(re.fullmatch(r"outputs/stec-da_ta-\d{8}-\d{6}-\d{9}", name) for name in names)


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_a_schedule_that_no_run_could_follow_is_refused(value, capsys):
    assert train.main(["--method", "stec", "--set", f"schedule.options.warmup_epochs={value}"]) == 2
    assert "--set schedule.options.warmup_epochs" in capsys.readouterr().err
