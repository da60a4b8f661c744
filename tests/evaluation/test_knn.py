"""kNN against the originals' values and a plain float64 loop."""

import math

import pytest
import torch

from saccade.base.errors import UserError
from saccade.evaluation.accuracy import accuracy
from saccade.evaluation.knn import knn_accuracy, neighbours, votes
from tests.reference_values import assert_close, load_reference


def test_resa_imagenet_knn_reference():
    r = load_reference("resa_knn_weighted")
    found = knn_accuracy(
        r["train_feats"], r["train_labels"], r["test_feats"], r["test_labels"], r["ks"].tolist(), r["T"].item()
    )
    assert [found[k].top1 for k in r["ks"].tolist()] == r["top1_percent"].tolist()
    assert [found[k].top5 for k in r["ks"].tolist()] == r["top5_percent"].tolist()


def test_rsa_knn_reference():
    r = load_reference("rsa_knn_k200_t0.1")
    k, temperature, classes = r["k"].item(), r["T"].item(), r["num_classes"].item()
    similarity, index = (r["query"].double() @ r["bank"].double().T).topk(k)
    scores = votes(similarity, r["bank_labels"][index], classes, temperature)
    assert_close(scores, r["scores"], 1e-6)
    found_similarity, found_index = next(iter(neighbours(r["bank"], r["query"], k)))
    assert torch.equal(found_index, index)
    assert_close(found_similarity, similarity, 3e-7)  # float32, and the stored features' lengths are 1 only to 1.3e-7
    assert torch.equal(scores.argmax(1), r["pred"])
    found = knn_accuracy(r["bank"], r["bank_labels"], r["query"], r["query_labels"], (k,), temperature)[k]
    assert_close(found.top1, r["top1_percent"][0], 1e-6)


def by_hand(train, train_labels, test, test_labels, k, temperature, metric):
    """Top-1 and top-5 in percent, one test image at a time, in float64, best class first, smaller number first."""
    classes, hits = int(train_labels.max()) + 1, [0, 0]
    for x, label in zip(test.double(), test_labels.tolist(), strict=True):
        if metric == "cosine":
            similarity = [(x @ t / (x.norm() * t.norm())).item() for t in train.double()]
        else:
            similarity = [-((x - t) ** 2).sum().item() for t in train.double()]
        nearest = sorted(range(len(train)), key=lambda i: -similarity[i])[:k]
        score = [0.0] * classes
        for i in nearest:
            score[train_labels[i]] += 1.0 if temperature is None else math.exp(similarity[i] / temperature)
        order = sorted(range(classes), key=lambda c: (-score[c], c))
        hits[0] += order[0] == label
        hits[1] += label in order[:5]
    return [100 * h / len(test) for h in hits]


@pytest.fixture(scope="module")
def clusters():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 6, generator=generator)
    labels = torch.arange(150) % 8
    features = centres[labels] + torch.randn(150, 6, generator=generator) + 3
    return features[:100], labels[:100], features[100:], labels[100:]


@pytest.mark.parametrize(
    ("metric", "temperature"), [("cosine", 0.07), ("cosine", 0.1), ("euclidean", None), ("cosine", None)]
)
def test_knn_equals_a_plain_loop(clusters, metric, temperature):
    found = knn_accuracy(*clusters, ks=(1, 5, 20, 100), temperature=temperature, metric=metric)
    for k, (top1, top5) in found.items():
        assert [top1, top5] == pytest.approx(by_hand(*clusters, k=k, temperature=temperature, metric=metric)), k


def test_chunks_do_not_change_the_result(clusters, monkeypatch):
    whole = knn_accuracy(*clusters, ks=(5, 20))
    monkeypatch.setattr("saccade.evaluation.knn._ELEMENTS", 700)  # 7 test images at a time
    assert knn_accuracy(*clusters, ks=(5, 20)) == whole


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nor_do_chunks_of_the_training_images(clusters, monkeypatch, metric):
    train, _, test, _ = clusters
    similarity, index = next(neighbours(train, test, 40, metric))
    monkeypatch.setattr("saccade.evaluation.knn._BANK", 13)  # fewer than the neighbours asked for
    chunked, found = next(neighbours(train, test, 40, metric))
    assert torch.equal(found, index)
    torch.testing.assert_close(chunked, similarity, rtol=1e-5, atol=1e-5)


def test_ties_of_a_uniform_vote_go_to_the_smallest_class():
    train = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    test, labels = torch.tensor([[1.5]]), torch.tensor([1])
    assert knn_accuracy(train, torch.tensor([2, 1, 1, 2]), test, labels, (4,), None, "euclidean")[4].top1 == 100
    assert knn_accuracy(train, torch.tensor([0, 1, 1, 0]), test, labels, (4,), None, "euclidean")[4].top1 == 0


def test_euclidean_neighbours_survive_a_large_common_offset():
    generator = torch.Generator().manual_seed(1)
    train, test = torch.randn(300, 16, generator=generator).double(), torch.randn(40, 16, generator=generator).double()
    expected = torch.cdist(test, train).topk(5, largest=False).indices
    _, index = next(iter(neighbours((train + 100).float(), (test + 100).float(), 5, "euclidean")))
    assert (index == expected).float().mean() > 0.98


def test_a_class_the_training_set_lacks_is_never_right(clusters):
    train, train_labels, test, test_labels = clusters
    assert knn_accuracy(train, train_labels, test, test_labels + 100, (20,))[20] == (0, 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ks": (101,)}, "k = 101, but there are 100 training images.*from 1 to 100"),
        ({"ks": (0,)}, "k = 0"),
        ({"temperature": 0.0}, "temperature is 0.0; give a positive"),
        ({"metric": "manhattan"}, "'manhattan' is unknown; use one of cosine, euclidean"),
    ],
)
def test_a_bad_value_is_one_sentence(clusters, change, says):
    with pytest.raises(UserError, match=says):
        knn_accuracy(*clusters, **change)


def test_features_that_are_not_numbers_are_an_error(clusters):
    train, train_labels, test, test_labels = clusters
    with pytest.raises(UserError, match="not finite"):
        knn_accuracy(torch.full_like(train, float("nan")), train_labels, test, test_labels)
    with pytest.raises(UserError, match="NaN"):
        accuracy(torch.full((3, 4), float("nan")), torch.zeros(3, dtype=torch.int64))


def test_leave_one_out_is_as_many_runs_with_one_image_held_out():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(30, 8, generator=generator), torch.arange(30) % 3
    features[7], features[8] = features[5], features[5]  # copies: itself may not be the nearest of equals
    found = knn_accuracy(features, labels, features, labels, (1, 5), leave_one_out=True)
    for k in (1, 5):
        rest = [torch.arange(30) != i for i in range(30)]
        each = [
            knn_accuracy(features[r], labels[r], features[i : i + 1], labels[i : i + 1], (k,))[k].top1
            for i, r in enumerate(rest)
        ]
        assert abs(found[k].top1 - sum(each) / 30) < 1e-6
