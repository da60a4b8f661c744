"""saccade neighbours, duplicates, cluster: as scikit-learn and plain loops find them, on a table of known vectors."""

import csv
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.neighbors import NearestNeighbors

from saccade.base.errors import UserError
from saccade.evaluation.embeddings import Block, read_embeddings, write_embeddings
from saccade.tools import cluster, duplicates, embed, neighbours
from tests.test_eval import write_images, write_run

COUNT = 40


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """40 pictures of four classes, a table of vectors drawn around four centres, two of them all but the same."""
    folder = tmp_path_factory.mktemp("answers")
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(4, 8)) * 2)[np.arange(COUNT) % 4] + rng.normal(size=(COUNT, 8))
    vectors[9] = vectors[5] + 1e-4
    vectors[21] = vectors[9] + 1e-4
    names = [f"{k:02d}.png" for k in range(COUNT)]
    (folder / "photos").mkdir()
    for k, name in enumerate(names):
        Image.new("RGB", (30, 20), ((60 * k) % 256, 40 * (k % 4), 90)).save(folder / "photos" / name)
    labels = np.arange(COUNT) % 4
    classes = [f"class{k}" for k in labels]
    block = Block(names, "train", classes, labels, vectors.astype(np.float32))
    made = {"data": str(folder / "photos")}
    for ending in (".parquet", ".csv"):
        write_embeddings(folder / f"x{ending}", [block], COUNT, (8,), made)
    return folder


def run(command, place, tmp_path, *flags, table="x.parquet"):
    out = ["--overwrite", "--sheet", str(tmp_path / "sheet.png")]
    out += ["--out", str(tmp_path / "out.csv")] if command is not neighbours else []
    return command.main([*map(str, flags), "--in", str(place / table), *out])


def rows_of(tmp_path):
    with (tmp_path / "out.csv").open() as file:
        return list(csv.DictReader(file))


def test_neighbours_are_scikit_learns(place, tmp_path, capsys):
    found = read_embeddings(place / "x.parquet")
    assert run(neighbours, place, tmp_path, "07.png", "30.png", "--k", 4) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()[1:9]]
    theirs = NearestNeighbors(n_neighbors=5, metric="cosine").fit(found.vectors)
    distance, index = theirs.kneighbors(found.vectors[[7, 30]])
    assert [row[4] for row in said] == [f"{i:02d}.png" for i in index[:, 1:].ravel()]
    assert np.allclose([float(row[2]) for row in said], 1 - distance[:, 1:].ravel(), atol=1e-4)
    assert [row[3] for row in said] == [f"class{i % 4}" for i in index[:, 1:].ravel()]
    with Image.open(tmp_path / "sheet.png") as sheet:  # the query, then its neighbours, in frames that tell the class
        colours = {colour for _, colour in sheet.getcolors(1 << 20)}
        assert (0, 0, 0) in colours and (0, 114, 178) in colours and sheet.width > 5 * 112


def test_a_picture_of_ones_own_is_embedded_as_the_table_was(tmp_path, capsys):
    data = write_images(tmp_path / "train.npz", 24, 0)
    folder, table = write_run(tmp_path / "run", data), tmp_path / "x.parquet"
    assert embed.main([data, "--from", str(folder), "--out", str(table)]) == 0
    with np.load(data) as arrays:
        Image.fromarray(arrays["images"][5]).save(tmp_path / "own.png")
    capsys.readouterr()
    assert (
        neighbours.main([str(tmp_path / "own.png"), "--in", str(table), "--k", "1", "--sheet", str(tmp_path / "s.png")])
        == 0
    )
    assert capsys.readouterr().out.splitlines()[1].split()[1:] == ["1", "1.0000", "1", "05"]


