"""Every index exactly once, the same for any number of processes, resumable anywhere."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from saccade.base.errors import UserError
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.order import ORDER_VERSION, Order, ShardedOrder
from saccade.pipelines.permute import permute
from saccade.pipelines.sources.arrays import ArraySource
from saccade.pipelines.stream import mix64
from saccade.pipelines.views import View, Views
from tests.distributed import dealt


@pytest.mark.parametrize(("samples", "batch"), [(64, 16), (67, 16), (5, 5), (1, 1)])
def test_every_index_at_most_once_and_all_but_the_remainder(samples, batch):
    for epoch in range(3):
        seen = torch.cat(Order(samples, batch, seed=1).batches(epoch)[:])
        assert len(seen) == samples // batch * batch == len(seen.unique())
        assert seen.min() >= 0 and seen.max() < samples


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_see_what_one_sees(world):
    alone = Order(100, 16, seed=3).batches(2)
    shards = [Order(100, 16, seed=3, rank=r, world_size=world).batches(2) for r in range(world)]
    for step, batch in enumerate(alone):
        assert torch.equal(torch.cat([s[step] for s in shards])[dealt(16, world)], batch)
        assert {len(s[step]) for s in shards} == {16 // world}


@pytest.mark.parametrize("world", [2, 4])
def test_a_piece_of_every_share_is_a_piece_of_the_batch(world):
    """So a step that is accumulated in pieces is the same on any number of processes."""
    (alone,) = Order(16, 16, seed=3).batches(0)
    shares = [Order(16, 16, seed=3, rank=r, world_size=world).batches(0)[0] for r in range(world)]
    for piece in range(2):
        rows = slice(piece * 8 // world, (piece + 1) * 8 // world)
        assert set(torch.cat([share[rows] for share in shares]).tolist()) == set(alone[piece * 8 :][:8].tolist())


@pytest.mark.parametrize("world", [1, 2])
def test_resume_goes_on_with_the_next_unseen_sample_on_any_number_of_processes(world):
    whole = torch.cat(Order(100, 10, seed=3).batches(5)[:])
    first = torch.cat(Order(100, 10, seed=3).batches(5)[:4])
    ranks = (Order(100, 10, 3, r, world).batches(5, seen=40) for r in range(world))
    rest = [torch.cat(parts)[dealt(10, world)] for parts in zip(*ranks, strict=True)]
    assert torch.equal(torch.cat([first, *rest]), whole)


def test_epochs_and_seeds_differ_and_are_well_shuffled():
    order = Order(10_000, 100, seed=0)
    a, b, c = order.permutation(0), order.permutation(1), Order(10_000, 100, seed=1).permutation(0)
    place = torch.arange(10_000)
    for one, two in ((a, b), (a, c), (a, place)):
        assert (one == two).float().mean() < 0.01
        assert abs(torch.corrcoef(torch.stack([one.float(), two.float()]))[0, 1]) < 0.05


def permutations(count, trials):
    """(trials, count): the order of `count` samples under as many keys."""
    keys = np.repeat(mix64(torch.arange(trials)).numpy().view(np.uint64), count)
    place = np.tile(np.arange(count, dtype=np.uint64), trials)
    return permute(place, np.full_like(place, count), keys).reshape(trials, count).astype(np.int64)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_every_permutation_of_a_few_is_equally_frequent(count):
    drawn = permutations(count, 24_000)
    ranks = {order: rank for rank, order in enumerate(itertools.permutations(range(count)))}
    seen = np.bincount([ranks[tuple(row)] for row in drawn.tolist()], minlength=len(ranks))
    assert chisquare(seen).pvalue > 1e-4


@pytest.mark.parametrize("count", [67, 4100])
def test_a_sample_stands_anywhere_and_beside_any_other_equally_often(count):
    drawn = permutations(count, 400_000 // count)
    for place in (0, count // 2, count - 1):
        bins = np.arange(count) * 10 // count
        share = np.bincount(bins) * (len(drawn) / count)
        assert chisquare(np.bincount(bins[drawn[:, place]]), share).pvalue > 1e-4
    for apart in (1, 2, 64, 65):  # 65 columns has the grid of 4,100
        step = (drawn[:, apart:] - drawn[:, :-apart]) % count
        assert chisquare(np.bincount(step.ravel(), minlength=count)[1:]).pvalue > 1e-4


def test_neighbours_of_a_large_set_have_nothing_in_common():
    drawn = Order(1_000_003, 1, seed=7).permutation(0).numpy()
    for apart in (1, 2, 1000, 1001):
        a, b = drawn[:-apart] * 20 // 1_000_003, drawn[apart:] * 20 // 1_000_003
        assert chisquare(np.bincount(20 * a + b, minlength=400)).pvalue > 1e-4
    ascents = (drawn[1:] > drawn[:-1]).sum()
    assert abs(ascents - 500_001) < 5 * (1_000_003 / 12) ** 0.5


def test_a_trillion_samples_take_no_memory_and_the_middle_of_an_epoch_is_asked_for_directly():
    order = Order(10**12, 4096, seed=1, rank=3, world_size=8)
    order.batches(0)[0]  # compiled
    tracemalloc.start()
    batches = order.batches(5, seen=4096 * 10**6)
    first, last = batches[0], batches[-1]
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert torch.equal(first, order.batches(5)[10**6]) and len(last) == 512
    assert len(torch.cat([first, last]).unique()) == 1024


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_batch_is_no_view_of_anything_larger(shuffle):
    for batch in Order(1000, 8, shuffle=shuffle, world_size=2).batches(0)[:3]:
        assert batch.untyped_storage().nbytes() == batch.nbytes


def test_shards_whose_samples_lie_apart_are_groups_all_the_same():
    shard = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 7))
    drawn = ShardedOrder(shard, 2, 5, seed=3).permutation(1)
    assert sorted(drawn.tolist()) == list(range(70))
    visited = list(dict.fromkeys(shard[drawn].tolist()))
    for k in range(0, 70, 14):
        assert set(shard[drawn[k : k + 14]].tolist()) == set(visited[k // 7 : k // 7 + 2])


def test_a_checkpoint_of_another_version_of_the_order_is_refused_in_one_sentence():
    source = ArraySource("black", np.zeros((8, 4, 4, 3), np.uint8))
    pipeline = build_pipeline(source, Views((View("a", 4),)), Order(8, 4))
    pipeline.load_state_dict({"epoch": 0, "seen": 0, "samples": 8})  # nothing was shown yet
    next(iter(pipeline))
    state = pipeline.state_dict()
    pipeline.load_state_dict(state)
    old = {name: value for name, value in state.items() if name != "order"}  # before versions there was none
    for other, version in ((old, 1), ({**state, "order": ORDER_VERSION + 1}, ORDER_VERSION + 1)):
        with pytest.raises(UserError, match=f"version {version} of the order.*start a new run"):
            pipeline.load_state_dict(other)


def test_evaluation_order_is_every_image_in_its_place():
    order = Order(10, 4, shuffle=False, drop_last=False)
    assert order.steps() == 3 and torch.equal(torch.cat(order.batches(0)[:]), torch.arange(10))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((10, 11), "larger than the data set of 10"),
        ((10, 0), "positive"),
        ((10, 3, 0, 0, 2), "multiple of the 2 processes"),
    ],
)
def test_bad_batches_are_one_clear_sentence(arguments, words):
    with pytest.raises(UserError, match=words):
        Order(*arguments)
