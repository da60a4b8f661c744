"""Every index exactly once, the same for any number of processes, resumable anywhere."""

import pytest
import torch

from saccade.base.errors import UserError
from saccade.pipelines.order import Order
from tests.distributed import dealt


@pytest.mark.parametrize(("samples", "batch"), [(64, 16), (67, 16), (5, 5), (1, 1)])
def test_every_index_at_most_once_and_all_but_the_remainder(samples, batch):
    for epoch in range(3):
        seen = torch.cat(Order(samples, batch, seed=1).batches(epoch))
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
    whole = torch.cat(Order(100, 10, seed=3).batches(5))
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


def test_evaluation_order_is_every_image_in_its_place():
    order = Order(10, 4, shuffle=False, drop_last=False)
    assert order.steps() == 3 and torch.equal(torch.cat(order.batches(0)), torch.arange(10))


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
