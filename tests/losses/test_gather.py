"""The gather's values and gradients on two real processes, against the same sums written out in one."""

import torch

from saccade.models.gather import (
    all_gather,
    all_gather_no_grad,
    all_reduce_sum,
    all_reduce_sum_with_grad,
    rank,
    world_size,
)
from tests.distributed import dealt, run_ranks


def _rows(rank_index: int) -> torch.Tensor:
    return torch.arange(6, dtype=torch.float64).reshape(2, 3) + 10 * rank_index


def _weights(rank_index: int) -> torch.Tensor:
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(rank_index))


def _gather_and_weigh() -> dict:
    x = _rows(rank()).requires_grad_()
    gathered = all_gather(x)
    (gathered * _weights(rank())).sum().backward()
    return {"gathered": gathered.detach(), "grad": x.grad, "size": world_size()}


def test_gather_has_the_batchs_order_and_the_gradient_of_the_sum_of_all_losses():
    everything = torch.cat([_rows(0), _rows(1)])[dealt(4)].requires_grad_()
    sum((everything * _weights(r)).sum() for r in range(2)).backward()
    for index, result in enumerate(run_ranks(_gather_and_weigh)):
        assert result["size"] == 2
        assert torch.equal(result["gathered"], everything.detach())
        torch.testing.assert_close(result["grad"], everything.grad[index::2], rtol=0, atol=1e-15)


def _reduce_and_weigh() -> dict:
    x = _rows(rank()).requires_grad_()
    total = all_reduce_sum_with_grad(x)
    (total * _weights(rank())[:2]).sum().backward()
    return {"total": total.detach(), "grad": x.grad}


def test_reduce_with_grad_sums_values_and_gradients():
    grad = _weights(0)[:2] + _weights(1)[:2]
    for result in run_ranks(_reduce_and_weigh):
        assert torch.equal(result["total"], _rows(0) + _rows(1))
        torch.testing.assert_close(result["grad"], grad, rtol=0, atol=1e-15)


def _without_grad() -> dict:
    x = _rows(rank()).t().requires_grad_()  # not contiguous
    gathered, total = all_gather_no_grad(x), all_reduce_sum(x)
    return {
        "gathered": gathered,
        "total": total,
        "x": x.detach(),
        "tracked": gathered.requires_grad or total.requires_grad,
    }


def test_no_grad_collectives_take_strided_input_and_leave_it_alone():
    for index, result in enumerate(run_ranks(_without_grad)):
        assert torch.equal(result["gathered"], torch.cat([_rows(0).t(), _rows(1).t()])[dealt(6)])
        assert torch.equal(result["total"], (_rows(0) + _rows(1)).t())
        assert torch.equal(result["x"], _rows(index).t())
        assert not result["tracked"]


def test_one_process_is_the_identity():
    x = _rows(0).requires_grad_()
    assert all_gather(x) is x
    assert torch.equal(all_gather_no_grad(x), x) and not all_gather_no_grad(x).requires_grad
    assert torch.equal(all_reduce_sum(x), x)
    assert (rank(), world_size()) == (0, 1)
