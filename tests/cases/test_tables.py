"""Tables of labels and images: CSV, parquet and Arrow by pyarrow, FFCV's and numpy's files; half labels
in all of them."""

import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade import train as training
from saccade.base.errors import UserError
from saccade.pipelines.data import open_data
from saccade.pipelines.sources import Account, ArraySource, Options
from saccade.pipelines.sources.holdout import hold_out, may_hold_out
from saccade.tools.convert import main as convert
from tests.present import present

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), seed % 256, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "p"
    for k, name in enumerate(["a.png", "b.png", "x/c.png", "x/d.png", "y/d.png", "e f.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(k))
    return folder


def labels_of(source) -> dict[str, str | None]:
    names = [None if k < 0 else source.classes[k] for k in source.labels]
    return {source.key_of(i): name for i, name in enumerate(names)}


ALL = {"a.png": "cat", "b.png": "dog", "x/c.png": "cat", "x/d.png": None, "y/d.png": None, "e f.png": "dog"}


@pytest.mark.parametrize(
    "table",
    [
        "file,label\na.png,cat\nb.png,dog\nx/c.png,cat\ne f.png,dog\n",
        "file,label\n./a.png,cat\n./b.png,dog\n./x/c.png,cat\ne f.png,dog\n",
        "file,label\n{folder}/a.png,cat\n{folder}/b.png,dog\n{folder}/x/c.png,cat\n{folder}/e f.png,dog\n",
        "file,label\na.png,cat\nb.png,dog\nx\\c.png,cat\ne f.png,dog\n",
        "file;label\na.png;cat\nb.png;dog\nx/c.png;cat\ne f.png;dog\n",
        "id\tspecies\tlabel\na\tq\tcat\nb\tq\tdog\nc\tq\tcat\ne f\tq\tdog\n",
        "file,label\na.png,cat\nb.png,dog\nx/c.png,cat\nx/d.png,\ny/d.png,  \ne f.png,dog\n",
        "\ufefffile,label\r\na.png,cat\r\nb.png,dog\r\nc.png,cat\r\n\r\ne f.png,dog\r\n",
        'file,label\n"a.png","cat"\nb.png,dog\nc.png,cat\n"e f.png",dog\na.png,cat\n',
        "p/a.png,cat\np/b.png,dog\np/x/c.png,cat\np/e f.png,dog\n",
    ],
)
def test_labels_as_people_write_them(photos, tmp_path, table):
    (tmp_path / "l.csv").write_text(table.format(folder=photos), encoding="utf-8", newline="")
    source, _ = open_data(str(photos), options=Options(labels=str(tmp_path / "l.csv")))
    assert labels_of(source) == ALL and source.classes == ("cat", "dog")
    assert any("2 of 6 images have no label" in line for line in source.account.warnings())
    assert "4 of 6 labelled" in source.describe() and len(source.labelled()) == 4


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("file,label\na.png,cat\na.png,dog\n", "data row 2 gives a.png the label 'dog', an earlier one 'cat'"),
        ("file,label\na.png,cat\na,dog\n", "one image with two labels"),
        ("file,label\nd.png,cat\n", "d.png could be 2 images, x/d.png or y/d.png"),
        ("file,label\nq.png,cat\n", "not one of its 1 rows names an image"),
        ("file,label\na.png,\n", "not one of its 1 rows names an image .* with a label"),
    ],
)
def test_labels_that_could_mean_two_things_are_refused(photos, tmp_path, table, words):
    (tmp_path / "l.csv").write_text(table)
    with pytest.raises(UserError, match=words):
        open_data(str(photos), options=Options(labels=str(tmp_path / "l.csv")))


def test_a_csv_is_a_list_of_images_as_pyarrow_reads_it(photos):
    from pyarrow import csv

    (photos / "list.csv").write_text("path,label\na.png,2\nx/c.png,0\nnowhere.png,1\nb.png,\n")
    rows = csv.read_csv(photos / "list.csv").to_pylist()
    here = [row for row in rows if (photos / row["path"]).is_file()]
    source, _ = open_data(str(photos / "list.csv"))
    assert [source.key_of(i) for i in range(len(source))] == [row["path"] for row in here]
    found = [int(source.classes[k]) if k >= 0 else None for k in source.labels]
    assert found == [row["label"] for row in here] == [2, 0, None]
    assert source.account.left_out["rows without a file"].count == 1 and source.account.seen == len(rows)


