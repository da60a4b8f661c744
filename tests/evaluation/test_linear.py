"""The linear probe against closed cases: separable data, torch's own training loop, the meaning of its options."""

import pytest
import torch
import torch.nn.functional as F

from saccade.base.errors import UserError
from saccade.evaluation.accuracy import Accuracy, accuracy
from saccade.evaluation.linear import Preparation, Probe, ProbeResult, cached_batches, linear_head, train_probe
from saccade.evaluation.registry import find_protocol, protocols
from saccade.pipelines.order import Order


def probe_of(name):
    return protocols()[name].measures[-1]


def blobs(n=400, d=10, classes=4, spread=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    return centres[labels] + spread * torch.randn(n, d, generator=generator), labels


def fit(probe, train, test, classes=4, seed=0, prepare=lambda x: x):
    """(what it reached, the classifier)"""
    (x, y), (test_x, test_y) = train, test
    batches, head = cached_batches(x, y, probe, seed, "cpu"), linear_head(probe, (x.shape[1], classes), seed)
    steps = -(-len(x) // probe.batch_size)
    tested = lambda: accuracy(head(prepare(test_x)), test_y)  # noqa: E731
    return train_probe(probe, head, batches, steps, tested, prepare=prepare), head


@pytest.mark.parametrize("name", ["linear", "resa-cifar", "ressl", "cacr-a", "rsa-small", "stec-stl10"])
def test_separable_features_reach_100_percent(name):
    probe = probe_of(name)
    probe = Probe(**{**vars(probe), "batch_size": 100, "lr_batch": None, "steps_per_epoch": None})
    train, test = blobs(), blobs(200, seed=1)
    result, _ = fit(probe, train, test, prepare=Preparation(probe.prepare, train[0]))
    assert result.last == result.best == (100, 100)


def test_full_batch_sgd_equals_torchs_own_loop():
    (x, y), test = blobs(spread=1.0), blobs(200, spread=1.0, seed=1)
    probe = Probe(epochs=15, batch_size=400, lr=0.5, schedule="constant", weight_decay=1e-3)
    _, found = fit(probe, (x, y), test)
    weight, bias = torch.zeros(4, 10, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    torch.manual_seed(0)
    head = torch.nn.Linear(10, 4)
    torch.nn.init.normal_(head.weight, std=0.01)
    weight += head.weight.detach()
    moved = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for _ in range(15):  # softmax regression by its closed gradient, heavy ball, in float64
        error = (F.softmax(x.double() @ weight.T + bias, 1) - F.one_hot(y, 4)) / 400
        for p, m, g in ((weight, moved[0], error.T @ x.double()), (bias, moved[1], error.sum(0))):
            m.mul_(0.9).add_(g + 1e-3 * p)
            p.sub_(0.5 * m)
    torch.testing.assert_close(found.weight.double(), weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.bias.double(), bias, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_classifier_and_another_does_not():
    train, test = blobs(spread=1.0), blobs(200, spread=1.0, seed=1)
    probe = Probe(epochs=3, batch_size=64, lr=0.1)
    torch.manual_seed(7)
    first, head = fit(probe, train, test)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1)), "the probe must leave the global generator alone"
    (second, same), (_, other) = fit(probe, train, test), fit(probe, train, test, seed=1)
    assert torch.equal(head.weight, same.weight) and first.history == second.history
    assert not torch.equal(head.weight, other.weight)


def test_last_and_best_epochs_are_told_apart():
    history = tuple(Accuracy(top1, 99) for top1 in (10, 60, 60, 40))
    result = ProbeResult(history, (1, 1, 1, 1))
    assert result.last.top1 == 40 and result.best.top1 == 60 and result.best_epoch == 2


def test_standardised_features_have_mean_0_and_variance_1_of_the_training_set():
    x = 5 + 3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    unit = F.normalize(x, dim=1)
    population = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    mean_shift = (unit - unit.mean(0)) / (unit.var(0) + 1e-5).sqrt()  # its code: torch.var_mean, which is unbiased
    for kind, expected in (("standardise", population), ("l2-standardise", mean_shift)):
        torch.testing.assert_close(Preparation(kind, x)(x), expected, rtol=1e-4, atol=1e-5)
    assert Preparation("raw", None)(x) is x


def test_a_pass_over_cached_features_is_the_order_of_a_pipeline():
    """The whole order goes to the device at once and is cut there."""
    probe = Probe(1, 4, 0.1)
    batches = cached_batches(torch.arange(10.0)[:, None], torch.arange(10), probe, 3, "cpu")
    for epoch in range(2):
        made = list(batches(epoch))
        wanted = Order(10, 4, 3, drop_last=False).batches(epoch)
        assert all(
            torch.equal(y, rows) and torch.equal(x[:, 0].long(), rows)
            for (x, y), rows in zip(made, wanted, strict=True)
        )


def test_an_epoch_of_given_steps_takes_as_many_passes_as_it_needs():
    (x, y), seen = blobs(40), []
    probe = Probe(epochs=2, batch_size=16, lr=0.1, steps_per_epoch=7)
    batches = cached_batches(x, y, probe, 0, "cpu")

    def counted(number):
        for batch in batches(number):
            seen.append(len(batch[0]))
            yield batch

    train_probe(probe, linear_head(probe, (10, 4), 0), counted, 3, None)
    assert seen == [16, 16, 8] * 4 + [16, 16]


def test_fewer_epochs_squeeze_the_schedule():
    probe = probe_of("cacr-a").with_epochs(10)
    assert probe.epochs == 10 and probe.schedule_options == {"milestones": (6, 8), "gamma": 0.2}
    assert probe_of("stec-stl10").with_epochs(50).schedule_options == {"warmup_epochs": 5}


def test_a_rate_that_diverges_is_one_sentence():
    train, test = blobs(), blobs(200, seed=1)
    features = (train[0] * 1e20, train[1])
    with pytest.raises(UserError, match=r"the probe diverged in epoch 1.*lower --lr"):
        fit(Probe(epochs=2, batch_size=100, lr=1e20), features, test)


@pytest.mark.parametrize(
    ("protocol", "rate"), [("resa-imagenet", 40), ("cacr-c", 0.4), ("linear", 0.02), ("rsa-small", 30)]
)
def test_rates_scale_with_the_batch_as_the_papers_say(protocol, rate):
    assert probe_of(protocol).peak_lr() == pytest.approx(rate)


def test_the_papers_own_protocols_are_all_there():
    named = (
        "knn knn-200 linear linear-aug resa-cifar resa-imagenet ressl cacr-a cacr-c rsa-small rsa-imagenet stec-online"
    )
    assert set(named.split()) | {"stec-stl10"} <= set(protocols())
    assert find_protocol("rsa-small", 224).name == "rsa-imagenet" and find_protocol("rsa-small", 64).name == "rsa-small"
    assert find_protocol("rsa-small").fraction("stl10", 64) == 64 / 96
    assert (
        find_protocol("cacr-c").fraction("imagenet", 224) == 0.875 and find_protocol("knn").fraction("cifar10", 32) == 1
    )
    with pytest.raises(UserError, match=r"--protocol rsa-smal is unknown.*did you mean rsa-small"):
        find_protocol("rsa-smal")
