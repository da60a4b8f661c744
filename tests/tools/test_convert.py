"""tools.convert: nothing is lost on the way, between any two formats, through kills, full disks and bad files."""

import filecmp
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from saccade.base.errors import UserError
from saccade.pipelines.data import open_data
from saccade.pipelines.manifest import manifest_of
from saccade.pipelines.sources import FolderSource, decode
from saccade.pipelines.sources.open import open_dataset
from saccade.tools.conversion import forecast, run
from saccade.tools.conversion.job import Job
from saccade.tools.conversion.journal import OWN
from saccade.tools.conversion.prepare import Settings
from saccade.tools.convert import main

ROOT = Path(__file__).resolve().parents[2]
needs_pyarrow = pytest.mark.skipif(
    find_spec("pyarrow") is None, reason="pyarrow is not installed (pip install '.[parquet]')"
)
CLASSES = ("bee", "ant", "cat dog")


def save(path, size=(40, 30), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(path.as_posix().encode()[-24:]))
    shape = (size[1], size[0], *{"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode])
    coarse = rng.integers(0, 256, (4, 4, *shape[2:]), dtype=np.uint8)
    Image.fromarray(np.asarray(Image.fromarray(coarse, mode).resize(size)), mode).save(path, **options)


@pytest.fixture
def photos(tmp_path):
    """Two splits of three classes; JPEG and PNG, of unequal sizes."""
    for split, count in (("train", 7), ("val", 2)):
        for k, name in enumerate(CLASSES):
            for i in range(count):
                save(
                    tmp_path / "photos" / split / name / f"im.{i}.{'png' if i == 3 else 'jpg'}",
                    (40 + 5 * k + i, 30 + 9 * i),
                )
    return tmp_path / "photos"


def convert(src, dst, *flags) -> int:
    return main([str(src), str(dst), "--workers", "2", *map(str, flags)])


def contents(src, **options) -> dict[str, list]:
    """split -> sorted (class name, pixels, JPEG bytes or None) of every image."""
    found = {}
    for split, reader in open_dataset(str(src), **options).splits.items():
        found[split] = []
        for i in range(len(reader)):
            image, label = reader.stored(i), reader.label_of(i)
            pixels = image if isinstance(image, np.ndarray) else decode(io.BytesIO(image))
            stored = image if isinstance(image, bytes) and image[:2] == b"\xff\xd8" else None
            found[split].append(
                (reader.classes[label] if reader.classes else label, pixels.shape, pixels.tobytes(), stored)
            )
        found[split].sort(key=lambda entry: (entry[0], entry[2]))
    return found


def test_folder_to_tars_to_beton_to_folder_keeps_pixels_labels_and_jpeg_bytes(photos, tmp_path):
    for src, dst, to in (
        (photos, "tars", "wds"),
        (tmp_path / "tars", "betons", "beton"),
        (tmp_path / "betons", "back", "folder"),
    ):
        assert convert(src, tmp_path / dst, "--to", to, "--shard-size", 5) == 0
        assert contents(tmp_path / dst) == contents(photos)
    assert FolderSource(tmp_path / "back" / "train").classes == tuple(sorted(CLASSES))


@pytest.mark.parametrize("to", ["folder", "wds", "beton", pytest.param("parquet", marks=needs_pyarrow)])
def test_every_format_keeps_bytes_labels_and_the_order_of_class_names(photos, tmp_path, to):
    convert(photos, tmp_path / "out", "--to", to, "--shard-size", 4)
    assert contents(tmp_path / "out") == contents(photos)
    manifest = manifest_of(tmp_path / "out")
    assert manifest.splits["train"].images == 21 and manifest.splits["train"].per_class == [7, 7, 7]
    assert manifest.splits["train"].heights == (30, 84) and manifest.left_out == {}
    assert not (tmp_path / "out.partial").exists() and not (tmp_path / "out" / OWN).exists()


@pytest.mark.parametrize("to", ["folder", "wds", "beton", "npz", pytest.param("parquet", marks=needs_pyarrow)])
@pytest.mark.parametrize("labelled", [True, False])
def test_arrays_go_to_every_format_and_come_back_as_they_were(tmp_path, to, labelled):
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"images": rng.integers(0, 256, (23, 12, 10, 3), dtype=np.uint8)}
    if labelled:
        arrays |= {"labels": rng.integers(0, 3, 23), "classes": np.array(["zebra", "ant", "bee"])}
    np.savez(tmp_path / "x.npz", **arrays)
    convert(tmp_path / "x.npz", tmp_path / "out", "--to", to, "--shard-size", 10)
    convert(tmp_path / "out", tmp_path / "back.npz")
    back = np.load(tmp_path / "back.npz", allow_pickle=False)
    names = arrays["classes"][arrays["labels"]] if labelled else np.zeros(23)
    names_back = back["classes"][back["labels"]] if labelled else np.zeros(len(back["images"]))
    assert sorted(zip(names, map(bytes, arrays["images"]), strict=True)) == sorted(
        zip(names_back, map(bytes, back["images"]), strict=True)
    )
    assert ("labels" in back) == labelled
    train, _ = open_data(str(tmp_path / "back.npz"))
    assert len(train) == 23


def test_labels_without_names_stay_the_numbers_they_are(tmp_path):
    np.savez(
        tmp_path / "x.npz",
        images=np.arange(6 * 192, dtype=np.uint8).reshape(6, 8, 8, 3),
        labels=np.array([7, 2, 11, 2, 7, 0]),
    )
    convert(tmp_path / "x.npz", tmp_path / "a.beton")
    assert open_data(str(tmp_path / "a.beton"))[0].labels.tolist() == [7, 2, 11, 2, 7, 0]
    convert(tmp_path / "a.beton", tmp_path / "folder", "--to", "folder")
    assert FolderSource(tmp_path / "folder" / "train").classes == ("00000", "00002", "00007", "00011")


@pytest.mark.parametrize(("store", "jpegs"), [("keep", 18), ("jpg", 21), ("raw", 0)])
def test_a_beton_stores_what_is_asked_for(photos, tmp_path, store, jpegs):
    convert(photos, tmp_path / "x.beton", "--split", "train", "--store", store)
    source, _ = open_data(str(tmp_path / "x.beton"))
    assert source.is_jpeg.sum() == jpegs and source.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    assert source.classes == tuple(sorted(CLASSES))


def test_images_that_a_plain_decoder_shows_wrongly_lie_upright_in_a_beton(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "in" / "turned.jpg", exif=exif)
    save(tmp_path / "in" / "cmyk.jpg", mode="CMYK")
    save(tmp_path / "in" / "grey.jpg", mode="L")
    save(tmp_path / "in" / "alpha.png", mode="RGBA")
    convert(tmp_path / "in", tmp_path / "x.beton")
    source, _ = open_data(str(tmp_path / "x.beton"))
    files = sorted((tmp_path / "in").iterdir())
    assert all(np.array_equal(source.read(i), decode(file)) for i, file in enumerate(files))
    assert [files[i].name for i in np.flatnonzero(source.is_jpeg)] == ["grey.jpg"]


def test_resizing_keeps_small_images_byte_for_byte(photos, tmp_path):
    convert(photos / "train", tmp_path / "out", "--to", "folder", "--max-side", 50)
    before, after = FolderSource(photos / "train"), FolderSource(tmp_path / "out" / "train")
    for i in range(len(before)):
        height, width = before.size(i)
        kept = before.files[i].read_bytes() == after.files[i].read_bytes()
        assert kept == (max(height, width) <= 50) and max(after.size(i)) == min(50, max(height, width))
        assert abs(after.size(i)[0] / after.size(i)[1] - height / width) < 0.05


def test_quality_makes_everything_a_jpeg(photos, tmp_path):
    convert(photos / "val", tmp_path / "out", "--to", "wds", "--quality", 60)
    assert all(
        entry[3] for entry in contents(tmp_path / "out")["val" if (photos / "val" / "train").exists() else "train"]
    )


def test_tars_are_the_same_every_time_hold_all_classes_and_have_an_index_that_is_true(photos, tmp_path):
    for name in ("a", "b"):
        convert(photos, tmp_path / name, "--to", "wds", "--shard-size", 8)
    shards = sorted(p.name for p in (tmp_path / "a").iterdir() if p.suffix in (".tar", ".idx"))
    assert len(shards) == 8 and filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", shards, shallow=False)[0] == shards
    labels = {}
    for index in (tmp_path / "a").glob("*.idx"):
        tar = index.with_suffix(".tar").read_bytes()
        head, *lines = index.read_text().splitlines()
        assert head == f"v1.2 {len(lines)}" and len(lines) in (8, 5, 6)
        for line in lines:
            words = line.split()
            for extension, position, size, name in zip(*[iter(words)] * 4, strict=True):
                assert name.endswith(extension) and tar[int(position) - 512 :].startswith(name.encode())
                data = tar[int(position) : int(position) + int(size)]
                assert (
                    data in (b"0", b"1", b"2")
                    if extension == "cls"
                    else Image.open(io.BytesIO(data)).format in ("JPEG", "PNG")
                )
            labels.setdefault(index.stem, set()).add(data)
    assert labels["train-000000"] == {b"0", b"1", b"2"}


def test_the_webdataset_library_reads_the_tars(photos, tmp_path):
    import webdataset

    convert(photos, tmp_path / "out", "--to", "wds", "--shard-size", 100)
    samples = list(webdataset.WebDataset(str(tmp_path / "out" / "train-000000.tar"), shardshuffle=False))
    assert len(samples) == 21 and all("cls" in sample and ("jpg" in sample or "png" in sample) for sample in samples)
    assert len({sample["__key__"] for sample in samples}) == 21


def test_foreign_tars_with_names_in_braces_and_equal_keys(tmp_path):
    import tarfile

    for number in range(3):
        with tarfile.open(tmp_path / f"data-{number:03d}.tar", "w") as tar:
            for key in ("0001", "0002"):
                image = io.BytesIO()
                Image.new("RGB", (9, 9), (80 * number, 10, 20)).save(image, "WEBP", lossless=True)
                for name, data in (
                    (f"{key}.webp", image.getvalue()),
                    (f"{key}.json", json.dumps({"label": f"c{number}"}).encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    convert(tmp_path / "data-{000..002}.tar", tmp_path / "out", "--to", "folder")
    source = FolderSource(tmp_path / "out" / "train")
    assert source.classes == ("c0", "c1", "c2") and source.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [int(source.read(i)[0, 0, 0]) for i in range(6)] == [0, 0, 80, 80, 160, 160]


@pytest.mark.parametrize(
    "table",
    [
        "file,label\na.jpg,dog\nsub/b.jpg,cat\nc.png,dog\n",
        "a.jpg,dog\nb.jpg,cat\nc.png,dog\n",  # no header, bare names
        "\ufeffid,x,breed\na,1,dog\nb,2,cat\nc,3,dog\n",  # Kaggle's: no extension, byte order mark
    ],
)
def test_a_flat_folder_gets_its_labels_from_a_table(tmp_path, table):
    save(tmp_path / "in" / "a.jpg"), save(tmp_path / "in" / "sub" / "b.jpg"), save(tmp_path / "in" / "c.png")
    (tmp_path / "labels.csv").write_text(table, encoding="utf-8")
    convert(tmp_path / "in", tmp_path / "out.beton", "--labels", tmp_path / "labels.csv")
    source, _ = open_data(str(tmp_path / "out.beton"))
    assert source.classes == ("cat", "dog") and source.labels.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("z.jpg,dog\n", "not one of its 1 rows names an image"),
        ("a.jpg,dog\na.jpg,cat\n", "data row 2 gives a.jpg the label 'cat', an earlier one 'dog'"),
        ("", "is empty"),
        ("what,ever,else\na.jpg,dog,1\n", "It has what, ever, else; give --label-key ever"),
        ("file,label\na.jpg\n", "data row 1 has 1 columns"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, table, words):
    save(tmp_path / "in" / "a.jpg"), save(tmp_path / "in" / "b.jpg")
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(UserError, match=words):
        convert(tmp_path / "in", tmp_path / "out.beton", "--labels", tmp_path / "labels.csv")


def test_cifar_pickles_are_read_through_torchvision_which_checks_them(tmp_path, monkeypatch):
    import hashlib

    rng, folder = np.random.default_rng(0), tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    data = {name: rng.integers(0, 256, (4, 3072), dtype=np.uint8) for name in ("data_batch_1", "test_batch")}
    files = {name: pickle.dumps({"data": d, "labels": [3, 0, 9, 3]}) for name, d in data.items()}
    files["batches.meta"] = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})
    for name, content in files.items():
        (folder / name).write_bytes(content)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", md5["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]})
    monkeypatch.setattr(CIFAR10, "download", lambda self: (_ for _ in ()).throw(OSError("no network")))
    for src in (folder, folder.parent):
        convert(src, tmp_path / f"out-{src.name}", "--to", "npz")
        train = np.load(tmp_path / f"out-{src.name}" / "train.npz")
        assert np.array_equal(train["images"], data["data_batch_1"].reshape(4, 3, 32, 32).transpose(0, 2, 3, 1))
        assert train["labels"].tolist() == [3, 0, 9, 3] and train["classes"][9] == "class 9"
    (folder / "test_batch").write_bytes(files["test_batch"][:-9] + b"x" * 9)
    with pytest.raises(UserError, match="cifar10 is not in"):
        convert(folder, tmp_path / "again", "--to", "npz")


