"""examples/ run as their first lines say; a method and a backbone of one's own, from a file, a module, a package."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import saccade
from saccade import eval as program
from saccade import train
from saccade.losses.registry import find_method, methods

EXAMPLES = Path(__file__).parents[1] / "examples"
METHOD, BACKBONE = str(EXAMPLES / "own_method.py"), f"{EXAMPLES / 'own_backbone.py'}:four_convolutions"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("images") / "train.npz"
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    np.savez(file, images=images, labels=np.arange(64) % 4)
    return str(file)


def run(*flags, data, out):
    return train.main(["--data", data, "--batch-size", "16", "--eval-every", "0", "--out", str(out), *flags])


@pytest.fixture(scope="module")
def own_run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert run("--method", METHOD, "--backbone", BACKBONE, "--steps", "2", data=data, out=out) == 0
    return out


def test_views_in_a_loop_of_ones_own(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pipeline_in_your_own_loop.py"])
    runpy.run_path(str(EXAMPLES / "pipeline_in_your_own_loop.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "step 9: loss" in printed and "Batch(32 of view_1 (3, 32, 32)" in printed


def test_a_method_and_a_backbone_from_files_train_and_are_evaluated_without_the_method(own_run, data, capsys):
    assert program.main([str(own_run), "--backbone", BACKBONE, "--data", data, "--val-data", data]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["backbone"], said["features"]) == ("four_convolutions", 128)


def test_a_record_that_names_code_is_not_followed_until_it_is_named_again(own_run, capsys):
    assert train.main(["--resume", str(own_run)]) == 2
    assert f"say so: --method {METHOD}" in capsys.readouterr().err
    assert train.main(["--resume", str(own_run), "--method", METHOD]) == 2
    assert f"say so: --backbone {BACKBONE}" in capsys.readouterr().err
    assert train.main(["--resume", str(own_run), "--method", METHOD, "--backbone", BACKBONE]) == 0


def test_a_method_in_a_module_beside_the_user(tmp_path, data, monkeypatch):
    (tmp_path / "my_methods.py").write_text(Path(METHOD).read_text().replace('"barlow"', '"mine"'))
    monkeypatch.chdir(tmp_path)
    assert run("--method", "my_methods:mine", "--backbone", "test_resnet", "--steps", "1", data=data, out="run") == 0


def test_a_method_that_an_installed_package_offers_has_a_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "offered.py").write_text(Path(METHOD).read_text().replace('"barlow"', '"offered"'))
    (tmp_path / "offered-1.0.dist-info").mkdir()
    (tmp_path / "offered-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n")
    (tmp_path / "offered-1.0.dist-info" / "entry_points.txt").write_text("[saccade.methods]\noffered = offered\n")
    monkeypatch.syspath_prepend(tmp_path)
    methods.cache_clear()
    try:
        assert "offered" in methods() and find_method("offered").summary.startswith("decorrelate")
        with pytest.raises(SystemExit):
            train.main(["--help"])
        assert "offered" in capsys.readouterr().out
    finally:
        monkeypatch.undo()
        methods.cache_clear()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--method", "nowhere/mine.py"], "there is no file"),
        (["--method", "no_such_module.methods"], "cannot be imported: ModuleNotFoundError"),
        (["--method", "json.tool"], "json.tool defines no METHODS"),
        (["--method", f"{METHOD}:other"], "has no other; it has barlow"),
        (["--method", "barlw"], "or one of your own as path/to/file.py"),
        (["--backbone", f"{EXAMPLES / 'own_backbone.py'}:five"], "registers no five"),
    ],
)
def test_what_is_no_method_or_backbone_is_one_sentence(flags, says, tmp_path, capsys):
    assert train.main([*flags, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_training_from_python_gives_the_run(data, tmp_path):
    flags = {"data": data, "backbone": "test_resnet", "batch_size": 16, "steps": 2, "eval_every": 0}
    trained = saccade.pretrain(method="simclr", out=tmp_path / "run", set={"options.temperature": 0.5}, **flags)
    assert trained.folder == tmp_path / "run" and trained.summary["steps"] == 2 and len(repr(trained)) < 200
    assert json.loads((trained.folder / "config.json").read_text())["recipe"]["options"]["temperature"] == 0.5
    assert trained.backbone().num_features == 96
    again = saccade.pretrain(method="simclr", out=tmp_path / "other", set={"options.temperature": 0.5}, **flags)
    assert all(
        (a == b).all() for a, b in zip(again.backbone().parameters(), trained.backbone().parameters(), strict=True)
    )
    with pytest.raises(saccade.UserError, match="did you mean batch_size"):
        saccade.pretrain(batchsize=3)
    with pytest.raises(saccade.UserError, match="--lr"):
        saccade.pretrain(lr=-1)
