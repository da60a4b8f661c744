"""A run folder from a stranger: it may be refused, it may waste time, but it runs, fetches and reports nothing."""

import json
import shutil
import socket

import numpy as np
import pytest

from saccade import eval as evaluate
from saccade import train
from saccade.base.errors import UserError
from saccade.models.backbone import BackboneSpec, create_backbone, export_backbone, load_backbone
from saccade.runs.flags import parse_flags

SMALL = ["--backbone", "test_resnet", "--batch-size", "8", "--eval-every", "0", "--device", "cpu", "--workers", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("received")
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "train.npz", images=images, labels=np.arange(32) % 4)
    out = folder / "run"
    assert train.main(["--data", str(folder / "train.npz"), "--steps", "2", "--out", str(out), *SMALL]) == 0
    return out


@pytest.fixture
def poisoned(finished, tmp_path):
    """poisoned(name=value): a copy of the run whose record was changed by somebody."""

    def make(**changed):
        folder = tmp_path / "run"
        shutil.copytree(finished, folder)
        record = json.loads((folder / "config.json").read_text())
        record["flags"].update(changed)
        record.update({name: value for name, value in changed.items() if name in record})
        (folder / "config.json").write_text(json.dumps(record))
        return folder

    return make


@pytest.mark.parametrize("flag", ["data", "val_data", "labelled_data"])
@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_pipe_in_a_record_is_not_run(poisoned, tmp_path, capfd, flag, command):
    mark = tmp_path / "ran"
    folder = poisoned(**{flag: f"pipe:touch {mark}; cat /dev/null", "allow_pipe": True})
    if command == "train":
        assert train.main(["--resume", str(folder)]) == 2
        assert "say so: --" in capfd.readouterr().err
    elif flag != "labelled_data":
        assert evaluate.main([str(folder)]) == 2
        assert "say so: --" in capfd.readouterr().err
    assert not mark.exists()


def test_a_pipe_given_again_still_needs_its_permission(poisoned, tmp_path, capfd):
    mark = tmp_path / "ran"
    pipe = f"pipe:touch {mark}"
    folder = poisoned(data=pipe, allow_pipe=True)
    assert train.main(["--resume", str(folder), "--data", pipe]) == 2
    assert "--allow-pipe" in capfd.readouterr().err and not mark.exists()


@pytest.mark.parametrize(
    "place", ["http://127.0.0.1:{}/x.tar", "gs://bucket'; touch /tmp/x; '/x.tar", "module_of_mine:x"]
)
def test_an_address_or_code_in_a_record_is_neither_fetched_nor_imported(poisoned, capfd, place, tmp_path, monkeypatch):
    (tmp_path / "module_of_mine.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        folder = poisoned(data=place.format(server.getsockname()[1]))
        assert train.main(["--resume", str(folder)]) == 2
        assert evaluate.main([str(folder)]) == 2
        with pytest.raises(BlockingIOError):
            server.accept()  # nobody called
    assert capfd.readouterr().err.count("if you trust it") == 2


def test_reporting_elsewhere_is_asked_for_again(poisoned, capsys):
    folder = poisoned(track="csv,wandb")
    assert parse_flags(["--resume", str(folder)]).track == "csv"
    assert "--track csv,wandb" in capsys.readouterr().err
    assert parse_flags(["--resume", str(folder), "--track", "csv"]).track == "csv"


def test_a_flag_at_its_default_is_compared_too(poisoned):
    folder = poisoned(seed=3)
    with pytest.raises(UserError, match="drop --seed 0: it was 3"):
        parse_flags(["--resume", str(folder), "--seed", "0"])
    assert parse_flags(["--resume", str(folder), "--seed", "3"]).seed == 3


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("architecture", "hf-hub:somebody/model", "no such model"),
        ("architecture", "local-dir:/tmp", "no such model"),
        ("architecture", "module_of_mine.py:net", "no such model"),
        ("options", {"pretrained": True}, "weights are not fetched"),
        ("options", {"pretrained_cfg": {"url": "http://127.0.0.1/x"}}, "weights are not fetched"),
        ("options", {"checkpoint_path": "/etc/passwd"}, "weights are not fetched"),
        ("options", {"no_such": 1}, "no backbone can be loaded"),
        ("options", 3, "no backbone can be loaded"),
    ],
)
def test_a_received_backbone_fetches_no_weights(tmp_path, key, value, said):
    spec = BackboneSpec("test_resnet", "plain")
    files = export_backbone(create_backbone(spec, 32), spec, 32, {})
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    load_backbone(tmp_path)
    description = json.loads((tmp_path / "backbone.json").read_text()) | {key: value}
    (tmp_path / "backbone.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=said):
        load_backbone(tmp_path)


@pytest.mark.parametrize("content", ["", "[" * 100_000, "[]", '{"flags": 3}', '{"flags": {"seed": []}}', "\xff\xfe"])
def test_a_record_that_is_none_is_one_sentence(finished, tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json"):
        parse_flags(["--resume", str(tmp_path)])


def test_an_operation_in_a_record_is_not_run_unless_it_is_named_again(poisoned, capfd, tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit(99)")
    folder = poisoned(set=[f"views.view_1.operations+={tmp_path}/mine.py:Mine"])
    assert train.main(["--resume", str(folder)]) == 2
    assert "which would run; if you trust them, say so" in capfd.readouterr().err


@pytest.mark.parametrize("flag", ["method", "backbone", "pipeline"])
@pytest.mark.parametrize("place", ["module_of_mine.py:x", "module_of_mine:x"])
def test_code_of_any_kind_in_a_record_is_not_imported_until_it_is_named(
    poisoned, capfd, tmp_path, flag, place, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "module_of_mine.py").write_text("raise SystemExit(99)")
    folder = poisoned(**{flag: place})
    assert train.main(["--resume", str(folder)]) == 2
    assert f"would run; if you trust them, say so: --{flag} {place}." in capfd.readouterr().err
    assert evaluate.main([str(folder)]) == 0
    with pytest.raises(SystemExit, match="99"):
        train.main(["--resume", str(folder), f"--{flag}", place])
