"""The key queue: order, wrapping, two ranks. Its reference sequences are in tests/losses."""

import pytest
import torch
import torch.nn.functional as F

from saccade.base.errors import UserError
from saccade.models.gather import rank
from saccade.models.queue import KeyQueue
from tests.distributed import dealt, run_ranks


def _keys(n: int, dim: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_starts_with_unit_columns_drawn_from_the_generator():
    queue = KeyQueue(5, 12, torch.Generator().manual_seed(3))
    assert queue.columns.shape == (5, 12)
    torch.testing.assert_close(queue.columns.norm(dim=0), torch.ones(12))
    assert torch.equal(queue.keys, KeyQueue(5, 12, torch.Generator().manual_seed(3)).keys)


def test_holds_the_last_keys_after_wrapping_and_survives_a_reload():
    queue = KeyQueue(4, 6)
    blocks = [_keys(2, 4, seed) for seed in range(4)]
    for block in blocks:
        queue.enqueue(block)
    assert torch.equal(queue.columns, torch.cat([blocks[3], blocks[1], blocks[2]]).t())
    resumed = KeyQueue(4, 6)
    resumed.load_state_dict(queue.state_dict())
    for q in (queue, resumed):
        q.enqueue(blocks[0])
    assert torch.equal(queue.keys, resumed.keys)


def test_enqueue_moves_no_memory_and_takes_half_precision():
    queue = KeyQueue(4, 6)
    address = queue.keys.data_ptr()
    queue.enqueue(_keys(3, 4, 0).bfloat16())
    assert queue.keys.data_ptr() == address == queue.columns.data_ptr()
    assert queue.keys.dtype == torch.float32


def _enqueue_on_a_rank() -> torch.Tensor:
    queue = KeyQueue(4, 8, torch.Generator().manual_seed(0))
    for step in range(3):
        queue.enqueue(_keys(2, 4, 10 * step + rank()))
    return queue.keys


def test_ranks_hold_the_same_queue_in_the_order_of_the_batch():
    first, second = run_ranks(_enqueue_on_a_rank)
    assert torch.equal(first, second)
    step = [torch.cat([_keys(2, 4, 10 * step), _keys(2, 4, 10 * step + 1)])[dealt(4)] for step in range(3)]
    assert torch.equal(first, torch.cat([step[2], step[1]]))


def test_a_size_that_is_no_multiple_of_the_batch_is_refused():
    with pytest.raises(UserError, match=r"queue of 8 keys.*batches of 3"):
        KeyQueue(4, 8).enqueue(_keys(3, 4, 0))
