"""The momentum teacher in isolation; whole training sequences with it are in tests/losses/test_steps.py."""

import pytest
import torch
from torch import nn

from saccade.base.errors import UserError
from saccade.models.momentum import MomentumTeacher


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def _moved(student: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    return student


def test_update_is_the_weighted_mean_of_parameters_only():
    student = _network()
    teacher = MomentumTeacher(student)
    before = [p.clone() for p in teacher.parameters()]
    _moved(student)(torch.randn(8, 3))  # moves the student's running statistics too
    teacher.update(student, 0.9)
    for old, mine, theirs in zip(before, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine, 0.9 * old + 0.1 * theirs)
    assert not teacher.network.get_buffer("1.running_mean").any()


def test_momentum_one_stays_and_zero_copies():
    student = _network()
    teacher = MomentumTeacher(student)
    before = [p.clone() for p in teacher.parameters()]
    _moved(student)
    teacher.update(student, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    teacher.update(student, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))


def test_teacher_shares_nothing_and_needs_no_gradient():
    student = _network()
    teacher = MomentumTeacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert {p.data_ptr() for p in student.parameters()}.isdisjoint(p.data_ptr() for p in teacher.parameters())
    assert not teacher(torch.randn(8, 3, requires_grad=True)).requires_grad
    assert teacher.network[1].num_batches_tracked == 1 and student[1].num_batches_tracked == 0


def test_another_network_or_momentum_is_refused():
    teacher = MomentumTeacher(_network())
    with pytest.raises(UserError, match=r"momentum is 1.1"):
        teacher.update(_network(), 1.1)
    with pytest.raises(UserError, match=r"0.bias"):
        teacher.update(nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4)), 0.9)