# -------------------------------------------------------------- what goes wrong


def test_bad_images_are_left_out_listed_and_too_many_stop(photos, tmp_path):
    victims = sorted((photos / "train").rglob("*.jpg"))[:2]
    victims[0].write_bytes(victims[0].read_bytes()[:200])
    victims[1].write_bytes(b"")
    convert(photos, tmp_path / "out", "--to", "wds")
    listed = (tmp_path / "out" / "bad_images.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["train/ant/im.0.jpg", "train/ant/im.1.jpg"]
    assert manifest_of(tmp_path / "out").splits["train"].images == 19
    for victim in sorted((photos / "train").rglob("*.jpg"))[2:4]:
        victim.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"4 images cannot be read so far, more than 10% of all 27; .*ant/im.0.jpg"):
        convert(photos, tmp_path / "again.partial-test", "--to", "wds")
    assert convert(photos, tmp_path / "allowed", "--to", "wds", "--max-bad", 0.3) == 0


def test_repaired_images_are_read_when_the_command_is_repeated(photos, tmp_path):
    whole = {path: path.read_bytes() for path in sorted((photos / "train").rglob("*.jpg"))[:4]}
    for path in whole:
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read"):
        convert(photos, tmp_path / "out", "--to", "wds", "--shard-size", 5)
    for path, content in whole.items():
        path.write_bytes(content)
    convert(photos, tmp_path / "out", "--to", "wds", "--shard-size", 5)
    assert (
        manifest_of(tmp_path / "out").splits["train"].images == 21
        and not (tmp_path / "out" / "bad_images.txt").exists()
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "x.beton"], "no such file or folder"),
        (["", "x.beton"], "SRC is empty"),
        (["{photos}", "{photos}/tars", "--to", "wds"], "lies inside"),
        (["{photos}", "x.beton"], "splits train, val.*--split"),
        (["{photos}", "x"], "--to"),
        (["{photos}", "x.npz", "--to", "beton"], "the extension says otherwise"),
        (["{photos}", "x", "--to", "npz"], "images of one size.*--to beton"),
        (["{photos}", "x", "--to", "wds", "--quality", "0"], "--quality 0.*1 to 100"),
        (["{photos}", "x", "--to", "wds", "--store", "raw"], "only a .beton"),
        (["{photos}", "{photos}", "--to", "wds"], "exists already"),
        (["{photos}", "x.beton", "--split", "test"], "--split test: .* has train, val"),
        (["{cut}", "x", "--to", "folder"], "cut short|cannot be read as a plain tar"),
        (["{text}", "x", "--to", "folder"], "not a .txt file"),
    ],
)
def test_wrong_input_is_one_sentence_and_leaves_nothing_behind(photos, tmp_path, monkeypatch, arguments, words):
    if "{cut}" in arguments:
        convert(photos, tmp_path / "tars", "--to", "wds")
        tar = tmp_path / "tars" / "train-000000.tar"
        os.truncate(tar, tar.stat().st_size // 2 + 100)
    (tmp_path / "a.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    places = {"photos": photos, "cut": tmp_path / "tars" / "train-000000.tar", "text": tmp_path / "a.txt"}
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(UserError, match=words) as error:
        main([argument.format(**places) for argument in arguments])
    assert "\n" not in str(error.value) and sorted(p.name for p in tmp_path.iterdir()) == before


def test_reading_back_notices_a_changed_byte(photos, tmp_path, monkeypatch):
    summary = run._summary

    def and_a_bad_disk(reader, rows, files):
        target = tmp_path / "x.beton.partial" / files[0]
        with open(target, "r+b") as file:
            file.seek(rows[3].place[1] + 100)
            byte = file.read(1)
            file.seek(rows[3].place[1] + 100)
            file.write(bytes([byte[0] ^ 1]))
        return summary(reader, rows, files)

    monkeypatch.setattr(run, "_summary", and_a_bad_disk)
    with pytest.raises(UserError, match=r"reading back failed, image 3 of train differs from .*im.3"):
        convert(photos, tmp_path / "x.beton", "--split", "train")
    assert not (tmp_path / "x.beton").exists()


def test_too_small_a_disk_is_said_before_anything_is_written(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "same_disk_free", lambda _: 10_000)
    with pytest.raises(UserError, match=r"needs about .* 10.0 kB are free"):
        convert(photos, tmp_path / "out", "--to", "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]


def test_a_disk_that_fills_up_on_the_way_is_said_and_the_rest_is_done_later(photos, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)], capture_output=True
        ).returncode
    ):
        pytest.skip("a small disk can be mounted by root only")
    try:
        monkeypatch.setattr(forecast, "same_disk_free", lambda _: 10**12)  # the forecast was wrong
        with pytest.raises(UserError, match=r"the disk is full.*goes on from the parts"):
            convert(photos, disk / "out", "--to", "wds", "--shard-size", 5, "--quality", 100)
        assert not (disk / "out").exists()
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        convert(photos, disk / "out", "--to", "wds", "--shard-size", 5, "--quality", 100)
        convert(photos, tmp_path / "whole", "--to", "wds", "--shard-size", 5, "--quality", 100)
        tars = sorted(p.name for p in (tmp_path / "whole").glob("*.tar"))
        assert filecmp.cmpfiles(disk / "out", tmp_path / "whole", tars, shallow=False)[0] == tars
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for i in range(300):
        file = folder / f"c{i % 3}" / f"{i:05d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(file)
    return folder


