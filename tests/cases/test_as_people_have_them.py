"""Further inputs of every kind, as people have them: what they mean is found out, or said in one sentence."""

import io
import os
import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image

from saccade.base.errors import UserError
from saccade.pipelines.data import open_data
from saccade.pipelines.sources import BadImage, Options
from saccade.pipelines.sources.decode import ValueRange
from tests.present import present

RNG = np.random.default_rng(0)


def png(seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), seed % 256, np.uint8)).save(file, "PNG")
    return file.getvalue()


def put(root, *names: str) -> None:
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(k))


def tree(root, *classes: str, count: int = 3) -> None:
    put(root, *(f"{name}/{k}.png" for name in classes for k in range(count)))


def said(source) -> str:
    return " ".join([*source.account.warnings(), source.describe()])


def counts(source) -> dict:
    """label -> images, by the classes' names where there are some."""
    if source.labels is None:
        return {None: len(source)}
    names = [None if k < 0 else source.classes[k] if source.classes else int(k) for k in source.labels.tolist()]
    return {name: names.count(name) for name in sorted(set(names), key=str)}


# --- trees ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "validate"),
        ("train_set", "test_set"),
        ("train2017", "val2017"),
        ("Training", "Testing"),
        ("a-train", "a-test"),
    ],
)
def test_folders_named_like_splits_are_splits(tmp_path, train, val):
    tree(tmp_path / train, "cat", "dog", count=5)
    tree(tmp_path / val, "cat", "dog")
    source, held = open_data(str(tmp_path))
    assert counts(source) == {"cat": 5, "dog": 5} and counts(present(held)) == {"cat": 3, "dog": 3}
    exact = train in ("train", "Training")
    assert exact or "--labels folders takes them for classes" in said(source)
    if not exact:
        asked, _ = open_data(str(tmp_path), options=Options(labels="folders"))
        assert counts(asked) == {train: 10, val: 6}


def test_classes_that_begin_alike_stay_classes(tmp_path):
    tree(tmp_path, "train_steam", "train_diesel", "bus")
    assert set(counts(open_data(str(tmp_path))[0])) == {"bus", "train_diesel", "train_steam"}


def test_splits_below_classes_are_said(tmp_path):
    tree(tmp_path, "cat/train", "cat/val", "dog/train", "dog/val")
    source, held = open_data(str(tmp_path))
    assert held is None and counts(source) == {"cat": 6, "dog": 6} and "let SPLIT/CLASS lie there" in said(source)


def test_an_empty_split_and_an_empty_class_are_said(tmp_path):
    tree(tmp_path / "train", "cat", "dog")
    (tmp_path / "train" / "eel").mkdir()
    (tmp_path / "val" / "cat").mkdir(parents=True)
    source, held = open_data(str(tmp_path))
    assert held is None and "val in" in said(source) and "holds no images" in said(source)
    assert "1 empty folders, such as eel/" in said(source)


def test_odd_names_are_classes(tmp_path):
    names = ("a, b", "\U0001f600", "tab\tname", "new\nline", os.fsdecode(b"cl\xe9"))
    tree(tmp_path, *names)
    source, _ = open_data(str(tmp_path))
    assert counts(source) == dict.fromkeys(names, 3) and "\n" not in source.name_of(0).replace("new\nline", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "markup"),
        (b"", "an empty file"),
        (png()[:40], "OSError|SyntaxError|Unidentified"),
    ],
)
def test_what_is_no_image_says_what_it_is(tmp_path, content, words):
    put(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "c.jpg").write_bytes(content)
    source, _ = open_data(str(tmp_path))
    with pytest.raises(BadImage, match=words):
        source.read(2)