CELLS = st.sampled_from(["cat", "dog", "", "3", "-1", "ü", "a,b", 'q"q'])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["a.png", "b.png", "x/c.png", "no.png"]), CELLS), min_size=1, max_size=5))
def test_any_table_gives_what_csv_says_or_one_sentence(photos, tmp_path, rows):
    import csv

    with open(tmp_path / "h.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "label"), *rows])
    try:
        source, _ = open_data(str(photos), options=Options(labels=str(tmp_path / "h.csv")))
    except UserError:
        return
    assert source.account.seen == 6 + len(rows)  # images, rows
    want = {name: None if label in ("", "-1") else label for name, label in rows if name != "no.png"}
    assert {k: v for k, v in labels_of(source).items() if v is not None} == {
        k: v for k, v in want.items() if v is not None
    }


# --- parquet --------------------------------------------------------------------------------------------------------


def table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path, row_group_size=5)
    return path


IMAGES = [{"bytes": png(k), "path": f"{k}.png"} for k in range(12)]


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([None if k % 4 == 0 else k % 3 for k in range(12)], pa.int64()),
        pa.array([-1 if k % 4 == 0 else k % 3 for k in range(12)], pa.int8()),
        pa.array([None if k % 4 == 0 else float(k % 3) for k in range(12)]),
        pa.array([None if k % 4 == 0 else str(k % 3) for k in range(12)]),
        pa.array(["" if k % 4 == 0 else str(k % 3) for k in range(12)]).dictionary_encode(),
    ],
    ids=["null", "minus one", "float", "text", "dictionary"],
)
def test_parquet_with_half_its_labels(tmp_path, labels):
    source, _ = open_data(str(table(tmp_path / "x.parquet", image=IMAGES, label=labels)))
    assert source.labels.tolist() == [-1 if k % 4 == 0 else k % 3 for k in range(12)]
    assert [source.encoded(i) for i in range(12)] == [row["bytes"] for row in IMAGES]


@pytest.mark.parametrize("to", ["x.beton", "x.npz", "wds", "parquet"])
def test_half_labels_survive_every_format(tmp_path, to):
    labels = [None if k % 4 == 0 else k % 3 for k in range(12)]
    src = table(tmp_path / "x.parquet", image=IMAGES, label=pa.array(labels, pa.int64()))
    flags = [] if "." in to else ["--to", to]
    assert convert([str(src), str(tmp_path / to), *flags, "--shuffle", "-1"]) == 0
    source, _ = open_data(str(tmp_path / to))
    assert source.labels.tolist() == [-1 if label is None else label for label in labels]
    assert [int(source.read(i)[0, 0, 0]) for i in range(12)] == list(range(12))


@pytest.mark.parametrize("order", [("mask", "pixels"), ("pixels", "mask")])
def test_two_columns_of_bytes_are_refused_and_settled(tmp_path, order):
    columns = {name: [png(k + (100 if name == "mask" else 0)) for k in range(12)] for name in order}
    path = table(tmp_path / "x.parquet", **columns)
    with pytest.raises(UserError, match=f"{order[0]} and {order[1]}.*--image-key"):
        open_data(str(path))
    source, _ = open_data(str(path), options=Options(image_key="pixels"))
    assert source.encoded(7) == png(7)


@pytest.mark.parametrize("labels", [[[k % 3, 1] for k in range(12)], [{"a": 1}] * 12, [0.5] * 12])
def test_labels_that_are_no_class_are_refused(tmp_path, labels):
    path = table(tmp_path / "x.parquet", image=IMAGES, label=labels)
    with pytest.raises(UserError, match="label"):
        open_data(str(path))
    assert open_data(str(path), options=Options(labels="none"))[0].labels is None


def test_two_configurations_in_one_folder_are_not_every_image_twice(tmp_path):
    for name in ("full", "small"):
        table(tmp_path / "set" / name / "train-00000-of-00001.parquet", image=IMAGES)
    with pytest.raises(UserError, match=r"2 folders \(full, small\)"):
        open_data(str(tmp_path / "set"))
    assert len(open_data(str(tmp_path / "set" / "full"))[0]) == 12


