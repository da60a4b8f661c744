"""Checkpoints come back to the bit, and anything else than what was written is named and left out."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saccade import train
from saccade.base.errors import UserError
from saccade.runs import checkpoint
from saccade.runs.checkpoint import checkpoints, load_checkpoint, read_checkpoint, save_checkpoint
from saccade.runs.tensor_file import Damaged, read_tree, write_tree

SMALL = ["--backbone", "test_resnet", "--batch-size", "8", "--eval-every", "0", "--device", "cpu", "--workers", "1"]


def state_of(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(8, 3, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last)
    return {
        "step": step,
        "learner": {"weight": weight, "queue": torch.randn(16, 4, generator=generator), "pointer": torch.tensor(7)},
        "optimizer": {
            "state": {0: {"momentum_buffer": weight.clone(), "step": torch.tensor(3.0)}},
            "betas": (0.9, 0.999),
        },
        "scaler": None,
        "lr": 0.1 + 0.2,
        "halves": [torch.randn(5, generator=generator).to(kind) for kind in (torch.bfloat16, torch.float16)],
        "empty": torch.zeros(0, 3),
        "worst": [float("inf"), -0.0, 5e-324, True, "\u00fc"],
    }


def assert_same(a: object, b: object) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b) and a.stride() == b.stride()
    elif isinstance(a, dict) and isinstance(b, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert repr(a) == repr(b)


def test_everything_comes_back_to_the_bit_and_others_can_read_the_tensors(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    state = state_of(1)
    path = save_checkpoint(tmp_path, 1, state, keep=2)
    assert_same(read_checkpoint(path), state)
    assert torch.equal(load_file(path)["learner/weight"], state["learner"]["weight"])


def test_no_flipped_bit_and_no_cut_is_taken_for_a_checkpoint(tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as file:
        write_tree(file, state_of(1))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for place in {*rng.integers(0, len(whole), 300).tolist(), *range(16), len(whole) - 1}:
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            assert_same(read_tree(path), state_of(1))  # a name in the padding of the table may change nothing
        except Damaged:
            continue
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            read_tree(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    images = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "train.npz", images=images)
    out = folder / "run"
    flags = ["--data", str(folder / "train.npz"), "--steps", "4", "--checkpoint-every", "1", "--keep", "4"]
    assert train.main([*flags, "--out", str(out), *SMALL]) == 0
    return out


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(finished, capsys):
    newest = checkpoints(finished)[-1]
    whole = newest.read_bytes()
    expected = read_checkpoint(newest)["learner"]
    newest.write_bytes(whole[:-5] + bytes([whole[-5] ^ 4]) + whole[-4:])
    assert train.main(["--resume", str(finished)]) == 0
    told = capsys.readouterr().err
    assert f"{newest} is left out: its checksum is wrong" in told
    assert "going on from step-00000003.safetensors: the steps 4 to 4 are done again" in told
    assert_same(read_checkpoint(newest)["learner"], expected)


@pytest.mark.parametrize("kind", ["text", "folder", "weights", "other run"])
def test_a_foreign_newest_file_does_not_stop_the_search(finished, capsys, kind):
    foreign = finished / "checkpoints" / "step-99999999.safetensors"
    if kind == "text":
        foreign.write_text("no checkpoint")
    elif kind == "folder":
        foreign.mkdir()
    elif kind == "weights":
        save_file({"x": torch.zeros(3)}, foreign)
    else:
        save_checkpoint(finished, 99999999, state_of(99999999), keep=9)
    assert train.main(["--resume", str(finished)]) == 0
    assert f"{foreign} is left out" in capsys.readouterr().err and len(checkpoints(finished)) >= 4
    foreign.rmdir() if kind == "folder" else foreign.unlink()


def test_a_resume_reads_its_checkpoint_once(finished, monkeypatch):
    read = []
    monkeypatch.setattr(checkpoint, "read_tree", lambda path: read.append(path.name) or read_tree(path))
    assert train.main(["--resume", str(finished)]) == 0
    assert read == ["step-00000004.safetensors"]


def test_checkpoints_of_the_version_before_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    torch.save({"step": 1}, tmp_path / "checkpoints" / "step-00000001.pt")
    with pytest.raises(UserError, match=r"written by Saccade 0\.1"):
        load_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"written by Saccade 0\.1"):
        read_checkpoint(tmp_path / "checkpoints" / "step-00000001.pt")


@pytest.mark.parametrize("name", ["backbone.safetensors", "backbone.json"])
def test_a_changed_export_is_not_evaluated(finished, tmp_path, name, capsys):
    from saccade import eval as evaluate

    for file in ("backbone.safetensors", "backbone.json"):
        (tmp_path / file).write_bytes((finished / file).read_bytes())
    if name == "backbone.json":
        description = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps(description | {"mean": [0.1, 0.2, 0.3]}))
    else:
        content = bytearray((tmp_path / name).read_bytes())
        content[-3] ^= 1
        (tmp_path / name).write_bytes(content)
    assert evaluate.main([str(tmp_path), "--data", str(finished.parent / "train.npz")]) == 2
    assert "its checksum is wrong" in capsys.readouterr().err
