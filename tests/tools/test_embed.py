"""saccade embed: what other libraries read is what saccade eval extracts, with the right name on every row."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from saccade import eval as program
from saccade.base.errors import UserError
from saccade.evaluation import feature_file, features
from saccade.evaluation.embeddings import read_embeddings
from saccade.tools.embed import main
from tests.test_eval import SIZE, write_images, write_run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed")
    write_images(folder / "train.npz", 64, 0)
    write_images(folder / "test.npz", 32, 1)
    write_images(folder / "alone.npz", 20, 2, labelled=False)
    write_run(folder / "run", str(folder / "train.npz"))
    return folder


def embedded(place, out, *flags, data="train.npz"):
    assert main([str(place / data), "--from", str(place / "run"), "--out", str(out), *map(str, flags)]) == 0
    return out


def test_every_format_holds_the_features_that_eval_extracts(place, tmp_path, capsys):
    kept = tmp_path / "eval.npz"
    assert program.main([str(place / "run"), "--protocol", "knn", "--no-baselines", "--features-out", str(kept)]) == 0
    with np.load(kept) as arrays:
        wanted = np.concatenate([arrays["train_features"], arrays["test_features"]])
        labels = np.concatenate([arrays["train_labels"], arrays["test_labels"]])
    for ending in (".parquet", ".npy", ".csv"):
        found = read_embeddings(embedded(place, tmp_path / f"x{ending}"))
        assert np.array_equal(found.vectors, wanted), ending
        assert found.names[[0, 63, 64]].tolist() == ["00", "63", "00"] and set(found.splits) == {"train", "test"}
        assert found.classes.tolist() == [str(k) for k in labels]
    assert not list(tmp_path.glob(".x*"))
    assert "96 images, 96 numbers each" in capsys.readouterr().out


def test_pandas_pyarrow_and_numpy_read_it(place, tmp_path):
    pandas = pytest.importorskip("pandas")
    table = parquet.read_table(embedded(place, tmp_path / "x.parquet"))
    assert table.column_names == ["name", "split", "class", "label", "vector"] and table.num_rows == 96
    said = json.loads(table.schema.metadata[b"saccade"])
    assert (said["image_size"], said["crop_fraction"], said["interpolation"]) == (SIZE, 1.0, "bilinear")
    frame = pandas.read_parquet(tmp_path / "x.parquet")
    vectors = np.load(embedded(place, tmp_path / "x.npy"), allow_pickle=False)
    assert np.array_equal(np.stack(frame["vector"]), vectors) and vectors.dtype == np.float32
    names = pandas.read_csv(tmp_path / "x.names.csv", dtype=str)
    assert names["name"].tolist() == frame["name"].tolist()
    numbers = pandas.read_csv(embedded(place, tmp_path / "x.csv")).filter(regex="^v")
    assert np.array_equal(numbers.to_numpy(np.float32), vectors)


def test_without_labels_there_are_none(place, tmp_path):
    table = parquet.read_table(embedded(place, tmp_path / "x.parquet", data="alone.npz"))
    assert table.column("label").null_count == table.column("class").null_count == table.num_rows == 20


def test_an_unreadable_image_has_no_row(place, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(14):
        Image.new("RGB", (20, 20), (15 * k, 90, 30)).save(folder / f"{k:02d}.png")
    (folder / "04.png").write_bytes(b"broken")
    few = ("--workers", 0, "--pipeline", "reference", "--batch-size", 4)
    found = read_embeddings(embedded(place, tmp_path / "x.csv", *few, data=folder))
    assert found.names.tolist() == [f"{k:02d}.png" for k in range(14) if k != 4]
    assert len(np.unique(found.vectors, axis=0)) == 13  # none stands in for another
    assert "1 unreadable images are left out, such as 04.png" in capsys.readouterr().out


def test_stopped_it_goes_on_with_the_rest(place, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_file, "EVERY", 0.0)
    whole, made, forward = embedded(place, tmp_path / "whole.npy", "--split", "train"), [], features.forward_batches

    def counted(*given):
        for batch in forward(*given):
            made.append(len(batch[0]))
            if len(made) == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(features, "forward_batches", counted)
    few = ("--split", "train", "--batch-size", 16)
    with pytest.raises(KeyboardInterrupt):
        embedded(place, tmp_path / "x.npy", *few)
    assert not (tmp_path / "x.npy").exists()
    embedded(place, tmp_path / "x.npy", *few)
    assert made == [16] * 5  # two were kept of the three
    assert np.allclose(np.load(whole), np.load(tmp_path / "x.npy"), rtol=1e-4, atol=1e-5)


def test_bad_input_is_one_sentence(place, tmp_path):
    train, run = str(place / "train.npz"), str(place / "run")
    for flags, says in (
        ([train, "--from", run, "--out", str(tmp_path / "x.txt")], "ending in .parquet or .npy or .csv"),
        ([train, "--from", "nothing", "--out", str(tmp_path / "x.npy")], "nor a model that timm knows"),
        ([train, "--from", "", "--out", str(tmp_path / "x.npy")], "is empty"),
        ([train, "--from", run, "--split", "dev", "--out", str(tmp_path / "x.npy")], "has train, test"),
        ([train, "--from", run, "--out", str(tmp_path / "no" / "x.npy")], "in a folder that exists"),
    ):
        with pytest.raises(UserError, match=says):
            main(flags)
    assert not list(tmp_path.iterdir())
    table = tmp_path / "t.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("name", "v0"), ("a", "nonsense")])
    with pytest.raises(UserError, match="cannot be read as vectors with names"):
        read_embeddings(table)
