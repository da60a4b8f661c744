"""examples/ run as their first lines say; a method and a backbone of one's own, from a file, a module, a package."""

import json
import re
import runpy
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

import saccade
from saccade import eval as program
from saccade import train
from saccade.base import own
from saccade.evaluation.subject import open_subject, with_encoder
from saccade.losses import registry
from saccade.losses.registry import find_method, methods
from saccade.models import backbone
from saccade.tools import parity

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


def test_a_run_knows_which_network_its_own_method_exported(tmp_path, data):
    text = Path(METHOD).read_text().replace('"barlow"', '"followed"')
    teacher = '    evaluate_teacher = True\n    teacher_views = ("view_1",)\n    momentum = lambda self, step: 0.9\n'
    views = '    student_views = ("view_1", "view_2")\n'
    (tmp_path / "followed.py").write_text(text.replace(views, views + teacher))
    out = tmp_path / "run"
    flags = ["--method", str(tmp_path / "followed.py"), "--backbone", "test_resnet", "--steps", "1"]
    assert run(*flags, data=data, out=out) == 0
    registry._OWN.clear()  # as in a process of its own
    subject = open_subject(out)
    assert subject.network == "teacher" and with_encoder(subject, "student")[0].network == "student"


def test_an_operation_from_a_file_is_on_the_views(data, tmp_path, capsys):
    setting = f"views.view_1.operations+={EXAMPLES / 'own_operation.py'}:Vignette"
    out = tmp_path / "run"
    assert run("--set", setting, "--backbone", "test_resnet", "--steps", "1", data=data, out=out) == 0
    assert json.loads((out / "config.json").read_text())["recipe"]["views"]["views"][0]["operations"][-1] == {
        "name": "vignette",
        "p": 0.5,
        "strength": [0.3, 0.9],
    }
    assert parity.main(["--operation", setting.partition("=")[2], "--executor", "resident", "--images", "2"]) == 0
    assert re.search(r"^vignette +0\.00\d/0\.0", capsys.readouterr().out, re.MULTILINE)


def test_lightlys_loss_trains_on_our_views(data, tmp_path):
    pytest.importorskip("lightly")
    out = tmp_path / "run"
    method = str(EXAMPLES / "lightly_loss.py")
    assert run("--method", method, "--backbone", "test_resnet", "--steps", "3", data=data, out=out) == 0
    losses = [json.loads(line).get("loss") for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] > 0


def test_a_record_that_names_code_is_not_followed_until_it_is_named_again(own_run, capsys):
    assert train.main(["--resume", str(own_run)]) == 2
    assert f"say so: --method {METHOD} --backbone {BACKBONE}." in capsys.readouterr().err
    assert train.main(["--resume", str(own_run), "--method", METHOD]) == 2
    assert f"say so: --backbone {BACKBONE}." in capsys.readouterr().err
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


def test_a_backbone_that_an_installed_package_offers_has_a_name(tmp_path, monkeypatch):
    text = Path(BACKBONE.partition(":")[0]).read_text()
    (tmp_path / "my_backbones.py").write_text(text.replace("def four_conv", "def offered_conv"))
    monkeypatch.syspath_prepend(tmp_path)
    offered = EntryPoint("offered_convolutions", "my_backbones", "saccade.backbones")
    monkeypatch.setattr(own, "entry_points", lambda group: [offered] if group == "saccade.backbones" else [])
    backbone._offered.cache_clear()
    spec = backbone.BackboneSpec("offered_convolutions")
    assert backbone.feature_size(backbone.create_backbone(spec, 32), 32) == 128
    backbone._offered.cache_clear()


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
    assert saccade.load_backbone(str(trained.folder))[1]["method"] == "simclr"
    again = saccade.pretrain(method="simclr", out=tmp_path / "other", set={"options.temperature": 0.5}, **flags)
    assert all(
        (a == b).all() for a, b in zip(again.backbone().parameters(), trained.backbone().parameters(), strict=True)
    )
    with pytest.raises(saccade.UserError, match="did you mean batch_size"):
        saccade.pretrain(batchsize=3)
    with pytest.raises(saccade.UserError, match="--lr"):
        saccade.pretrain(lr=-1)
