"""Two processes measure what one does: the same features to the bit, the same training to rounding, one voice."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from saccade import eval as program
from saccade.evaluation import features, kept
from saccade.evaluation.embeddings import read_embeddings
from saccade.evaluation.evaluate import Settings
from saccade.evaluation.finetune import FineTuning, fine_tune
from saccade.evaluation.shares import shared_pipeline
from saccade.models.backbone import BackboneSpec, create_backbone
from saccade.models.norm import SyncBatchNorm
from saccade.pipelines.sources import ArraySource
from saccade.pipelines.views import Crop, View, Views
from saccade.runs.ranks import Ranks
from saccade.tools import embed, finetune, predict, transfer
from tests.distributed import run_ranks
from tests.runs.nursery import meeting, until
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


@pytest.mark.slow
def test_every_command_of_this_kind_writes_what_one_process_writes(place, tmp_path):
    train = place / "train.npz"
    tables = []
    for world in (1, 2):
        folder = tmp_path / f"out-{world}"
        folder.mkdir()
        device = ("--device", "cpu", "--batch-size", 8)
        run("embed", train, "--from", place / "run", "--out", folder / "x.npy", *device, tmp_path=tmp_path, world=world)
        more = ("--epochs", 2, "--fraction", 0.5, "--out", folder / "tuned", *device)
        run("finetune", train, "--from", place / "run", *more, tmp_path=tmp_path, world=world)
        more = ("--from", folder / "tuned", "--out", folder / "said.csv", *device)
        run("predict", train, *more, tmp_path=tmp_path, world=world)
        more = ("--data", train, "--epochs", 2, "--json", folder / "rows.json", *device)
        run("transfer", place / "run", *more, tmp_path=tmp_path, world=world)
        tables.append(
            (
                read_embeddings(folder / "x.npy"),
                json.loads((folder / "tuned" / "finetuned.json").read_text()),
                [line.split(",") for line in (folder / "said.csv").read_text().splitlines()[1:]],
                json.loads((folder / "rows.json").read_text())["rows"],
            )
        )
    (vectors, tuned, said, rows), (vectors2, tuned2, said2, rows2) = tables
    assert np.array_equal(vectors.vectors, vectors2.vectors) and vectors.names.tolist() == vectors2.names.tolist()
    assert tuned["nll"] == pytest.approx(tuned2["nll"], rel=1e-3) and tuned["top1"] == tuned2["top1"]
    assert [row[:-1] for row in said] == [row[:-1] for row in said2] and rows == rows2


@pytest.mark.slow
def test_losses_agree_to_rounding_and_after_a_stop_to_the_bit(tmp_path):
    """Of a network with batch norms, in batches of 7; stopped in its last epoch."""
    whole = _tuned("", 0)["losses"].tolist()
    for found in run_ranks(_tuned, str(tmp_path), 3):
        assert found["losses"].tolist() == pytest.approx(whole, rel=1e-4)
        assert found["norms"] == 0, "the batch norms that it came with"
        assert torch.equal(found["losses"], found["again"]) and found["epochs"] == 1


def _tuned(cache: str, stop_at: int) -> dict:
    """Losses of three epochs; and of a training that is stopped at the test of epoch `stop_at` and taken up again."""
    os.environ["SACCADE_CACHE"] = cache
    kept.EVERY = 0.0
    images = np.random.default_rng(0).integers(0, 256, (23, 16, 16, 3), dtype=np.uint8)
    source = ArraySource("noise", images, np.arange(23) % 4)
    torch.manual_seed(0)
    backbone = create_backbone(BackboneSpec("test_resnet", "cifar"), 16)
    views = Views((View("train", 16, Crop((0.3, 1.0)), flip=0.5),), (0.5,) * 3, (0.25,) * 3)
    how, tests = FineTuning(3, 7, 0.05, 0.1, weight_decay=1e-3), []

    def test(network):
        tests.append(None)
        if len(tests) == stop_at:
            raise KeyboardInterrupt
        return torch.zeros(2, 96), torch.zeros(2, dtype=torch.long)

    def tune(ranks, state):
        with shared_pipeline(source, views, 7, Settings(ranks=ranks), 3) as pipeline:
            return fine_tune(how, backbone, pipeline, 4, test if state else None, seed=5, kept=state, ranks=ranks)

    with Ranks(None, 60) as ranks:
        found = again = tune(ranks, None)
        if stop_at:
            with contextlib.suppress(KeyboardInterrupt):
                tune(ranks, kept.Kept("state", ranks))
            before = len(tests)
            again = tune(ranks, kept.Kept("state", ranks))
            tests = tests[before:]
    losses = {"losses": found.losses, "again": again.losses}
    norms = sum(isinstance(module, SyncBatchNorm) for module in found.backbone.modules())
    return {k: torch.tensor(v, dtype=torch.float64) for k, v in losses.items()} | {"norms": norms, "epochs": len(tests)}


SLOWLY = """
import sys, time
from saccade.base.command import run_command
from saccade.evaluation import feature_file, features
from saccade.tools import embed
forward = features.forward_batches
def slowly(*given):
    for batch in forward(*given):
        time.sleep(0.5)
        yield batch
