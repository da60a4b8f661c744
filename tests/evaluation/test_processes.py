"""Two processes measure what one does: the same features to the bit, the same training to rounding, one voice."""

import contextlib
import io
import json
import os
from pathlib import Path

import pytest
import torch

from saccade import eval as program
from saccade.tools import embed, finetune, predict, transfer
from tests.distributed import run_ranks
from tests.test_eval import write_images, write_run

COMMANDS = {"eval": program, "embed": embed, "finetune": finetune, "predict": predict, "transfer": transfer}
OURS = """
from saccade.evaluation.kinds.finetune import FineTune
from saccade.evaluation.kinds.linear import Linear
from saccade.evaluation.protocol import Protocol

PROTOCOLS = (
    Protocol("crops", "20 of 61 images a step: the last has one", "us", (Linear(3, 20, 0.05, crop=CROP),)),
    Protocol("drift", "the same in train mode", "us", (Linear(3, 20, 0.05, crop=CROP, batch_norm_drift=True),)),
    Protocol("whole", "59 of 61: the last has two", "us", (FineTune(3, 59, 0.05, 0.1, weight_decay=1e-3),)),
    Protocol("head", "the backbone as it is", "us", (FineTune(3, 59, 0.0, 0.1),)),
)
"""


def _said(command: str, arguments: list[str], cache: str) -> dict:
    """What it printed on standard output, as bytes: what run_ranks brings back is tensors."""
    os.environ["SACCADE_CACHE"] = cache
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = COMMANDS[command].main(arguments)
    if code:
        raise RuntimeError(f"{command} ended with {code}")
    return {"out": torch.tensor(list(out.getvalue().encode()), dtype=torch.uint8)}


def run(command: str, *arguments: object, tmp_path: Path, world: int = 2) -> str:
    """What process 0 printed; no other prints anything."""
    given = (command, [str(a) for a in arguments], str(tmp_path / f"cache-{world}"))
    found = run_ranks(_said, *given, world_size=world) if world > 1 else [_said(*given)]
    said = [bytes(each["out"].tolist()).decode() for each in found]
    assert not any(said[1:])
    return said[0]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch):
    monkeypatch.setenv("SACCADE_CACHE", "")  # put back afterwards


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    write_images(folder / "train.npz", 61, 0)
    write_images(folder / "test.npz", 33, 1)
    write_run(folder / "run", str(folder / "train.npz"))
    (folder / "ours.py").write_text("from saccade.pipelines.views import Crop\nCROP = Crop((0.3, 1.0))\n" + OURS)
    return folder


def measured(place, tmp_path, protocol, *flags, worlds=(1, 2)) -> list[dict]:
    """The JSON of one process, and of several."""
    arguments = [place / "run", "--protocol", protocol, "--batch-size", 8, "--device", "cpu", *flags]
    said = [run("eval", *arguments, tmp_path=tmp_path, world=world) for world in worlds]
    return [json.loads(text.splitlines()[-1]) for text in said]


def test_features_and_knn_are_those_of_one_process(place, tmp_path):
    one, two = measured(place, tmp_path, "knn")
    for result in (one, two):
        del result["seconds"]
    assert one == two and "untrained" in one["beside"]["knn"]
    assert not list((tmp_path / "cache-2" / "features").iterdir()), "what passed between the processes is gone"


@pytest.mark.parametrize(
    ("name", "worlds"),
    [("crops", (1, 2)), *(pytest.param(n, (1, 3), marks=pytest.mark.slow) for n in ("drift", "whole", "head"))],
)
def test_training_is_that_of_one_process(place, tmp_path, name, worlds):
    one, more = measured(place, tmp_path, f"{place / 'ours.py'}:{name}", "--no-baselines", worlds=worlds)
    assert more["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)  # four digits are printed
    assert more["top1"] == pytest.approx(one["top1"], abs=3.1) and more["epochs"] == one["epochs"] == 3
    assert not list((tmp_path / f"cache-{worlds[1]}" / "measuring").glob("*.safetensors"))