def test_images_by_path_and_a_folder_that_save_to_disk_wrote(tmp_path):
    for k in range(12):
        (tmp_path / f"{k}.png").write_bytes(png(k))
    by_path = [{"bytes": None, "path": f"{k}.png"} for k in range(12)]
    source, _ = open_data(str(table(tmp_path / "x.parquet", image=by_path, label=list(range(12)))))
    assert source.encoded(5) == png(5)
    for split in ("train", "test"):
        (tmp_path / "saved" / split).mkdir(parents=True)
        data = pa.table({"image": IMAGES, "label": [k % 3 for k in range(12)]})
        with pa.ipc.new_stream(tmp_path / "saved" / split / "data-00000-of-00001.arrow", data.schema) as out:
            out.write_table(data)
        (tmp_path / "saved" / split / "state.json").write_text(json.dumps({}))
    train, val = open_data(str(tmp_path / "saved"))
    assert train.encoded(3) == png(3) and len(present(val)) == 12 and val.labels.tolist() == [0, 1, 2] * 4


# --- arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (lambda f: np.save(f, np.zeros((4, 8, 8, 3), np.uint8)), "single array"),
        (lambda f: np.savez(f, images=np.zeros((4, 8, 8, 3), np.uint8), classes=np.array([{}])), "its array `classes`"),
        (lambda f: np.savez(f, images=np.zeros((4, 8, 8, 5), np.uint8)), r"\(4, 8, 8, 5\)"),
        (
            lambda f: np.savez(f, images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.array([0, 1, -7, 2])),
            "smallest label",
        ),
    ],
)
def test_npz_that_are_none_are_refused_in_words(tmp_path, save, words):
    with open(tmp_path / "x.npz", "wb") as file:
        save(file)
    with pytest.raises(UserError, match=words):
        open_data(str(tmp_path / "x.npz"))


def test_an_npz_that_announces_more_than_the_memory_is_refused_unread(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, archive.open("images.npy", "w") as member:
        head = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 224, 224, 3)}
        np.lib.format.write_array_header_1_0(member, head)
    with pytest.raises(UserError, match=r"more than the .* GiB of memory"):
        open_data(str(tmp_path / "x.npz"))


def test_a_hold_out_takes_the_same_share_of_each_class_every_time():
    labels = np.array([0] * 20 + [1] * 10 + [2] + [-1] * 9)
    source = ArraySource("x", np.zeros((40, 4, 4, 3), np.uint8), labels)
    (train, test, _), (_, again, _) = hold_out(source), hold_out(source)
    assert np.bincount(present(test.labels)).tolist() == [4, 2]
    assert np.bincount(present(train.labels)).tolist() == [16, 8, 1]
    rows = [set(part.index.columns["row"].tolist()) for part in (train, test)]
    assert not rows[0] & rows[1] and rows[1] == set(again.index.columns["row"].tolist())


def test_few_labels_are_tested_leave_one_out_and_more_are_held_out():
    few = ArraySource("few", np.zeros((40, 4, 4, 3), np.uint8), np.arange(40) % 4 - 1)
    train, test, told = hold_out(few, alone=True)
    assert train is test and len(test) == 30 and "leave one out" in told
    with pytest.raises(UserError, match="neither labels nor a validation split"):
        hold_out(ArraySource("none", np.zeros((4, 4, 4, 3), np.uint8)))


@pytest.mark.parametrize(
    ("field", "taken"),
    [("label", True), ("target", True), ("y", True), ("index", False), ("id", False), ("age", False)],
)
def test_a_whole_number_of_a_beton_is_a_label_where_it_is_called_one(tmp_path, monkeypatch, field, taken):
    from saccade.pipelines.sources.beton import IMAGE_FIELD, INT_FIELD
    from saccade.tools.conversion.write_packed import BetonWriter

    monkeypatch.setattr(BetonWriter, "_FIELDS", (("image", IMAGE_FIELD), (field, INT_FIELD)))
    images = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([0, -1, 1, 2]))
    assert convert([str(tmp_path / "x.npz"), str(tmp_path / "x.beton"), "--verify", "none"]) == 0
    source, _ = open_data(str(tmp_path / "x.beton"))
    if taken:
        assert source.labels.tolist() == [0, -1, 1, 2]
    else:
        assert source.labels is None and f"--label-key {field}" in source.account.warnings()[0]
        settled, _ = open_data(str(tmp_path / "x.beton"), options=Options(label_key=field))
        assert settled.labels.tolist() == [0, -1, 1, 2]


