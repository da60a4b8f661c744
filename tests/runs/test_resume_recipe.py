"""A resumed run goes on with its checkpoint's recipe, whatever code, flags and files of the folder say by then."""

import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from saccade import train
from saccade.losses import registry
from saccade.runs.checkpoint import load_checkpoint, newest

SMALL = ["--method", "simclr", "--backbone", "test_resnet", "--batch-size", "12", "--device", "cpu", "--workers", "1"]
MORE = ["--steps", "4", "--eval-every", "0", "--log-every", "1", "--checkpoint-every", "2", "--lr", "0.05"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.npz"
    images = np.random.default_rng(0).integers(0, 256, (48, 16, 16, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(48) % 4)
    return path


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    settings = ["--set", "views.view_1.operations+=erase", "--set", "options.temperature=0.3"]
    assert train.main(["--data", str(data), "--out", str(out), *SMALL, *MORE, *settings]) == 0
    return out


@pytest.fixture
def stopped(finished, tmp_path) -> Path:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    next((out / "checkpoints").glob("step-00000004*")).unlink()
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder)["learner"]


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def edit(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))


def test_the_folders_recipe_runs_the_same_again(finished, tmp_path):
    assert json.loads((finished / "config.json").read_text())["recipe_file"] == "recipe.toml"
    again = tmp_path / "again"
    machine = ["--device", "cpu", "--workers", "1", "--eval-every", "0", "--log-every", "1"]
    assert train.main(["--recipe", str(finished / "recipe.toml"), *machine, "--out", str(again)]) == 0
    assert losses(again) == losses(finished) and len(losses(again)) == 4
    assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in weights(finished).items())
    first, second = (tomllib.loads((folder / "recipe.toml").read_text()) for folder in (finished, again))
    assert first == second


def test_defaults_that_changed_since_do_not_change_a_resumed_run(finished, stopped, monkeypatch):
    method = registry.find_method("simclr")

    def other(name, image_size=None):
        recipe = method.recipe(name, image_size)
        return replace(recipe, options=replace(recipe.options, temperature=9.0), epochs=3, batch_norm="local")

    newer = replace(method)
    object.__setattr__(newer, "recipe", other)
    monkeypatch.setattr(registry, "methods", lambda: {**methods, "simclr": newer})
    methods = {"simclr": newer}
    assert train.main(["--resume", str(stopped)]) == 0
    assert all(torch.equal(tensor, weights(stopped)[name]) for name, tensor in weights(finished).items())


@pytest.mark.parametrize(
    "flags",
    [
        ["--set", "views.view_1.operations+=erase", "--set", "options.temperature=0.3"],
        ["--lr", "0.05", "--batch-size", "12", "--method", "simclr", "--backbone", "test_resnet", "--steps", "4"],
        pytest.param(["--set", "batch_norm=sync"], marks=pytest.mark.slow),  # not written then; the recipe has it
    ],
)
def test_what_is_so_already_may_be_said_again(finished, stopped, flags):
    assert train.main(["--resume", str(stopped), *flags]) == 0
    assert losses(stopped) == losses(finished)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--lr", "0.01"],
            "drop --lr 0.01, or say --allow-changes (optimizer.lr is 0.01 on the command line and 0.05 in",
        ),
        (
            ["--set", "options.temperature=0.4"],
            "options.temperature is 0.4 on the command line and 0.3 in the checkpoint",
        ),
        (["--set", "views.view_2.flip=0"], "drop --set views.view_2.flip=0"),
        (["--epochs", "3"], "--steps and --epochs both"),
        (["--seed", "1"], "drop --seed 1: it was 0"),
        (["--method", "byol"], "the run is of simclr; drop --method byol"),
        (["--image-size", "32"], "views.view_1.size is 32"),
    ],
)
def test_flags_that_differ_are_listed_and_refused(stopped, flags, words, capsys):
    before = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()}
    assert train.main(["--resume", str(stopped), *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) == 1
    assert {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("recipe.toml", "temperature = 0.3", "temperature = 0.5", "temperature is 0.5 in recipe.toml and 0.3 in the"),
        ("recipe.toml", "grey = {", "blur = {p = 0.5}\ngrey = {", 'operations is ["jitter", "blur", "grey", "erase"]'),
        ("recipe.toml", "seed = 0", "seed = 5", "--seed is 5 in recipe.toml and 0 in the checkpoint"),
        ("recipe.toml", "temperature = 0.3", "temprature = 0.3", "did you mean temperature"),
        ("config.json", '"temperature": 0.3', '"temperature": 0.5', "temperature is 0.5 in config.json and 0.3 in the"),
        ("config.json", '"seed": 0', '"seed": 5', "--seed is 5 in config.json and 0 in the checkpoint"),
        ("config.json", '"method": "simclr"', '"method": 3', "config.json"),
        (
            "config.json",
            '"lr": 0.05,\n    "set"',
            '"lr": 0.5,\n    "set"',
            "its flags say lr 0.5, the run was started with 0.05",
        ),
    ],
)
def test_edited_files_of_the_folder_are_listed_and_refused(stopped, file, old, new, words, capsys):
    edit(stopped / file, old, new)
    assert train.main(["--resume", str(stopped)]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) == 1