@pytest.mark.parametrize("name", ["p.zip", "p.tar.gz", "p.tgz", "p.npy"])
def test_what_has_to_be_unpacked_is_told_so(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(UserError, match=r"unpack it|np.savez"):
        open_data(str(tmp_path / name))
    if not name.endswith(".npy"):
        with pytest.raises(UserError, match=r"archives.*unpack them"):
            open_data(str(tmp_path))


# --- labels ---------------------------------------------------------------------------------------------------------


def rows(line, head="file,label\n", end="\n") -> str:
    return head + end.join(line(k) for k in range(12))


def kind(k: int) -> str:
    return "cat" if k % 2 else "dog"


HALF = {"cat": 6, "dog": 6}


@pytest.mark.parametrize(
    ("table", "want", "told"),
    [
        (rows(lambda k: f"{k}.png,{k % 2}.0").encode(), {"0": 6, "1": 6}, ""),
        (rows(lambda k: f"{k}.png,{'' if k % 4 else '1.0'}").encode(), {"1": 3, None: 9}, "9 of 12"),
        (rows(lambda k: f"{k}.png,{k}.5").encode(), {f"{k}.5": 1 for k in range(12)}, "fractions too, such as 0.5"),
        (rows(lambda k: f"{k}.png,{('01', '1', '1.0', '1e0')[k % 4]}").encode(), {"1": 12}, ""),
        (rows(lambda k: f"{k}.png,{('NA', 'None', 'null', 'cat')[k % 4]}").encode(), {"cat": 3, None: 9}, "9 of 12"),
        (rows(lambda k: f"{k}.png,none").encode(), {"none": 12}, ""),
        (
            rows(lambda k: f"{k}.png,{kind(k)},{'train' if k else 'test'}", "file,label,split\n").encode(),
            HALF,
            "column split is not read, and the rows of all splits are taken",
        ),
        (rows(lambda k: f"{k}.png,{kind(k)},{k}", "file,label,label\n").encode(), HALF, "the first of that name"),
        (
            rows(lambda k: f"{k}.png,{'NaN' if k % 4 == 0 else kind(k)}").encode(),
            {"cat": 6, "dog": 3, None: 3},
            "3 of 12",
        ),
        (rows(lambda k: f"C:\\old\\p\\{k}.png,{kind(k)}", end="\r\n").encode(), HALF, "by the end of their path"),
        (rows(lambda k: f"/elsewhere/p/{k}.png,{kind(k)}").encode(), HALF, "by the end of their path"),
        (rows(lambda k: f"{k}.PNG,{kind(k)}").encode(), HALF, "in other letters"),
        (rows(lambda k: f"{k}.png,{kind(k)}").encode("utf-16"), HALF, ""),
        (rows(lambda k: f"{k}.png,{kind(k)}").replace("dog", "caf\xe9").encode("latin-1"), None, "no UTF-8"),
        (rows(lambda k: f'{k}.png,"{kind(k)}\u2028{kind(k)}"').encode(), {"cat\u2028cat": 6, "dog\u2028dog": 6}, ""),
        (rows(lambda k: f'"{k}.png","two\nlines{k % 2}"').encode(), {"two\nlines0": 6, "two\nlines1": 6}, ""),
        (rows(lambda k: f"{k}.png {kind(k)}", "").encode(), HALF, ""),
        (rows(lambda k: f"{k}.png,{kind(k)}", "# made by x\nfile,label\n").encode(), HALF, ""),
        (rows(lambda k: f"{k}.png,{kind(k)}", end="\r").encode(), HALF, ""),
        (rows(lambda k: f"{kind(k)},{k}.png,{k}", "label,file,class\n").encode(), HALF, "--label-key class takes that"),
        (rows(lambda k: f"{k}.png,{k if k % 2 else 'dog'}").encode(), None, "others names, such as dog"),
        (rows(lambda k: f"{k}.png,{kind(k)}").encode() + b"\n0.png,dog\n", HALF, ""),
    ],
)
def test_tables_as_spreadsheets_and_programs_write_them(tmp_path, table, want, told):
    put(tmp_path / "p", *(f"{k}.png" for k in range(12)))
    (tmp_path / "l.csv").write_bytes(table)
    source, _ = open_data(str(tmp_path / "p"), options=Options(labels=str(tmp_path / "l.csv")))
    assert want is None or counts(source) == want
    assert told in said(source) if told else not source.account.guesses


def test_a_moved_path_that_could_be_two_images_is_not_guessed(tmp_path):
    put(tmp_path / "p", "a/1.png", "b/1.png", "c.png")
    (tmp_path / "l.csv").write_text("file,label\n/old/p/a/1.png,cat\n/old/p/c.png,dog\n/old/q/2.png,eel\n")
    source, _ = open_data(str(tmp_path / "p"), options=Options(labels=str(tmp_path / "l.csv")))
    found = {source.key_of(i): source.label_of(i) for i in range(3)}
    assert found == {"a/1.png": 0, "b/1.png": -1, "c.png": 1} and "2.png" in said(source)


def shard(folder, name: str, members) -> None:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w") as tar:
        for member, content in members:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def samples(label, ending: str = "cls", pre: str = ""):
    for k in range(6):
        yield f"{pre}{k}.png", png(k)
        yield f"{pre}{k}.{ending}", label(k).encode()


@pytest.mark.parametrize(
    ("members", "want", "told"),
    [
        (samples(lambda k: f"{k % 2}.0\n"), {0: 3, 1: 3}, ""),
        (samples(lambda k: f" {k % 2} \r\n", pre="./"), {0: 3, 1: 3}, ""),
        (samples(lambda k: "-1" if k < 3 else kind(k)), {"cat": 2, "dog": 1, None: 3}, "3 of 6 labelled"),
        (samples(lambda k: str(k) if k < 3 else kind(k)), None, "all are names"),
        (samples(kind, "txt"), {None: 6}, "--label-key txt takes them"),
        (((f"nan/{k}.png", png(k)) for k in range(6)), {"nan": 6}, ""),
    ],
)
def test_labels_of_shards_as_programs_write_them(tmp_path, members, want, told):
    shard(tmp_path / "s", "train-0.tar", members)
    source, _ = open_data(str(tmp_path / "s"))
    assert want is None or counts(source) == want
    assert told in said(source)


def test_numbered_labels_beside_named_ones_are_said(tmp_path):
    tree(tmp_path / "p", "cat", "dog")
    shard(tmp_path / "s", "val-0.tar", samples(lambda k: str(k % 2)))
    _, held = open_data(str(tmp_path / "p"), str(tmp_path / "s"))
    assert "taken for places in the classes" in said(present(held))
    shard(tmp_path / "t", "val-0.tar", samples(lambda k: str(k)))
    with pytest.raises(UserError, match="largest label is 5, but it names only 2"):
        open_data(str(tmp_path / "p"), str(tmp_path / "t"))


# --- arrays and tables ----------------------------------------------------------------------------------------------

X, Y = RNG.integers(0, 256, (12, 6, 8, 3), np.uint8), np.arange(12) % 3
THIRDS = {0: 4, 1: 4, 2: 4}


@pytest.mark.parametrize(
    ("arrays", "want", "told"),
    [
        ({"data": X, "labels": Y}, THIRDS, ""),
        ({"arr_0": X, "arr_1": Y}, THIRDS, ""),
        ({"X": X, "y": Y}, THIRDS, ""),
        ({"images": X, "labels": Y[:, None]}, THIRDS, ""),
        ({"images": X, "labels": np.where(Y, Y, np.nan)}, {1: 4, 2: 4, None: 4}, "8 of 12"),
        ({"images": X, "labels": np.eye(3)[Y]}, THIRDS, "its place is taken for the class"),
        ({"images": X, "labels": Y > 0}, {0: 4, 1: 8}, ""),
        ({"images": X, "labels": np.array(["a", "b", ""])[Y]}, {"a": 4, "b": 4, None: 4}, "8 of 12"),
        ({"images": X, "labels": np.array([b"a", b"b", b"c"])[Y]}, {"a": 4, "b": 4, "c": 4}, ""),
        ({"images": X, "labels": Y, "classes": np.array([b"k", b"l", b"m"])}, {"k": 4, "l": 4, "m": 4}, ""),
        ({"x_train": X, "labels": Y}, THIRDS, ""),
    ],
)
def test_arrays_under_the_names_people_use(tmp_path, arrays, want, told):
    np.savez(tmp_path / "x.npz", **arrays)
    source, held = open_data(str(tmp_path / "x.npz"))
    assert counts(source) == want and held is None and (present(source.array()) == X).all()
    assert told in said(source)


@pytest.mark.parametrize("names", ["x_{}", "{}_images", "{}_x", "images_{}"])
def test_one_npz_with_its_splits(tmp_path, names):
    label = names.replace("x", "y") if "x" in names else names.replace("images", "labels")
    arrays = {names.format("train"): X, label.format("train"): Y[:, None]}
    arrays |= {names.format("test"): X[:4], label.format("test"): Y[:4]}
    np.savez(tmp_path / "x.npz", **arrays)
    source, held = open_data(str(tmp_path / "x.npz"))
    assert counts(source) == THIRDS and (present(present(held).array()) == X[:4]).all()
    assert present(present(held).labels).tolist() == Y[:4].tolist() and not source.account.left_out


def test_numbers_that_no_class_has_are_one_sentence(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": [png()] * 2, "label": pa.array([0, 2**63 + 1], pa.uint64())})
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="larger numbers than any class has"):
        open_data(str(tmp_path / "x.parquet"))
    table = pa.table({"image": [png()] * 2, "label": [0, 1], "coarse_label": [3, 4]})
    parquet.write_table(table, tmp_path / "y.parquet")
    assert "--label-key coarse_label takes that one" in said(open_data(str(tmp_path / "y.parquet"))[0])


# --- flags and files that change nothing, or the wrong thing --------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(image_key="depth.png"), "--image-key depth.png: .* no part has a name"),
        (Options(label_key="species"), "--label-key species: .* or give a CSV with --labels"),
        (Options(labels="nowhere.csv"), "--labels nowhere.csv: no such file"),
    ],
)
def test_an_option_without_a_use_is_refused(tmp_path, options, words):
    tree(tmp_path, "cat", "dog")
    with pytest.raises(UserError, match=words):
        open_data(str(tmp_path), options=options)


