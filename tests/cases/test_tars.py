"""Odd tars: which member is the picture, keys that collide, half labels; the samples are those of webdataset's own
reader."""

import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade.base.errors import UserError
from saccade.pipelines.data import open_data
from saccade.pipelines.sources import Options
from saccade.pipelines.sources.shards import ShardSource

webdataset = pytest.importorskip("webdataset")


@pytest.fixture(autouse=True)
def no_kept_index(tmp_path, monkeypatch):
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))


def jpg(seed: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), seed % 256, np.uint8)).save(file, kind)
    return file.getvalue()


def tar(path, members, tail=()) -> str:
    with tarfile.open(path, "w") as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
        for info in tail:
            out.addfile(info)
    return str(path)


def samples(path) -> list[dict]:
    return list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))


def images(source) -> list[bytes]:
    return [source.encoded(i) for i in range(len(source))]


def pairs(keys, *endings) -> list[tuple[str, bytes]]:
    return [(f"{k}.{e}", jpg(n) if e.endswith("jpg") else b"%d" % (n % 3)) for n, k in enumerate(keys) for e in endings]


ODD = {
    "label first": pairs(range(4), "cls", "jpg"),
    "concatenated": pairs(range(3), "jpg", "cls") * 2,
    "upper case": [(name.upper(), data) for name, data in pairs("abc", "jpg", "cls")],
    "folders": pairs(["x/0", "x/1", "y/0"], "jpg", "cls"),
    "same key in two folders": pairs(["x/0", "y/0", "x/0"], "jpg", "cls"),
    "dotted ending": [(f"{k}.rgb.jpg", jpg(k)) for k in range(3)],
    "dot in a folder": pairs(["v1.2/0", "v1.2/1"], "jpg", "cls"),
    "no label": pairs(range(3), "jpg"),
    "half labelled": pairs(range(2), "jpg", "cls") + pairs(["8", "9"], "jpg"),
    "json label": [
        x for k in range(3) for x in ((f"{k}.jpg", jpg(k)), (f"{k}.json", json.dumps({"label": k}).encode()))
    ],
    "captions": [x for k in range(3) for x in ((f"{k}.jpg", jpg(k)), (f"{k}.txt", b"a cat"))],
    "metadata": [("__meta__", b"x"), *pairs(range(2), "jpg", "cls")],
    "hidden member": [(".DS_Store", b"x"), *pairs(range(2), "jpg", "cls")],
    "without an ending": [("README", b"x"), *pairs(range(2), "jpg", "cls")],
    "dot and slash": [("./" + name, data) for name, data in pairs(range(3), "jpg", "cls")],
    "blank in a name": pairs(["a b", "c d"], "jpg", "cls"),
    "long names": pairs(["k" * 150 + str(n) for n in range(2)], "jpg", "cls"),
    "not ascii": pairs(["ü", "ñandú"], "jpg", "cls"),
    "newline in a name": pairs(["a\nb", "c"], "jpg", "cls"),
    "split sample": [("0.jpg", jpg(0)), ("1.jpg", jpg(1)), ("0.cls", b"1")],
}


@pytest.mark.parametrize("name", ODD)
def test_samples_are_those_of_webdataset(tmp_path, name):
    want = samples(tar(tmp_path / "x.tar", ODD[name]))
    source = ShardSource([tmp_path / "x.tar"])
    pictured = [s for s in want if any(k.endswith("jpg") for k in s)]
    assert images(source) == [next(v for k, v in s.items() if k.endswith("jpg")) for s in pictured]
    if any("cls" in s for s in pictured):
        assert source.labels.tolist() == [int(s.get("cls", b"-1")) for s in pictured]
    assert source.account.seen == len(ODD[name])


