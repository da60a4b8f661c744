"""What tools.bench and tools.doctor say before they measure, and what they change so that it stays true."""

import re
import time

import numpy as np
import pytest
import torch

from saccade.base.errors import UserError
from saccade.runs.forecast import Cost
from saccade.tools import bench, doctor
from saccade.tools.benchmark import forecast
from saccade.tools.benchmark.forecast import FittingBatch, Part, Turn, planned, step_turns
from saccade.tools.benchmark.measure import Contender, measure
from saccade.tools.benchmark.rows import Row, read_rows
from saccade.tools.benchmark.suites import noise
from saccade.tools.benchmark.trainer import Trainer

CPU = torch.device("cpu")
FLAGS = ["--method", "simclr", "--recipe", "cifar10", "--backbone", "test_resnet", "--image-size", "16"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "set.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (1100, 16, 16, 3), dtype=np.uint8))
    return str(path)


def test_a_forecast_is_as_long_as_its_turns_then_last():
    def work():
        while True:
            time.sleep(0.05)
            yield 1

    made = [Contender(Row("loader", "a", "r", "d", "cpu", 1, 1, 1), work) for _ in range(2)]
    part = Part(lambda: made, [Turn(0.05, 0.05)] * 2)
    said = planned([part], 3, 0.2, float("inf"))
    start = time.monotonic()
    measure(part.make(), CPU, part.rounds, 0.2, part.budget)
    assert 0.7 < (time.monotonic() - start) / part.lasts(0.2) < 2 and "8 turns of" in said


def test_turns_that_cannot_be_short_are_fewer_and_it_is_said():
    short, long = (Part(list, [Turn(s, s)] * 2) for s in (1.0, 60.0))
    said = planned([short, long], 5, 2.0, float("inf"))
    assert short.rounds == 5 and long.rounds == 0  # of which the first, uncounted round is what counts
    assert "14 turns of 3 to 120 s" in said and "1 instead of 5 rounds" in said


@pytest.mark.parametrize(
    ("cost", "batch"),
    [
        (Cost(0.03, 1e6, 1e3), 128),  # 2 x 2 s at 30 ms an image
        (Cost(1e-5, 1e6, 2.0**30 / 100), 64),  # of 1 GiB
        (Cost(1e-5, 1e6, 1e3), 256),
        (Cost(10.0, 1e6, 1e3), 16),  # no batch is fast
    ],
)
def test_a_recipes_batch_is_halved_until_a_step_fits_into_a_turn_and_into_memory(monkeypatch, cost, batch):
    monkeypatch.setattr(forecast, "step_cost", lambda session: cost)
    monkeypatch.setattr(forecast, "free_memory", lambda device: 2.0**30)
    fitting = FittingBatch(2.0)
    trainer = Trainer([*FLAGS, "--device", "cpu"], noise(1100, 16), fitting=fitting)
    assert trainer.config.recipe.batch_size == trainer.pipeline.order.batch_size == batch
    assert ("the recipe's 256" in fitting.said) == (batch < 256)


def test_halves_fall_into_the_groups_of_batch_norm(monkeypatch):
    monkeypatch.setattr(forecast, "step_cost", lambda session: Cost(10.0, 0.0, 0.0))
    flags = ["--device", "cpu", "--set", "batch_norm=split-32"]
    trainer = Trainer([*FLAGS, *flags], noise(1100, 16), fitting=FittingBatch(2.0))
    assert trainer.config.recipe.batch_size == 32


@pytest.mark.parametrize("flags", [["--batch-size", "256"], ["--set", "batch_size=256"]])
def test_a_batch_that_was_asked_for_stays_and_what_it_costs_is_said(monkeypatch, flags):
    monkeypatch.setattr(forecast, "step_cost", lambda session: Cost(0.1, 0.0, 0.0))
    fitting = FittingBatch(2.0)
    trainer = Trainer([*FLAGS, "--device", "cpu", *flags], noise(1100, 16), fitting=fitting)
    assert trainer.config.recipe.batch_size == 256 and "256 takes about 26 s" in fitting.said


@pytest.mark.parametrize("command", [bench, doctor])
def test_a_batch_that_memory_does_not_hold_is_refused_with_one_that_it_does(monkeypatch, tmp_path, data, command):
    monkeypatch.setattr(forecast, "step_cost", lambda session: Cost(0.0, 0.0, 2.0**20))
    monkeypatch.setattr(forecast, "free_memory", lambda device: 2.0**28)
    argv = [*FLAGS, "--data", data, "--batch-size", "1024"]
    made = ["--json", str(tmp_path / "rows.json")] if command is bench else []
    with pytest.raises(UserError, match=r"1\.1 GB of memory, and 268\.4 MB are free; give --batch-size 128"):
        command.main([*argv, *made])
    assert not list(tmp_path.iterdir())


def test_loaders_that_memory_does_not_hold_are_refused(monkeypatch):
    monkeypatch.setattr(forecast, "available_memory", lambda: 1e9)
    with pytest.raises(UserError, match=r"2\.0 GB of memory, and 1\.0 GB are free"):
        planned([Part(list, [Turn(0.0, 0.0, 1e9, kept=0.5e9)] * 2)], 1, 1.0, float("inf"))


def test_it_is_told_before_the_first_turn_and_the_smaller_batch_is_the_rows(monkeypatch, tmp_path, data, capsys):
    monkeypatch.setattr(forecast, "step_cost", lambda session: Cost(2 / 16 / 1.01, 1e6, 1e3))
    told = []

    def turns(contenders: list[Contender], *_, **__) -> list[Row]:
        told.append(capsys.readouterr().out)
        return [contender.row for contender in contenders]

    monkeypatch.setattr(bench, "measure", turns)
    argv = [*FLAGS, "--data", data, "--seconds", "0.01", "--executors", "resident", "--json", str(tmp_path / "r.json")]
    assert bench.main(argv) == 0
    assert "batches of 16: one of the recipe's 256 takes about 32 s" in told[0]
    assert re.search(r"forecast  about \d.*, \d.* [MG]B: \d+ turns of ", told[0])
    assert {row["batch_size"] for row in read_rows(tmp_path / "r.json")} == {16}


def test_a_plain_loop_takes_a_step_for_each_of_its_workers():
    ours, plain = step_turns(Cost(0.01, 10.0, 1.0), 100, (1, 4), CPU)
    assert (ours.lasts(0.0), plain.lasts(0.0)) == (2.0, 8.0) and Part(list, [ours, plain]).held == 120
