"""The recipe for one's own images where no paper's fits: when it is taken, how long it trains, what it will need."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile

from saccade import train
from saccade.base.errors import UserError
from saccade.losses.registry import methods
from saccade.pipelines.data import open_data
from saccade.runs import forecast
from saccade.runs.config import Config, resolve
from saccade.runs.flags import parse_flags
from saccade.runs.forecast import told_forecast
from saccade.runs.session import Session
from tests.images import PHOTOS


def resolved(path: Path, *arguments: str, images: int = 200, size: int = 32) -> Config:
    file = path / f"{images}-{size}.npz"
    if not file.exists():
        np.savez(file, images=np.zeros((images, size, size, 3), np.uint8))
    flags = parse_flags(["--data", str(file), "--device", "cpu", *arguments])
    return resolve(flags, open_data(str(file))[0], path / "run")


@pytest.mark.parametrize("method", sorted(methods()))
def test_it_is_taken_for_images_of_ones_own_on_a_cpu_whatever_the_method(tmp_path, method):
    recipe = resolved(tmp_path, "--method", method).recipe
    assert (recipe.data, recipe.image_size, recipe.epochs) == ("small", 32, 200)
    assert recipe.backbone.name == "test_resnet" and recipe.batch_size * 4 <= 200
    assert recipe.schedule.options["warmup_epochs"] <= 0.1 * recipe.epochs


def test_what_the_user_names_is_followed(tmp_path):
    assert resolved(tmp_path, "--recipe", "cifar10").recipe.backbone.name == "resnet18"
    assert "small" in resolved(tmp_path, "--recipe", "cifar10").recipe.proposals.get("data", "small")
    named = resolved(tmp_path, "--backbone", "resnet18", "--epochs", "7", "--batch-size", "16", size=64).recipe
    assert (named.backbone.name, named.backbone.stem, named.epochs, named.batch_size) == ("resnet18", "plain", 7, 16)
    assert resolved(tmp_path, "--backbone", "resnet18").recipe.backbone.stem == "cifar"
    assert resolved(tmp_path, "--set", "schedule.options.warmup_epochs=30").recipe.schedule.options == {
        "warmup_epochs": 30.0
    }
    assert resolved(tmp_path, "--recipe", "small", "--image-size", "48").recipe.image_size == 48


@pytest.mark.parametrize("length", [["--epochs", "3"], ["--steps", "20"], ["--steps", "4000"], []])
def test_the_warm_up_is_at_most_a_tenth_of_the_run(tmp_path, length):
    config = resolved(tmp_path, *length)
    recipe = config.recipe
    steps = config.steps or recipe.epochs * (200 // recipe.batch_size)
    assert recipe.schedule.options["warmup_epochs"] * (200 // recipe.batch_size) <= 0.1 * steps + 1e-3


def test_many_images_are_seen_less_often_and_large_ones_are_made_small(tmp_path):
    assert resolved(tmp_path, images=3200, size=16).recipe.epochs == 50
    assert resolved(tmp_path, size=80).recipe.image_size == 64


def test_a_batch_that_memory_does_not_hold_is_refused_before_anything_is_made(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "x.npz", images=np.zeros((600, 32, 32, 3), np.uint8))
    out = tmp_path / "run"
    command = ["--data", str(tmp_path / "x.npz"), "--out", str(out), "--steps", "300", "--device", "cpu"]
    monkeypatch.setattr(forecast, "free_memory", lambda device: 50e6)
    assert train.main(command) == 2
    words = capsys.readouterr().err
    assert "50.0 MB are free" in words and "--accumulate" in words and not out.exists()
    parts = int(words.partition("--accumulate ")[2].split()[0])
    monkeypatch.setattr(train, "train", lambda *_: 0)
    assert train.main([*command, "--accumulate", str(parts)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "forecast" in line)
    assert "about" in line and "MB; trains 75 epochs of 600 images" in line


def test_memory_that_is_kept_beside_the_step_is_counted_and_named(tmp_path, monkeypatch):
    flags = ["--data", str(PHOTOS), "--steps", "3000", "--device", "cpu", "--cache", "ram"]
    source = open_data(str(PHOTOS))[0]
    config = resolve(parse_flags([*flags, "--batch-size", "4"]), source, tmp_path / "run")
    decoded = sum(source.read(i).nbytes for i in range(len(source)))
    with Session(config, Accelerator(cpu=True), source) as session:
        plain, more = forecast.forecast(session), forecast.forecast(session, 3e9)
        assert plain is not None and more is not None
        assert plain.kept[forecast.CACHE] == pytest.approx(decoded, rel=0.01)
        assert more.bytes - plain.bytes == 3e9
        monkeypatch.setattr(forecast, "free_memory", lambda device: 4e9)
        assert ", of it 3.0 GB for images that kNN is measured on; trains" in str(told_forecast(session, 3e9))
        monkeypatch.setattr(forecast, "free_memory", lambda device: 3e9)
        with pytest.raises(UserError, match=r"of it 3.0 GB for images .* are free; give --eval-every 0, "):
            told_forecast(session, 3e9)


@pytest.mark.slow
def test_what_a_pass_keeps_is_what_torchs_profiler_sees_allocated(tmp_path):
    config = resolved(tmp_path, "--backbone", "resnet18", "--batch-size", "64", "--steps", "300", size=64)
    with Session(config, Accelerator(cpu=True), open_data(config.data)[0]) as session:
        kept = forecast.probe(session, 8)[1]
        learner, views = session.learner.train(), [torch.rand(8, 3, 64, 64) for _ in config.recipe.views]
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            held = [learner.student(view).projection for view in views]
    grown = sum(event.self_cpu_memory_usage for event in seen.key_averages())
    assert len(held) == 2 and 0.8 < kept / grown < 1.25
