"""CACR with a queue against the original (its caching defect included), per view, and on two ranks."""

import pytest
import torch

from saccade.base.errors import UserError
from saccade.losses.cacr_queue import cacr_queue_loss
from saccade.losses.functional import normalise
from saccade.models.gather import rank
from saccade.models.queue import KeyQueue
from tests.distributed import dealt, run_ranks
from tests.reference_values import assert_close, load_reference

CASES = ["cacr_mocov2_case1", "cacr_mocov2_case3"]


def _settings(r: dict) -> dict:
    return {
        "t_pos": float(r["tau_pos"]),
        "t_neg": float(r["tau_neg"]),
        "alpha": float(r["alpha"]),
        "beta": float(r["beta"]),
    }


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", ["original", "per_view"])
def test_reference_loss_parts_and_gradient(name, form):
    r = load_reference(name)
    raw = r["q_raw"].requires_grad_()
    loss, parts = cacr_queue_loss(
        normalise(raw).unbind(0),
        normalise(r["k_raw"]).unbind(0),
        r["queue"],
        **_settings(r),
        intra_batch=bool(r["intra_batch"]),
        queue_cache_quirk=form == "original",
    )
    loss.backward()
    assert_close(parts["attraction"], r["loss1_attraction"], 1e-12)
    assert_close(parts["repulsion"], r[f"loss2_repulsion_{form}"], 1e-12)
    assert_close(loss, r[f"loss_total_{form}"], 1e-12)
    assert_close(raw.grad, r[f"grad_q_raw_{form}"], 1e-12)


@pytest.mark.parametrize("name", CASES)
def test_reference_last_view_enters_the_queue(name):
    r = load_reference(name)
    queue = KeyQueue(*r["queue"].shape).double()
    queue.keys.copy_(r["queue"].t())
    queue.enqueue(normalise(r["k_raw"][-1]))
    assert_close(queue.columns, r["queue_after"], 1e-12)
    assert int(queue.pointer) == int(r["queue_ptr_after"])


def _on_a_rank(r: dict) -> dict:
    n = int(r["per_rank"])
    q, k = (normalise(r[name][:, rank() * n : (rank() + 1) * n]) for name in ("q_raw", "k_raw"))
    queue = KeyQueue(*r["queue"].shape).double()
    queue.keys.copy_(r["queue"].t())
    _, parts = cacr_queue_loss(q.unbind(0), k.unbind(0), queue.columns, **_settings(r), queue_cache_quirk=True)
    queue.enqueue(k[-1])
    return parts | {"columns": queue.columns.contiguous(), "pointer": queue.pointer}


def test_reference_two_ranks():
    r = load_reference("cacr_mocov2_dist2_case1")
    block = int(r["per_rank"]) * 2
    r["queue_after"][:, :block] = r["queue_after"][:, :block][:, dealt(block)]
    for index, result in enumerate(run_ranks(_on_a_rank, r)):
        assert_close(result["attraction"], r["loss1_per_rank"][index], 1e-12)
        assert_close(result["repulsion"], r["loss2_original_per_rank"][index], 1e-12)
        assert_close(result["columns"], r["queue_after"], 1e-12)
        assert int(result["pointer"]) == int(r["queue_ptr_after"])


def _unit(seed: int, *shape: int) -> torch.Tensor:
    return normalise(torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def test_without_intra_batch_negatives_it_is_a_loop_over_the_queue():
    q, k, queue = _unit(0, 3, 4, 6), _unit(1, 3, 4, 6), _unit(2, 10, 6)
    _, parts = cacr_queue_loss(q.unbind(0), k.unbind(0), queue.t(), t_neg=1.5, beta=2.0, intra_batch=False)
    expected = 0.0
    for x in range(3):
        for i in range(4):
            s = torch.stack([(q[x, i] - key).square().sum() for key in queue])
            u = torch.exp(-1.5 * s) / torch.exp(-1.5 * s).sum()
            expected -= 2.0 * (u * s).sum() / (3 * 4)
    assert_close(parts["repulsion"], expected, 1e-12)


def test_views_that_do_not_pair_are_refused():
    with pytest.raises(UserError, match="same 2 or more views"):
        cacr_queue_loss(_unit(0, 3, 4, 6).unbind(0), _unit(1, 2, 4, 6).unbind(0), _unit(2, 6, 8))
