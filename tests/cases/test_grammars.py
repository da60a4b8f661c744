"""Random .npz and parquet files from a small grammar: numpy and pyarrow count what is there; never a traceback, never
an unexplained difference."""

import io

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade.base.errors import UserError
from saccade.pipelines.data import open_data
from tests.present import present

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), seed % 256, np.uint8)).save(file, "PNG")
    return file.getvalue()


LABELS = st.one_of(
    st.none(),
    st.lists(st.integers(-1, 3), min_size=1, max_size=5),
    st.lists(st.sampled_from([0.0, 1.0, -1.0, float("nan"), 0.5]), min_size=1, max_size=5),
    st.lists(st.sampled_from(["cat", "dog", ""]), min_size=1, max_size=5),
    st.lists(st.booleans(), min_size=1, max_size=5),
)
KINDS = st.sampled_from(["u1", "i8", "?", "f2", "u2", "f4", "c8", "U1"])
SHAPES = st.sampled_from(["nhwc", "nchw", "nhw", "nhwx"])


@QUICK
@given(
    st.integers(1, 5),
    KINDS,
    SHAPES,
    LABELS,
    st.sampled_from(["images", "x_train", "data"]),
    st.integers(0, 2),
    st.booleans(),
)
def test_any_npz_is_what_numpy_says_or_one_sentence(tmp_path, count, kind, shape, labels, key, more, short):
    sizes = {"nhwc": (6, 8, 3), "nchw": (3, 6, 8), "nhw": (6, 8), "nhwx": (6, 8, 5)}[shape]
    held = {key: (np.arange(count * int(np.prod(sizes))) % 7).reshape(count, *sizes).astype(kind)}
    if labels is not None:
        held["labels"] = np.array((labels * 5)[: count + short])
    held |= {f"more{k}": np.zeros(3) for k in range(more)}
    np.savez(tmp_path / "x.npz", **held)
    source, refusal = opened(tmp_path / "x.npz")
    if source is None:
        assert "x.npz" in refusal and "\n" not in refusal
        return
    with np.load(tmp_path / "x.npz") as file:
        images, found, names = file[key], file["labels"] if labels is not None else None, list(file)
    assert len(source) == len(images) == source.account.taken
    assert source.account.seen == len(images) + len([name for name in names if name not in (key, "labels")])
    pixels = present(source.array())
    assert pixels.shape == (count, 6, 8, 3) and pixels.dtype == np.uint8
    plain = np.moveaxis(images, 1, 3) if shape == "nchw" else images
    if kind in ("u1", "i8"):
        assert (pixels == plain).all()
    else:  # scaled: in the same order
        assert (np.argsort(pixels.reshape(-1), kind="stable") == np.argsort(plain.reshape(-1), kind="stable")).all()
    if found is None or source.labels is None:
        assert found is None or not any(label_of(value) is not None for value in found.tolist())
        return
    names = source.classes
    ours = [None if k < 0 else names[k] if names else int(k) for k in source.labels.tolist()]
    assert ours == [label_of(value) for value in found.tolist()]


def opened(path):
    """The source, or None and the sentence that refuses it."""
    try:
        return open_data(str(path))[0], ""
    except UserError as error:
        return None, str(error)


def label_of(value):
    """What one cell means: None for no label."""
    if value is None or value == "" or value != value or value == -1:
        return None
    return value if isinstance(value, str) else int(value)


TYPES = {
    "int8": [0, 1, 2, -1, None],
    "int64": [0, 1, 2, 3, None],
    "float": [0.0, 1.0, float("nan"), None],
    "half": [0.5, 1.0],
    "bool": [True, False, None],
    "string": ["cat", "dog", "", None],
    "dictionary": ["cat", "dog", None],
    "list": [[1, 2], [3], None],
}
ARROW = {
    "int8": pa.int8(),
    "int64": pa.int64(),
    "float": pa.float32(),
    "half": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "list": pa.list_(pa.int64()),
}
IMAGES = {
    "binary": pa.binary(),
    "large": pa.large_binary(),
    "struct": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    "turned": pa.struct([("path", pa.string()), ("bytes", pa.binary())]),
}


@QUICK
@given(
    st.sampled_from(list(IMAGES)),
    st.sampled_from(["image", "img", "photo", "blob"]),
    st.sampled_from(list(TYPES)).flatmap(
        lambda t: st.tuples(st.just(t), st.lists(st.sampled_from(TYPES[t]), min_size=1, max_size=7))
    ),
    st.sampled_from(["label", "fine_label", "target", "other"]),
    st.integers(1, 4),
    st.integers(0, 2),
    st.integers(0, 1),
)
def test_any_parquet_is_what_pyarrow_says_or_one_sentence(tmp_path, kind, name, labels, called, group, more, files):
    kind_of_label, values = labels
    assume(name != called)
    cells = [
        {"bytes": png(k), "path": f"{k}.png"} if kind in ("struct", "turned") else png(k) for k in range(len(values))
    ]
    columns = {name: pa.array(cells, IMAGES[kind]), called: pa.array(values, ARROW[kind_of_label])}
    columns |= {f"more{k}": pa.array(["x"] * len(values)) for k in range(more)}
    for old in tmp_path.glob("*.parquet"):
        old.unlink()
    for number in range(files + 1):
        parquet.write_table(pa.table(columns), tmp_path / f"train-{number}.parquet", row_group_size=group)
    source, refusal = opened(tmp_path)
    if source is None:
        assert "\n" not in refusal and kind_of_label in ("list", "half"), refusal
        return
    rows = [row for file in sorted(tmp_path.glob("*.parquet")) for row in parquet.read_table(file).to_pylist()]
    unread = more * 1 + (called == "other")
    assert len(source) == len(rows) and source.account.seen == len(rows) + unread
    assert [int(source.read(i)[0, 0, 0]) for i in range(len(rows))] == [k % len(values) for k in range(len(rows))]
    want = [label_of(row[called]) for row in rows] if called != "other" else [None] * len(rows)
    if source.labels is None:
        assert not any(value is not None for value in want)
        return
    names = source.classes
    assert [None if k < 0 else names[k] if names else int(k) for k in source.labels.tolist()] == want