@pytest.mark.parametrize("executor", ["resident", "reference", "dali", "threads"])
def test_what_converts_also_trains(tmp_path, executor):
    from saccade.pipelines.build import build_pipeline, dali_installed
    from saccade.pipelines.order import Order
    from saccade.pipelines.views import View, Views

    if executor == "dali" and not dali_installed():
        pytest.skip("DALI is not installed")
    path = table(tmp_path / "x.parquet", image=IMAGES, label=[k % 3 for k in range(12)])
    source, _ = open_data(str(path))
    with build_pipeline(source, Views((View("a", 8),)), Order(12, 4), executor, workers=1) as pipeline:
        seen = {
            int(i): (int(n), view)
            for b in pipeline
            for i, n, view in zip(b.index, present(b.label), b.views["a"], strict=True)
        }
    assert sorted(seen) == list(range(12)) and all(label == i % 3 for i, (label, _) in seen.items())
    order = sorted(range(12), key=lambda i: float(seen[i][1].mean()))
    assert order == list(range(12))  # image k is grey of value k


@pytest.mark.parametrize(
    ("labels", "may"),
    [([0, 1] * 10, True), ([0] * 20, False), ([0, 1] * 9, False), ([-1] * 20, False), ([0, 1] * 10 + [-1] * 9, True)],
)
def test_a_run_holds_out_only_where_that_says_something(labels, may):
    source = ArraySource("x", np.zeros((len(labels), 4, 4, 3), np.uint8), np.array(labels))
    assert may_hold_out(source) == may


def test_a_run_without_a_split_measures_on_the_labelled_images_says_and_records_it(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 99, (24, 16, 16, 3), np.uint8)
    flags = f"--data {tmp_path / 'x.npz'} --backbone test_resnet --image-size 32 --batch-size 8 --steps 1"
    np.savez(tmp_path / "x.npz", images=pixels, labels=np.arange(24) % 2)
    assert training.main([*flags.split(), "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    assert "24): each image is tested against all others" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "leave one out" in summary["knn_test"] and 0 <= summary["knn_top1"] <= 100


def test_the_account_is_the_whole_of_what_lies_there(tmp_path, photos):
    """Folders beside splits, members, columns, fields and arrays that are not read."""
    for name in ("train/cat/a.png", "val/cat/b.png", "figures/c.png", "figures/d.txt", "README.md"):
        (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / name).write_bytes(png(1))
    source, _ = open_data(str(tmp_path / "s"))
    assert source.account.seen == 1 + 3 and "1 images in folders beside the splits" in source.account.line()
    (photos / "l.csv").write_text("file,label,who,when\na.png,1,x,y\na.png,1,x,y\nb.png,2,x,y\n")
    source, _ = open_data(str(photos / "l.csv"))
    assert source.account.seen == 3 + 2 and source.account.left_out["columns that are not read"].count == 2
    table = pa.table({"image": [png(1), png(2)], "label": [0, 1], "caption": ["a", "b"]})
    (tmp_path / "q").mkdir()
    parquet.write_table(table, tmp_path / "q" / "train.parquet")
    (tmp_path / "q" / "dataset_info.json").write_text("{}")
    source, _ = open_data(str(tmp_path / "q"))
    assert source.account.seen == 2 + 1 + 1 and not source.account.warnings()
    np.savez(tmp_path / "q" / "more.npz", images=np.zeros((2, 4, 4, 3), np.uint8))
    source, _ = open_data(str(tmp_path / "q"))
    assert any(".npz files beside the .parquet files" in line for line in source.account.warnings())


def test_an_account_that_does_not_add_up_is_an_error():
    account = Account(seen=5, taken=3)
    account.leave("odd", "x")
    with pytest.raises(RuntimeError, match="5 files, members and rows were seen, but 4"):
        account.check("x")
    account.leave("even", "y")
    account.check("x")
