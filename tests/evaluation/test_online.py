"""What measuring costs while a run trains: a share of the run, said; nothing where it is turned off."""

from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator

from saccade import train
from saccade.evaluation import online
from saccade.evaluation.online import OnlineKNN
from saccade.pipelines.data import open_data
from saccade.runs.config import resolve
from saccade.runs.flags import parse_flags
from saccade.runs.session import Session

SMALL = ["--method", "simclr", "--device", "cpu", "--workers", "1", "--image-size", "32", "--recipe", "cifar10"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("online"), {}
    images = np.random.default_rng(0).integers(0, 256, (6000, 8, 8, 3), dtype=np.uint8)
    for name, more in {"labelled": {"labels": np.arange(6000) % 10}, "unlabelled": {}}.items():
        made[name] = str(folder / f"{name}.npz")
        np.savez(made[name], images=images, **more)
    return made


def judge(data: str, *flags: str) -> tuple[OnlineKNN, Session]:
    arguments = parse_flags(["--data", data, *SMALL, *flags])
    source = open_data(data)[0]
    session = Session(resolve(arguments, source, Path("run")), Accelerator(cpu=True), source)
    return OnlineKNN(session, None), session


def measured(judge: OnlineKNN) -> int:
    """Images of one measuring, on all sets."""
    return sum(map(len, judge._sets))


def test_measuring_is_a_fifth_of_a_short_runs_passes(data):
    found, session = judge(data["labelled"], "--backbone", "resnet18", "--steps", "20", "--batch-size", "64")
    passes = 20 * 64 * 2 * 2  # of two views, where a view costs a forward pass and a backward one, counted as one
    assert 0.15 * passes < 2 * measured(found) <= 0.2 * passes and found.times == 1
    assert "at most 20% of the run's passes" in found._fewer
    session.pipeline.close()


def test_a_longer_run_is_measured_on_more_and_more_often(data):
    found, session = judge(data["labelled"], "--backbone", "resnet18", "--steps", "2000", "--batch-size", "64")
    assert measured(found) == 6000 and found.times == int(0.2 * 2000 * 64 * 4 / 6000) - 1 and not found._fewer
    session.pipeline.close()


def test_a_network_that_costs_next_to_nothing_is_measured_on_a_thousand(data):
    found, session = judge(data["labelled"], "--backbone", "test_resnet", "--steps", "2", "--batch-size", "16")
    assert [len(source) for source in found._sets] == [1000, 1000]
    session.pipeline.close()


def test_what_was_asked_for_is_not_cut(data):
    found, session = judge(data["labelled"], "--backbone", "resnet18", "--steps", "6", "--eval-every", "1")
    assert measured(found) == 6000 and found.times is None
    session.pipeline.close()


def test_the_search_for_an_images_other_view_is_bounded_alike(data, monkeypatch):
    asked = []
    monkeypatch.setattr(online, "own_view_found", lambda b, source, *_: asked.append(len(source)) or ([], []))
    for steps in ("6", "2000"):
        found, session = judge(data["unlabelled"], "--backbone", "resnet18", "--batch-size", "64", "--steps", steps)
        found._own_views(found._backbone)
        session.pipeline.close()
    assert 0.2 * 6 * 64 * 4 / 4 <= asked[0] < 100 and asked[1] == 500  # some seconds are for nothing


@pytest.mark.parametrize("labels", ["labelled", "unlabelled"])
def test_turned_off_it_measures_nothing(data, monkeypatch, tmp_path, labels):
    for name in ("extract", "raw_pixels", "own_view_found", "knn_ranks"):
        monkeypatch.setattr(online, name, lambda *_, **__: pytest.fail("measured"))
    flags = ["--backbone", "test_resnet", "--batch-size", "16", "--steps", "1", "--eval-every", "0", "--no-report"]
    assert train.main(["--data", data[labels], *SMALL, *flags, "--out", str(tmp_path / "run")]) == 0


def test_large_photos_are_measured_on_as_many_as_are_read_in_seconds(data, monkeypatch):
    sides = np.array([6000, 8000])
    monkeypatch.setattr("saccade.pipelines.sources.arrays.ArrayReader.size", lambda *_: tuple(sides.tolist()))
    found, session = judge(data["labelled"], "--backbone", "test_resnet", "--steps", "2", "--batch-size", "16")
    assert [len(source) for source in found._sets] == [25, 25]
    sides //= 5
    assert len(OnlineKNN(session, None)._sets[0]) == int(1e9 / sides.prod() / 2)
    session.pipeline.close()
