"""Fine-tuning: equal to a plain loop of torch, on labels drawn by class, and going on after a stop as if there were
none; so do probes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from saccade.base.errors import UserError
from saccade.evaluation import kept as kept_module
from saccade.evaluation.accuracy import accuracy
from saccade.evaluation.finetune import FineTuning, few_labels, fine_tune
from saccade.evaluation.kept import Kept, key_of
from saccade.evaluation.linear import Probe, cached_batches, linear_head, train_probe
from saccade.models.backbone import replace_stem
from saccade.models.heads import linear_classifier
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.data import open_data
from saccade.pipelines.order import Order
from saccade.pipelines.sources import ArraySource
from saccade.pipelines.views import Crop, View, Views
from tests.present import present

HOW = FineTuning(epochs=3, batch_size=8, lr=0.05, head_lr=0.4, lr_batch=16, weight_decay=1e-3)
VIEWS = Views((View("train", 16, Crop((0.3, 1.0)), flip=0.5),), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_module, "EVERY", 0.0)


@pytest.fixture(scope="module")
def source():
    generator = np.random.default_rng(0)
    return ArraySource("noise", generator.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8), np.arange(20) % 4)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return replace_stem(timm.create_model("test_resnet", num_classes=0), "cifar").eval()


def tuned(source, backbone, how=HOW, kept=None, stop_after=None):
    """Test accuracies are told of the training images; stop_after: the test of that epoch ends the measurement."""
    tests = []

    def test(network):
        tests.append(None)
        if len(tests) == stop_after:
            raise KeyboardInterrupt
        with torch.no_grad():
            return network.eval()(torch.from_numpy(source.images).permute(0, 3, 1, 2) / 255).flatten(1), labels

    labels = torch.from_numpy(source.labels)
    order = Order(len(source), how.batch_size, 3, drop_last=False)
    with build_pipeline(source, VIEWS, order, device="cpu") as pipeline:
        return fine_tune(how, backbone, pipeline, 4, test, seed=5, kept=kept)


def test_it_is_a_plain_loop_of_torch(source, backbone):
    found = tuned(source, backbone)
    torch.manual_seed(5)
    head = linear_classifier(backbone.num_features, 4)
    network = replace_stem(timm.create_model("test_resnet", num_classes=0), "cifar")
    network.load_state_dict(backbone.state_dict())
    slow = torch.optim.SGD(network.parameters(), 0.0, momentum=0.9, weight_decay=1e-3)
    fast = torch.optim.SGD(head.parameters(), 0.0, momentum=0.9, weight_decay=1e-3)
    order, step = Order(20, 8, 3, drop_last=False), 0
    with build_pipeline(source, VIEWS, order, device="cpu") as pipeline:
        for _ in range(3):
            for batch in pipeline:
                cosine = 0.5 * (1 + math.cos(math.pi * step / 9))
                slow.param_groups[0]["lr"], fast.param_groups[0]["lr"] = 0.05 * 8 / 16 * cosine, 0.4 * 8 / 16 * cosine
                loss = F.cross_entropy(head(network.train()(batch.views["train"])), present(batch.label))
                slow.zero_grad(), fast.zero_grad()
                loss.backward()
                slow.step(), fast.step()
                step += 1
    for ours, theirs in ((found.backbone, network), (found.classifier, head)):
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert len(found.history) == 3


def test_a_frozen_backbone_stays_as_it_is_to_the_bit(source, backbone):
    found = tuned(source, backbone, replace(HOW, lr=0.0))
    assert all(torch.equal(found.backbone.state_dict()[n], v) for n, v in backbone.state_dict().items())
    assert found.losses[-1] < found.losses[0]


@pytest.mark.parametrize("stop_after", [1, 3])
def test_stopped_and_begun_again_it_ends_as_if_unbroken(source, backbone, stop_after):
    whole = tuned(source, backbone)
    key = key_of(backbone, (source,), HOW)
    with pytest.raises(KeyboardInterrupt):
        tuned(source, backbone, kept=Kept(key), stop_after=stop_after)
    again = tuned(source, backbone, kept=Kept(key))
    assert again.history == whole.history and again.losses == whole.losses
    assert all(torch.equal(again.backbone.state_dict()[n], v) for n, v in whole.backbone.state_dict().items())
    assert Kept(key).read() is None, "what is done is kept no longer"


@pytest.mark.parametrize("steps_per_epoch", [None, 5])
def test_a_probe_goes_on_too(steps_per_epoch):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=generator), torch.arange(40) % 4
    probe = Probe(4, 16, 0.1, optimizer="adam", steps_per_epoch=steps_per_epoch)

    def fit(kept=None, stop_after=None):
        tests, head = [], linear_head(probe, (6, 4), 0)

        def test():
            tests.append(None)
            if len(tests) == stop_after:
                raise KeyboardInterrupt
            return accuracy(head(x), y)

        return train_probe(probe, head, cached_batches(x, y, probe, 0, "cpu"), 3, test, kept=kept), head

    whole, unbroken = fit()
    with pytest.raises(KeyboardInterrupt):
        fit(Kept("probe"), stop_after=3)
    again, head = fit(Kept("probe"))
    assert again.history == whole.history and again.losses == whole.losses
    assert torch.equal(head.weight, unbroken.weight)


def test_a_key_tells_weights_labels_and_settings_apart(source, backbone):
    other = nn.Linear(2, 2)
    keys = {
        key_of(backbone, (source,), "a"),
        key_of(backbone, (source,), "b"),
        key_of(other, (source,), "a"),
        key_of(backbone, (source.subset(np.arange(10)),), "a"),
    }
    assert len(keys) == 4 and key_of(backbone, (source,), "a") in keys


def test_a_key_knows_other_images_under_the_same_names_and_labels(backbone, tmp_path):
    keys = set()
    for shade in (10, 200, 10):
        for k in range(4):
            (tmp_path / "set" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (shade, k, 0)).save(tmp_path / "set" / "ab"[k % 2] / f"{k}.png")
        keys.add(key_of(backbone, (open_data(str(tmp_path / "set"))[0],)))
    assert len(keys) == 2


def test_a_place_that_cannot_be_written_costs_the_way_back_alone_and_is_said_once(source, backbone, tmp_path, capsys):
    (tmp_path / "cache/measuring/taken.safetensors").mkdir(parents=True)
    found = tuned(source, backbone, kept=Kept("taken"))
    assert found.history == tuned(source, backbone).history
    assert capsys.readouterr().err.count("warning: a stop would begin this anew") == 1


def test_without_a_test_it_is_the_same_training(source, backbone):
    order = Order(len(source), HOW.batch_size, 3, drop_last=False)
    with build_pipeline(source, VIEWS, order, device="cpu") as pipeline:
        found = fine_tune(HOW, backbone, pipeline, 4, None, seed=5)
    tested = tuned(source, backbone)
    assert found.losses == tested.losses and found.history == ()
    assert torch.equal(found.classifier.weight, tested.classifier.weight)


def test_a_damaged_state_is_begun_again(source, backbone, tmp_path):
    kept = Kept("broken")
    kept.write({"history": [], "losses": []})
    (tmp_path / "cache/measuring/broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    assert kept.read() is None
    assert len(tuned(source, backbone, kept=kept).history) == 3


def test_labels_are_drawn_of_each_class_by_seed():
    labels = np.repeat(np.arange(3), (100, 50, 3))
    source = ArraySource("set", np.zeros((153, 4, 4, 3), np.uint8), labels)
    some = few_labels(source, 0.1, seed=1)
    assert np.bincount(present(some.labels)).tolist() == [10, 5, 1]
    assert np.bincount(present(few_labels(source, shots=3, seed=1).labels)).tolist() == [3, 3, 3]
    assert few_labels(source, 1.0) is source
    with pytest.raises(UserError, match=r"4 labelled images of every class .* one has 3"):
        few_labels(source, shots=4)


def test_a_rate_too_high_is_one_sentence(source, backbone):
    with pytest.raises(UserError, match=r"fine-tuning diverged in epoch 1 .* lower --lr"):
        tuned(source, backbone, replace(HOW, lr=1e20))