def test_data_edited_in_one_place_of_config_json_is_not_ignored(stopped, data, capsys):
    record = json.loads((stopped / "config.json").read_text())
    (stopped / "config.json").write_text(json.dumps(record | {"data": "/elsewhere"}))
    assert train.main(["--resume", str(stopped)]) == 2
    assert f'--data is "/elsewhere" in config.json and "{data}"' in capsys.readouterr().err
    (stopped / "config.json").write_text(json.dumps(record | {"data": "pipe:touch /tmp/x"}))
    assert train.main(["--resume", str(stopped), "--allow-changes"]) == 2
    assert "if you trust it, say so" in capsys.readouterr().err


def test_allowed_changes_are_followed_said_and_recorded(stopped, finished, capsys):
    edit(stopped / "recipe.toml", "temperature = 0.3", "temperature = 0.5")
    assert train.main(["--resume", str(stopped), "--lr", "0.01", "--allow-changes"]) == 0
    said = "optimizer.lr is 0.01 on the command line and 0.05 in the checkpoint"
    assert f"changed at step 2: options.temperature is 0.5 in recipe.toml and 0.3 in the checkpoint; {said}" in (
        capsys.readouterr().out
    )
    record = json.loads((stopped / "config.json").read_text())
    assert (record["recipe"]["optimizer"]["lr"], record["recipe"]["options"]["temperature"]) == (0.01, 0.5)
    assert said in record["changes"]["2"] and record["flags"]["lr"] == 0.01 and "account" in record
    assert tomllib.loads((stopped / "recipe.toml").read_text())["optimizer"]["lr"] == 0.01
    assert losses(stopped)[:2] == losses(finished)[:2] and losses(stopped)[2:] != losses(finished)[2:]
    next((stopped / "checkpoints").glob("step-00000004*")).unlink()  # the one of step 2 knows of them too
    assert train.main(["--resume", str(stopped), "--lr", "0.01"]) == 0
    assert train.main(["--resume", str(stopped), "--lr", "0.05"]) == 2


@pytest.mark.slow
def test_a_run_that_diverged_goes_on_from_its_checkpoint_with_another_rate(data, tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--data", str(data), "--out", str(out), *SMALL, *MORE[:-1], "0.001", "--steps", "4"]
    assert train.main(flags) == 0
    next((out / "checkpoints").glob("step-00000004*")).unlink()
    assert train.main(["--resume", str(out), "--lr", "1e30", "--allow-changes"]) == 2
    assert "diverged" in capsys.readouterr().err
    assert train.main(["--resume", str(out), "--lr", "0.001", "--allow-changes"]) == 0


def test_a_checkpoint_without_a_recipe_is_one_sentence(stopped, capsys, monkeypatch):
    found = newest(stopped)
    del found.state["recipe"]
    monkeypatch.setattr("saccade.runs.resume.newest", lambda *a, **k: found)
    assert train.main(["--resume", str(stopped)]) == 2
    assert "holds no recipe" in capsys.readouterr().err