def test_more_options_without_a_use_are_refused_or_said(tmp_path):
    np.savez(tmp_path / "x.npz", images=X, labels=Y)
    with pytest.raises(UserError, match=r"--labels folders: .* lie in no folders"):
        open_data(str(tmp_path / "x.npz"), options=Options(labels="folders"))
    tree(tmp_path / "p", "cat", "dog")
    source, _ = open_data(str(tmp_path / "p"), options=Options(value_range=ValueRange(0, 4095)))
    assert "--value-range 0,4095 changes nothing" in said(source)


def test_a_shard_given_twice_is_refused(tmp_path):
    shard(tmp_path / "s", "a.tar", samples(kind))
    with pytest.raises(UserError, match="1 of its files twice"):
        open_data(f"{tmp_path}/s/a.tar::{tmp_path}/s/a.tar")


def test_training_images_to_test_on_are_said(tmp_path):
    tree(tmp_path / "p", "cat", "dog")
    tree(tmp_path / "q", "cat", "dog", count=2)
    assert "each is its own neighbour" in said(open_data(str(tmp_path / "p"), str(tmp_path / "p"))[0])
    assert "neighbour" not in said(open_data(str(tmp_path / "p"), str(tmp_path / "q"))[0])


def test_sparse_members_are_left_out(tmp_path):
    with open(tmp_path / "1.png", "wb") as file:
        file.write(png())
        file.truncate(1 << 20)
    put(tmp_path, "0.png")
    done = subprocess.run(["tar", "--sparse", "-cf", "a.tar", "0.png", "1.png"], cwd=tmp_path, check=False)
    with tarfile.open(tmp_path / "a.tar") as tar:
        if done.returncode or not tar.getmember("1.png").issparse():
            pytest.skip("this tar makes no sparse members here")
    source, _ = open_data(str(tmp_path / "a.tar"))
    assert len(source) == 1 and "1 sparse files in the tar" in said(source) and source.read(0).shape == (6, 8, 3)