features.forward_batches, feature_file.EVERY = slowly, 0.0
run_command("tools.embed", lambda: embed.main(sys.argv[1:]))
"""


def embedding(place) -> list[str]:
    return [str(place / "train.npz"), "--from", str(place / "run"), "--split", "train", "--batch-size", "4"]


def two_that_embed(folder: Path, *arguments: str) -> list[subprocess.Popen]:
    """Two processes, slowly, each with some features in its share."""
    more = {"OMP_NUM_THREADS": "1", "SACCADE_CACHE": str(folder / "cache"), **meeting(2)}
    command = [sys.executable, "-c", SLOWLY, *arguments, "--device", "cpu", "--out", str(folder / "x.npy")]
    both = [
        subprocess.Popen(command, env={**os.environ, **more, "RANK": str(r)}, stderr=subprocess.PIPE, text=True)
        for r in range(2)
    ]
    assert until(lambda: len(list(folder.glob(".x.npy.parts/*/done-*.json"))) == 2, 180, 0.05)
    return both


@pytest.mark.slow
def test_one_that_stands_still_ends_the_other_which_waits_for_it(place, tmp_path):
    waits, still = two_that_embed(tmp_path, *embedding(place), "--rank-timeout", "4")
    still.send_signal(signal.SIGSTOP)
    said = waits.communicate(timeout=150)[1]
    still.kill()
    assert waits.returncode == 1 and "Traceback" not in said
    assert "process 1 has stood still, without a sign of life, for 40 s" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "codes", "says"),
    [
        (signal.SIGKILL, [1, -signal.SIGKILL], "process 1 ended (signal 9, SIGKILL)"),
        (signal.SIGTERM, [143, 143], "process 1 ended (SIGTERM; the same command goes on from what is kept"),
    ],
)
def test_what_ends_one_ends_both_and_the_same_command_goes_on(place, tmp_path, monkeypatch, number, codes, says):
    arguments = embedding(place)
    both = two_that_embed(tmp_path, *arguments)
    both[1].send_signal(number)
    ended = time.monotonic()
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == codes and time.monotonic() - ended < 15
    assert says in said[0] and "Traceback" not in "".join(said)
    made, forward = [], features.forward_batches

    def counted(*given):
        for batch in forward(*given):
            made.append(len(batch[0]))
            yield batch

    monkeypatch.setattr(features, "forward_batches", counted)
    run("embed", *arguments, "--device", "cpu", "--out", tmp_path / "x.npy", tmp_path=tmp_path, world=1)
    run("embed", *arguments, "--device", "cpu", "--out", tmp_path / "whole.npy", tmp_path=tmp_path, world=1)
    assert sum(made[: len(made) - 16]) < 61, "the rest alone"
    assert np.array_equal(np.load(tmp_path / "x.npy"), np.load(tmp_path / "whole.npy"))
