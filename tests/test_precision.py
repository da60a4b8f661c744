"""What a run computes in: the device's default, the published, or what was asked for; said and recorded."""

import json
from pathlib import Path

import numpy as np
import pytest

from saccade import train
from saccade.base.errors import UserError
from saccade.losses.registry import find_method
from saccade.pipelines.sources import ArraySource
from saccade.runs import precision
from saccade.runs.config import resolve
from saccade.runs.flags import check_flags, parse_flags

RESA = ["--method", "resa", "--recipe", "imagenet"]  # published in fp16


def resolved(*more: str):
    flags = parse_flags([*RESA, *more])
    check_flags(flags)
    return resolve(flags, ArraySource("noise", np.zeros((16, 8, 8, 3), np.uint8)), Path("."))


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(precision, "on_gpu", lambda device: device != "cpu")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ((), "bf16"),
        (("--precision", "auto"), "bf16"),
        (("--precision", "recipe"), "fp16"),
        (("--precision", "fp32"), "fp32"),
        (("--set", "precision=fp32"), "fp32"),
        (("--set", "precision=fp16"), "fp16"),
        (("--set", "precision=bf16", "--precision", "recipe"), "bf16"),
        (("--set", "precision=bf16", "--precision", "bf16"), "bf16"),
        (("--device", "cpu"), "fp32"),
        (("--device", "cpu", "--set", "precision=bf16"), "bf16"),
    ],
)
def test_precision_of_a_run_where_there_is_a_gpu(gpu, more, expected):
    config = resolved(*more)
    assert config.precision == config.recipe.precision == config.to_json()["recipe"]["precision"] == expected
    assert config.published_precision == find_method("resa").recipe("imagenet", None).precision == "fp16"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--precision", "fp16"), "--precision fp16 needs a GPU; use fp32 or bf16"),
        (("--precision", "recipe"), "--precision recipe, which is fp16 here, needs a GPU"),
        (("--set", "precision=fp16"), "--set precision=fp16 needs a GPU"),
        (("--set", "precision=int8"), "--set precision=int8: give fp32, bf16, fp16"),
        (("--set", "precision=fp32", "--precision", "bf16"), "--precision bf16 and --set precision=fp32 contradict"),
        (("--precision", "half"), "--precision half is unknown; use one of auto, recipe, fp32"),
        (("--renderer", "cairo"), "--renderer cairo is unknown; use one of auto, torch"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(more, words):
    with pytest.raises(UserError, match=words):
        resolved("--device", "cpu", *more)


@pytest.mark.parametrize(
    ("more", "used", "said"),
    [
        ((), "fp32", "fp32, this device's default; the recipe was published in fp16 (--precision recipe)"),
        (("--set", "precision=bf16"), "bf16", "bf16, as asked; the recipe was published in fp16"),
    ],
)
def test_the_start_says_it_and_the_record_holds_what_was_used(tmp_path, capsys, more, used, said):
    data = tmp_path / "x.npz"
    np.savez(data, images=np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8))
    small = ["--backbone", "test_resnet", "--image-size", "16", "--batch-size", "8", "--steps", "1"]
    out = tmp_path / "run"
    argv = ["--method", "simclr", "--recipe", "cifar10", "--data", str(data), *small, "--device", "cpu"]
    assert train.main([*argv, "--renderer", "torch", "--out", str(out), *more]) == 0
    assert said in capsys.readouterr().out
    record = json.loads((out / "config.json").read_text())
    assert record["precision"] == record["recipe"]["precision"] == used
    assert record["published_precision"] == "fp16" and record["renderer"] == "torch"
