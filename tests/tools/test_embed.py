"""saccade embed: what other libraries read is what saccade eval extracts, with the right name on every row."""

import csv
import json
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
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


@pytest.mark.parametrize("dense", [(), ("--dense",)])
def test_stopped_it_goes_on_with_the_rest(place, tmp_path, monkeypatch, dense):
    monkeypatch.setattr(feature_file, "EVERY", 0.0)
    whole, made = embedded(place, tmp_path / "whole.npy", "--split", "train", *dense), []
    forward = features.forward_batches

    def counted(*given):
        for batch in forward(*given):
            made.append(len(batch[0]))
            if len(made) == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(features, "forward_batches", counted)
    few = ("--split", "train", "--batch-size", 16, *dense)
    with pytest.raises(KeyboardInterrupt):
        embedded(place, tmp_path / "x.npy", *few)
    assert not (tmp_path / "x.npy").exists()
    embedded(place, tmp_path / "x.npy", *few)
    assert made == [16] * 5  # two were kept of the three
    assert np.allclose(
        np.load(whole), np.load(tmp_path / "x.npy"), rtol=1e-3 if dense else 1e-4, atol=1e-3 if dense else 1e-5
    )


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_patches_are_what_the_backbone_makes_of_them_before_it_pools(place, tmp_path, name):
    """Of timm's own intermediate features; where it pools by a mean, their mean is the vector."""
    options: Any = {"img_size": 32} if name == "test_vit" else {}
    model: Any = timm.create_model(name, num_classes=0, **options).eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    how = ("--from", str(tmp_path / "w.safetensors"), "--backbone", name, "--image-size", "32")
    for out, *more in (("x.npy", "--dense"), ("x.parquet", "--dense"), ("v.npy",)):
        assert main([str(place / "test.npz"), *how, "--mean", "0,0,0", "--std", "1,1,1", "--stem", "plain", *more,
                     "--out", str(tmp_path / out)]) == 0  # fmt: skip
    found = np.load(tmp_path / "x.npy", allow_pickle=False)
    images = torch.from_numpy(np.load(place / "test.npz")["images"]).permute(0, 3, 1, 2) / 255
    images = F.interpolate(images, size=(32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        last = model.forward_intermediates(images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True)[-1]
    assert found.dtype == np.float16 and found.shape == (32, *last.shape[2:], last.shape[1])
    np.testing.assert_allclose(found, last.permute(0, 2, 3, 1), atol=0.05)  # of pixels rounded to uint8
    table = parquet.read_table(tmp_path / "x.parquet")
    assert np.array_equal(table.column("patches").combine_chunks().to_numpy_ndarray(), found)
    told = json.loads(table.schema.metadata[b"saccade"])
    assert told["grid"] == list(last.shape[2:]) and told["features"] == last.shape[1]
    assert table.column("name").to_pylist() == names_in(tmp_path / "x.names.csv") == [f"{k:02d}" for k in range(32)]
    if name == "test_resnet":
        vectors = np.load(tmp_path / "v.npy")
        np.testing.assert_allclose(found.astype(np.float32).mean((1, 2)), vectors, rtol=2e-3, atol=2e-3)
    for out in ("x.npy", "x.parquet"):
        with pytest.raises(UserError, match="patches, not of images; embed again without --dense"):
            read_embeddings(tmp_path / out)


def names_in(path):
    with path.open(newline="") as file:
        return [row["name"] for row in csv.DictReader(file)]


def test_bad_input_is_one_sentence(place, tmp_path):
    train, run = str(place / "train.npz"), str(place / "run")
    for flags, says in (
        ([train, "--from", run, "--out", str(tmp_path / "x.txt")], "ending in .parquet or .npy or .csv"),
        ([train, "--from", "nothing", "--out", str(tmp_path / "x.npy")], "nor a model that timm knows"),
        ([train, "--from", run, "--dense", "--out", str(tmp_path / "x.csv")], "give a .parquet or a .npy"),
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