@pytest.mark.parametrize(
    ("how", "code", "to", "name", "produced"),
    [(signal.SIGKILL, -9, "beton", "x.beton", ""), (signal.SIGINT, 130, "wds", "x", "train-000004.tar")],
)
def test_a_stopped_conversion_keeps_its_parts_and_ends_as_if_never_stopped(
    many, tmp_path, how, code, to, name, produced
):
    flags = ["--to", to, "--shard-size", "20", "--workers", "1"]
    journal = tmp_path / f"{name}.partial" / OWN
    running = subprocess.Popen(
        [sys.executable, "-m", "tools.convert", str(many), str(tmp_path / name), *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 100
    while not (journal / "train-000002.json").exists() and time.monotonic() < until and running.poll() is None:
        time.sleep(0.002)
    running.send_signal(how)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == code, said
    assert not (tmp_path / name).exists() and (code != 130 or "goes on from there" in said)
    kept = {p.name: p.stat().st_mtime_ns for p in journal.glob("train-*.json")}
    assert 3 <= len(kept) < 15
    with pytest.raises(UserError, match="unfinished conversion that differs in its settings"):
        main([str(many), str(tmp_path / name), *flags, "--max-side", "20"])
    record, done_again = run.Journal.record, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            run.Journal,
            "record",
            lambda self, split, number, *rest: (done_again.append(number), record(self, split, number, *rest)),
        )
        assert main([str(many), str(tmp_path / name), *flags]) == 0
    assert done_again == list(range(len(kept), 15))
    assert main([str(many), str(tmp_path / f"whole-{name}"), *flags, "--verify", "none"]) == 0
    assert (tmp_path / name / produced).read_bytes() == (tmp_path / f"whole-{name}" / produced).read_bytes()


def test_a_strangers_folder_in_the_way_is_left_alone(photos, tmp_path):
    save(tmp_path / "out.partial" / "mine.jpg")
    with pytest.raises(UserError, match="is in the way"):
        convert(photos, tmp_path / "out", "--to", "wds")
    assert (tmp_path / "out.partial" / "mine.jpg").exists()


def test_two_conversions_into_one_place_do_not_meet(photos, tmp_path):
    data = open_dataset(str(photos))
    job = Job(str(photos), tmp_path / "out", "wds", Settings(), 10, 0, "full", 0.1, 1)
    journal = run.Journal(tmp_path / "out.partial", run.plan_of(job, data))
    with pytest.raises(UserError, match="another conversion is writing there"):
        convert(photos, tmp_path / "out", "--to", "wds", "--shard-size", 10)
    journal.close()


@needs_pyarrow
def test_foreign_parquet_with_text_labels_and_without_names(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    images = []
    for i in range(5):
        file = io.BytesIO()
        Image.new("RGB", (8 + i, 8), (i, 0, 0)).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    parquet.write_table(
        pa.table({"img": images, "label": ["b", "a", None, "b", "a"]}), folder / "train-00000-of-00001.parquet"
    )
    parquet.write_table(pa.table({"img": images[:2], "label": ["c", "a"]}), folder / "test-00000-of-00001.parquet")
    convert(tmp_path / "set", tmp_path / "out", "--to", "wds")
    data = open_dataset(str(tmp_path / "out"))
    assert list(data.splits) == ["train", "test"] and data.splits["train"].classes == ("a", "b", "c")
    assert data.splits["train"].labels.tolist() == [1, 0, -1, 1, 0] and data.splits["test"].labels.tolist() == [2, 0]
    with pytest.raises(UserError, match="1 of 5 images have no label"):
        convert(tmp_path / "set", tmp_path / "f", "--to", "folder")