MEMBER = st.tuples(st.sampled_from("ab"), st.sampled_from(["jpg", "cls", "txt", "json", "JPG"]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(MEMBER, min_size=1, max_size=9))
def test_any_order_of_members_groups_as_webdataset_groups_it(tmp_path, members):
    (tmp_path / "h.tar.index").unlink(missing_ok=True)
    content = [(f"{k}.{e}", jpg(n) if e.lower() == "jpg" else b"%d" % n) for n, (k, e) in enumerate(members)]
    tar(tmp_path / "h.tar", content)
    try:
        want = [s["jpg"] for s in samples(tmp_path / "h.tar") if "jpg" in s]
    except ValueError:  # webdataset stops at a key that has an ending twice: the account must still be whole
        want = None
    try:
        source = ShardSource([tmp_path / "h.tar"])
    except UserError:
        assert not want and not any(e.lower() == "jpg" for _, e in members)
        return
    assert source.account.seen == len(content)
    assert images(source) == want if want is not None else len(source) == sum(e.lower() == "jpg" for _, e in members)


@pytest.mark.parametrize("other", ["depth.png", "mask.png", "seg.webp", "thumb.jpg"])
def test_the_plain_ending_is_the_picture(tmp_path, other):
    members = [x for k in range(4) for x in ((f"{k}.{other}", jpg(9, "PNG")), (f"{k}.cls", b"1"), (f"{k}.jpg", jpg(k)))]
    source, _ = open_data(tar(tmp_path / "x.tar", sorted(members)))
    assert images(source) == [jpg(k) for k in range(4)]
    assert any(f"--image-key {other}" in line for line in source.account.warnings())
    assert len(open_data(str(tmp_path / "x.tar"), options=Options(image_key=other))[0]) == 4


@pytest.mark.parametrize("two", [("jpg", "png"), ("left.jpg", "right.jpg"), ("depth.png", "normal.png")])
def test_two_that_could_be_meant_are_refused(tmp_path, two):
    path = tar(tmp_path / "x.tar", [(f"{k}.{e}", jpg(k)) for k in range(3) for e in two])
    with pytest.raises(UserError, match=f"{two[0]}, {two[1]}.*--image-key"):
        open_data(path)
    assert len(open_data(path, options=Options(image_key=two[1]))[0]) == 3


def test_dates_with_dots_are_not_one_sample(tmp_path):
    path = tar(tmp_path / "x.tar", [(f"IMG_2020.01.{k:02}.jpg", jpg(k)) for k in range(24)])
    with pytest.raises(UserError, match=r"holds 24 images.*--image-key each"):
        open_data(path)
    assert images(open_data(path, options=Options(image_key="each"))[0]) == [jpg(k) for k in range(24)]


@pytest.mark.parametrize("ending", ["cls", "label", "class", "target", "target.cls", "CLS", "category"])
def test_labels_under_the_names_people_give_them(tmp_path, ending):
    path = tar(
        tmp_path / "x.tar", [x for k in range(4) for x in ((f"{k}.jpg", jpg(k)), (f"{k}.{ending}", b"%d" % (k % 2)))]
    )
    assert open_data(path)[0].labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("ending", ["index", "id", "y"])
def test_what_may_be_a_label_is_said_and_taken_when_asked(tmp_path, ending):
    path = tar(
        tmp_path / "x.tar", [x for k in range(4) for x in ((f"{k}.jpg", jpg(k)), (f"{k}.{ending}", b"%d" % (k % 2)))]
    )
    source, _ = open_data(path)
    assert source.labels is None and any(f"--label-key {ending}" in line for line in source.account.warnings())
    assert open_data(path, options=Options(label_key=ending))[0].labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_tar_that_ends_in_no_file_is_whole(tmp_path, kind):
    last = tarfile.TarInfo("9.jpg" if kind != tarfile.DIRTYPE else "folder")
    last.type, last.linkname = kind, "0.jpg"
    source, _ = open_data(tar(tmp_path / "x.tar", pairs(range(12), "jpg", "cls"), [last]))
    assert len(source) == 12 and not source.known_bad and not source.account.damaged


@pytest.mark.parametrize("several", ["{a}::{b}", "{folder}/*.tar", "{folder}/[ab].tar", "{folder}/{{a,b}}.tar"])
def test_several_tars_are_named_as_webdataset_and_shells_name_them(tmp_path, several):
    a, b = tar(tmp_path / "a.tar", pairs(range(2), "jpg")), tar(tmp_path / "b.tar", pairs(range(3), "jpg"))
    assert len(open_data(several.format(a=a, b=b, folder=tmp_path))[0]) == 5
