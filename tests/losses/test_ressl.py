"""ReSSL against the original: single and several crops, the queue, two ranks."""

import pytest
import torch

from saccade.base.errors import UserError
from saccade.losses.functional import normalise
from saccade.losses.ressl import ressl_loss
from saccade.models.gather import rank
from saccade.models.queue import KeyQueue
from tests.distributed import dealt, run_ranks
from tests.reference_values import assert_close, load_reference

CASES = {  # name: tolerance of losses, of gradients
    "ressl_case1_b8_k32_t0.04_f64": (1e-12, 1e-12),
    "ressl_case2_b32_k128_t0.04_f32": (2e-7, 1e-6),
    "ressl_case4_b4_k64_t0.02_f64": (1e-12, 1e-12),
    "ressl_multicrop5_b4_k16_t0.04_f64": (1e-12, 1e-12),
}


def _queue(columns: torch.Tensor) -> KeyQueue:
    queue = KeyQueue(columns.shape[0], columns.shape[1]).to(columns.dtype)
    queue.keys.copy_(columns.t())
    return queue


@pytest.mark.parametrize("name", CASES)
def test_reference_loss_gradients_and_queue(name):
    r = load_reference(name)
    loss_tolerance, grad_tolerance = CASES[name]
    crops = [""] if "z_student" in r else [str(c) for c in range(int(r["n_crops"]))]
    raw = [r[f"z_student{c}"].requires_grad_() for c in crops]
    student, teacher, queue = [normalise(z) for z in raw], normalise(r["z_teacher"]), _queue(r["queue_before"])
    loss = ressl_loss(student, teacher, queue.columns, float(r["t_student"]), float(r["t_teacher"]))
    assert_close(torch.cat(student) @ queue.columns, r["logits_student"], grad_tolerance)
    assert_close((teacher @ queue.columns).repeat(len(crops), 1), r["logits_teacher"], grad_tolerance)
    loss.backward()
    queue.enqueue(teacher)
    assert_close(loss, r["loss"], loss_tolerance)
    for c, z in zip(crops, raw, strict=True):
        assert_close(z.grad, r[f"grad_z_student{c}"], grad_tolerance)
    assert_close(queue.columns, r["queue_after"], grad_tolerance)
    assert int(queue.pointer) == int(r["ptr_after"])


def _on_a_rank(r: dict) -> dict:
    rows = slice(rank() * len(r["z_student"]) // 2, (rank() + 1) * len(r["z_student"]) // 2)
    z, teacher = r["z_student"][rows].clone().requires_grad_(), normalise(r["z_teacher"][rows])
    queue = _queue(r["queue_before"])
    loss = ressl_loss([normalise(z)], teacher, queue.columns, float(r["t_student"]), float(r["t_teacher"]))
    loss.backward()
    queue.enqueue(teacher)
    return {"loss": loss.detach(), "grad": z.grad, "columns": queue.columns.contiguous(), "pointer": queue.pointer}


def test_reference_two_ranks():
    r = load_reference("ressl_dist_w2")
    ranks = run_ranks(_on_a_rank, r)
    assert_close(torch.stack([x["loss"] for x in ranks]), r["loss_per_rank"], 1e-12)
    assert_close(torch.cat([x["grad"] for x in ranks]), r["grad_z_student_per_rank_concat"], 1e-12)
    block = len(r["z_teacher"])
    r["queue_after"][:, :block] = r["queue_after"][:, :block][:, dealt(block)]
    for x in ranks:
        assert_close(x["columns"], r["queue_after"], 1e-12)
        assert int(x["pointer"]) == int(r["ptr_after"])


def test_the_teacher_and_the_queue_get_no_gradient():
    student, teacher, queue = (normalise(torch.randn(4, 6)).requires_grad_() for _ in range(3))
    ressl_loss([student], teacher, queue.t()).backward()
    assert student.is_leaf and student.grad is not None and teacher.grad is None and queue.grad is None


def test_the_queue_may_be_filled_after_backward_only():
    student, teacher = normalise(torch.randn(4, 6)).requires_grad_(), normalise(torch.randn(4, 6))
    queue = KeyQueue(6, 8)
    loss = ressl_loss([student], teacher, queue.columns)
    queue.enqueue(teacher)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(("name", "value"), [("t_student", 0), ("t_teacher", -1)])
def test_a_temperature_that_is_none_is_refused(name, value):
    with pytest.raises(UserError, match=f"{name} is {value}"):
        ressl_loss([torch.eye(3)], torch.eye(3), torch.eye(3), **{name: value})


@pytest.mark.parametrize("crops", [1, 5])
def test_backward_keeps_the_queue_itself_and_one_matrix_of_logits_a_crop(crops):
    """131,072 keys: no copy of the queue; each crop's log-softmax, and once the targets."""
    queue, batch = KeyQueue(16, 131072), 4
    students = [torch.randn(batch, 16, requires_grad=True) for _ in range(crops)]
    saved = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        return saved.setdefault(t.untyped_storage().data_ptr(), t)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        ressl_loss([normalise(z) for z in students], normalise(torch.randn(batch, 16)), queue.columns)
    assert saved.pop(queue.keys.data_ptr()) is not None
    assert sum(t.numel() >= batch * 131072 for t in saved.values()) == crops + 1
