"""The attentive probe, against loops in plain numpy in float64; what it can learn and a mean cannot."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from saccade.evaluation.kinds.attentive import AttentiveClassifier


@pytest.mark.parametrize(("features", "heads"), [(6, 1), (128, 2), (192, 3), (130, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_the_pooling_is_that_of_plain_loops(features, heads, training):
    torch.manual_seed(0)
    head = AttentiveClassifier(features, 5).double().train(training)
    head.norm.running_mean.normal_()
    head.norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        head.query.normal_()
    patches = torch.randn(3, 2, 4, features, dtype=torch.float64)
    mean, variance = head.norm.running_mean.numpy().copy(), head.norm.running_var.numpy().copy()
    with torch.no_grad():
        scores = head(patches)
        assert training or torch.equal(scores, head(patches.flatten(1)))
    x = patches.numpy().reshape(3, 8, features)
    if training:
        mean, variance = x.reshape(24, -1).mean(0), x.reshape(24, -1).var(0)
    x = (x - mean) / np.sqrt(variance + 1e-6)
    state = {name: value.numpy() for name, value in head.state_dict().items()}
    assert head.heads == heads
    width = features // heads
    for n in range(3):
        pooled = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            looks = [state["query"][part] @ (state["key.weight"] @ patch)[part] / width**0.5 for patch in x[n]]
            share = np.exp(looks) / np.exp(looks).sum()
            pooled.append(sum(s * (state["value.weight"] @ patch)[part] for s, patch in zip(share, x[n], strict=True)))
        wanted = state["classifier.weight"] @ np.concatenate(pooled) + state["classifier.bias"]
        np.testing.assert_allclose(scores[n], wanted, rtol=1e-10, atol=1e-12)


def test_it_finds_the_one_patch_that_tells_where_a_mean_cannot():
    """One patch of 16 is marked, and carries the class; the others carry classes at random."""
    generator = torch.Generator().manual_seed(0)
    labels, classes = torch.arange(512) % 4, torch.randint(4, (512, 16), generator=generator)
    marked = torch.randint(16, (512,), generator=generator)
    classes[torch.arange(512), marked] = labels
    patches = torch.cat([F.one_hot(classes, 4), F.one_hot(marked, 16)[..., None]], 2).float()
    torch.manual_seed(0)
    head = AttentiveClassifier(5, 4)
    optimizer = torch.optim.Adam(head.parameters(), 0.03)
    for _ in range(150):
        loss = F.cross_entropy(head(patches), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mean = patches.mean(1)
    best = torch.linalg.lstsq(mean, F.one_hot(labels, 4).float()).solution
    right = [(scores.argmax(1) == labels).float().mean() for scores in (head.eval()(patches), mean @ best)]
    assert right[0] > 0.98 and right[1] < 0.6