@pytest.mark.parametrize("elements", [2**24, 100])
def test_duplicates_are_linked_and_nothing_else_is(place, tmp_path, monkeypatch, elements, capsys):
    monkeypatch.setattr(duplicates, "ELEMENTS", elements)
    assert run(duplicates, place, tmp_path, "--threshold", 0.9999) == 0
    assert [(row["group"], row["name"]) for row in rows_of(tmp_path)] == [("1", f"{k:02d}.png") for k in (5, 9, 21)]
    vectors = read_embeddings(place / "x.parquet").vectors
    vectors = vectors - vectors.mean(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    group = np.arange(COUNT)
    for i in range(COUNT):  # a plain loop
        for j in range(i):
            if vectors[i] @ vectors[j] >= 0.8:
                group[group == group[i]] = group[j]
    wanted = {frozenset(np.flatnonzero(group == g)) for g in group if (group == g).sum() > 1}
    assert {frozenset(rows) for rows in duplicates.linked(vectors, 0.8)} == wanted and len(wanted) > 1
    assert run(duplicates, place, tmp_path, "--threshold", 0.01) == 0
    assert "give a higher --threshold" in capsys.readouterr().out


def test_clusters_are_scikit_learns_with_their_purity(place, tmp_path, capsys):
    assert run(cluster, place, tmp_path) == 0
    found, said = read_embeddings(place / "x.parquet"), capsys.readouterr().out
    theirs: Any = KMeans(4, n_init=4, random_state=0).fit(found.unit())  # type: ignore[arg-type]
    ours = [int(row["cluster"]) for row in rows_of(tmp_path)]
    assert ours == theirs.labels_.tolist()
    away = np.linalg.norm(found.unit() - theirs.cluster_centers_[ours], axis=1)
    assert np.allclose([float(row["distance"]) for row in rows_of(tmp_path)], away, atol=1e-4)
    purity = 100 * contingency_matrix(found.classes, ours).max(0).sum() / COUNT
    nmi = normalized_mutual_info_score(found.classes, ours)
    assert f"purity {purity:.1f} %, NMI {nmi:.3f}, of 40 labelled images" in said


def test_a_table_that_does_not_say_where_its_pictures_are_makes_no_sheet(place, tmp_path, capsys):
    assert run(cluster, place, tmp_path, "--k", 3, table="x.csv") == 0
    assert "no sheet of pictures" in capsys.readouterr().out and not (tmp_path / "sheet.png").exists()
    assert run(cluster, place, tmp_path, "--k", 3, "--data", place / "photos", table="x.csv") == 0
    assert (tmp_path / "sheet.png").exists()


def test_bad_input_is_one_sentence(place, tmp_path):
    far = tmp_path / "far.parquet"
    block = Block(["a", "b"], "train", ["", ""], np.array([-1, -1]), np.eye(2, dtype=np.float32))
    write_embeddings(far, [block], 2, (2,), {"data": "pipe:touch ran", "from": "http://elsewhere/x"})
    (tmp_path / "no.png").write_bytes(b"nothing")
    for command, flags, table, says in (
        (neighbours, ["07.pmg"], place / "x.parquet", "did you mean 07.png"),
        (neighbours, [str(tmp_path / "no.png")], place / "x.parquet", "cannot be read as a picture"),
        (neighbours, [str(place / "photos/01.png")], place / "x.parquet", "give --from RUN for a picture file"),
        (neighbours, [str(place / "photos/01.png")], far, "if you trust it, say so: --from"),
        (neighbours, ["a"], far, "if you trust it, say so: --data"),
        (neighbours, ["a"], tmp_path / "none.parquet", "saccade embed DATA"),
        (duplicates, ["--threshold", 2], place / "x.parquet", "above 0, up to 1"),
        (cluster, ["--k", 1], place / "x.parquet", "--k 1 is too few"),
        (cluster, ["--k", 99], place / "x.parquet", "give 2 to 40"),
    ):
        with pytest.raises(UserError, match=says):
            run(command, table.parent, tmp_path, *flags, table=table.name)
    assert not (tmp_path / "ran").exists()
