"""train.py as a user meets it: real processes, real kills, and one clear sentence for every bad flag."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from saccade import train
from saccade.models.backbone import load_backbone, replace_stem
from saccade.runs.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--backbone", "test_resnet", "--set", "backbone.stem=cifar", "--batch-size", "16", "--lr", "0.0002"]
SMALL += ["--log-every", "4", "--seed", "1"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As many threads here as in the processes started below: another number rounds its sums otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory, one_thread) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, n in (("train", 100), ("test", 20)):
        labels = np.arange(n) % 4
        images = (rng.integers(0, 60, (n, 16, 16, 3)) + labels[:, None, None, None] * 45).astype(np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=labels)
    return folder / "train.npz"


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *arguments]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT), **more}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in lines(folder) if "loss" in r}


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """An uninterrupted run of 20 steps over 3.3 epochs."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train.main(["--data", str(data), "--steps", "20", "--out", str(out), "--checkpoint-every", "7", *SMALL]) == 0
    return out


def test_run_folder_holds_what_a_user_needs(finished):
    names = {p.name for p in finished.iterdir()}
    assert {
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "curves.png",
        "views.png",
        "checkpoints",
        "backbone.safetensors",
        "backbone.json",
    } <= names
    assert [p.name for p in sorted((finished / "checkpoints").iterdir())] == [
        "step-00000014.safetensors",
        "step-00000020.safetensors",
    ]
    summary = json.loads((finished / "summary.json").read_text())
    wanted = {
        "method",
        "data",
        "backbone",
        "epochs",
        "steps",
        "seconds",
        "images_per_second",
        "data_wait",
        "knn_top1",
        "raw_pixel_knn_top1",
        "untrained_knn_top1",
        "versions",
        "hardware",
    }
    assert wanted <= set(summary) and summary["steps"] == 20
    logged = [r for r in lines(finished) if "loss" in r]
    assert [r["step"] for r in logged] == [1, 4, 8, 12, 16, 20]
    assert {"step", "epoch", "loss", "contrast", "manipulation", "lr", "images_per_second", "data_wait"} <= set(
        logged[0]
    )
    assert any("knn_top1" in r for r in lines(finished))
    for picture in ("curves.png", "views.png"):
        assert Image.open(finished / picture).size[0] > 100


def test_backbone_loads_in_timm_and_in_ours(finished):
    """The cifar stem by the documented one-liner; a plain one strictly by timm itself is tested with the models."""
    model = replace_stem(timm.create_model("test_resnet", num_classes=0), "cifar").eval()
    from safetensors.torch import load_file

    model.load_state_dict(load_file(finished / "backbone.safetensors"))
    ours, description = load_backbone(finished)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(model(x), ours(x)) and description["method"] == "stec"
    assert not Path(description["data"]).is_absolute(), "where it lay on this machine is nobody's"
    trained = load_checkpoint(finished)["learner"]["student.backbone.conv1.weight"]
    assert torch.equal(ours.get_parameter("conv1.weight"), trained)


@pytest.mark.parametrize("command", [["train.py"], ["eval.py"], ["-m", "tools.doctor"], ["-m", "tools.parity"]])
def test_ctrl_c_while_libraries_load_leaves_no_traceback(command):
    process = subprocess.Popen(
        [sys.executable, *command, "--help"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == -signal.SIGINT


def test_ctrl_c_saves_and_says_how_to_go_on(data, tmp_path):
    out = tmp_path / "stopped"
    process = subprocess.Popen(
        command("--data", str(data), "--steps", "100000", "--out", str(out), *SMALL),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len(losses(out)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and f"--resume {out}" in stdout and "Traceback" not in stderr
    assert load_checkpoint(out)["step"] >= 4


@pytest.mark.slow
def test_two_processes_are_one_run(data, finished, tmp_path):
    """Half the batch on each of two real processes: the same first loss as one process, SyncBN included."""
    out = tmp_path / "two"
    arguments = [
        "--nproc_per_node",
        "2",
        "--standalone",  # on a free port
        str(ROOT / "train.py"),
        "--data",
        str(data),
        "--steps",
        "20",
        "--out",
        str(out),
        *SMALL,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for step, loss in losses(finished).items():
        assert losses(out)[step] == pytest.approx(loss, rel=2e-3), step


def test_batch_order_is_reproducible_and_the_seed_matters(data, finished, tmp_path):
    same, other = tmp_path / "same", tmp_path / "other"
    assert train.main(["--data", str(data), "--steps", "20", "--out", str(same), *SMALL]) == 0
    assert train.main(["--data", str(data), "--steps", "4", "--out", str(other), *SMALL[:-1], "2"]) == 0
    assert losses(same) == losses(finished) and losses(other)[1] != losses(finished)[1]


def test_accumulation_takes_the_step_in_parts(data, tmp_path):
    out = tmp_path / "parts"
    assert train.main(["--data", str(data), "--steps", "4", "--accumulate", "2", "--out", str(out), *SMALL]) == 0
    assert losses(out)[4] == losses(out)[4]


def test_folder_without_labels_trains_and_evaluation_says_why_not(tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "7.png").write_bytes(b"broken")
    out = tmp_path / "run"
    assert (
        train.main(
            [
                "--data",
                str(tmp_path / "photos"),
                "--image-size",
                "32",
                "--steps",
                "3",
                "--out",
                str(out),
                "--workers",
                "1",
                "--backbone",
                "test_resnet",
                "--batch-size",
                "8",
                "--pipeline",
                "reference",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "kNN is not measured" in printed and "bad_images.txt" in printed
    assert (out / "bad_images.txt").read_text().startswith("7.png\t")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "stecc"], "did you mean stec"),
        (["--backbone", "resnet81"], "nearest are"),
        (["--data", "/nowhere"], "no such file or folder"),
        (["--batch-size", "10000"], "larger than the data set of 6000"),
        (["--batch-size", "0"], "not positive"),
        (["--epochs", "-1"], "not positive"),
        (["--lr", "nan"], "no learning rate"),
        (["--precision", "fp8"], "use one of"),
        (["--pipeline", "magic"], "use one of"),
        (["--track", "paper"], "tensorboard, wandb or csv"),
        (["--set", "options.heat=1"], "temperature"),
        (["--set", "options.temperature=warm"], "no float"),
        (["--set", "options.temperature"], "KEY=VALUE"),
        (["--set", "optimizer=3"], "group of values"),
        (["--batch-size", "1"], "no batch statistics"),
        (["--data", ""], "--data is empty"),
        (["--data", "textures", "--val-data", "/nowhere"], "--val-data /nowhere: no such file"),
        (["--seed", str(2**32)], "below 2^32"),
        (["--steps", "3", "--epochs", "3"], "give one of them"),
        (["--image-size", "1"], "8 to 4096 pixels"),
        (["--image-size", "1000000"], "8 to 4096 pixels"),
        (["--workers", "100000"], "1024 or fewer"),
        (["--set", "options.temperature=0"], "positive number"),
        (["--set", "options.temperature=nan"], "positive number"),
        (["--set", "options.contrast_weight=inf"], "finite number"),
        (["--batch-size", "64", "--accumulate", "3"], "does not divide the 64 images"),
        (["--set", "method=simclr"], "use --method"),
        (["--set", "views=view_1"], "name a view's field"),
        (["--set", "epochs=0"], "epochs=0: give 1 or more"),
        (["--set", "optimizer.name=adan"], "lars, sgd, adam or adamw"),
        (["--set", "optimizer.weight_decay=-1"], "give 0 or more"),
        (["--set", "optimizer.momentum=1"], "0 to 1"),
        (["--out", "/proc/saccade"], "cannot be written"),
        (["--resume", "/nowhere"], "no run is there"),
        (["--backbone", "vit_tiny_patch16_224", "--image-size", "40"], "patches of 16"),
        pytest.param(
            ["--device", "cuda"],
            "no usable GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU"),
        ),
    ],
)
def test_bad_input_is_one_clear_sentence_and_exit_code_2(flags, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert train.main(flags) == 2 and not any(tmp_path.iterdir())  # refused before anything is made
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and len(error.strip().splitlines()) == 1


def test_a_warm_up_longer_than_the_run_is_said(data, tmp_path, capsys):
    assert (
        train.main(
            [
                "--data",
                str(data),
                "--out",
                str(tmp_path / "run"),
                *SMALL,
                "--steps",
                "2",
                "--eval-every",
                "0",
                "--set",
                "schedule.options.warmup_epochs=3",
            ]
        )
        == 0
    )
    assert "the warm-up of 18 steps is longer than the run" in capsys.readouterr().out


def test_a_missing_tracker_is_said_before_a_folder_is_made(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("saccade.runs.flags.find_spec", lambda name: None)
    assert train.main(["--track", "wandb", "--out", str(tmp_path / "run")]) == 2
    assert "needs the package wandb" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_resuming_a_finished_run_changes_nothing(finished):
    before = json.loads((finished / "summary.json").read_text())
    assert train.main(["--resume", str(finished)]) == 0
    after = json.loads((finished / "summary.json").read_text())
    assert {k: after[k] for k in ("steps", "seconds", "knn_top1")} == {
        k: before[k] for k in ("steps", "seconds", "knn_top1")
    }


def test_resume_refuses_what_would_change_the_run(finished, capsys, tmp_path):
    assert train.main(["--resume", str(finished), "--lr", "1"]) == 2
    assert "drop --lr" in capsys.readouterr().err
    (tmp_path / "config.json").write_text((finished / "config.json").read_text())
    assert train.main(["--resume", str(tmp_path)]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err


def stopped_run(data: Path, out: Path) -> Path:
    """The run of `finished`, taken for one that was killed after its checkpoint of step 14."""
    assert train.main(["--data", str(data), "--steps", "20", "--out", str(out), "--checkpoint-every", "7", *SMALL]) == 0
    (out / "checkpoints" / "step-00000020.safetensors").unlink()
    return out


def test_resumed_run_finds_its_images_where_they_were_moved_to(data, finished, tmp_path, capsys):
    at_first = tmp_path / "first"
    shutil.copytree(data.parent, at_first)
    out = stopped_run(at_first / "train.npz", tmp_path / "out")
    at_first.rename(tmp_path / "moved")
    assert train.main(["--resume", str(out)]) == 2
    assert "no such file" in capsys.readouterr().err
    assert train.main(["--resume", str(out), "--data", str(tmp_path / "moved" / "train.npz")]) == 0
    whole, resumed = load_checkpoint(finished)["learner"], load_checkpoint(out)["learner"]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert train.main(["--resume", str(out)]) == 0  # and remembers it


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": lambda x: np.repeat(np.repeat(x, 2, 1), 2, 2)}, "image_size would change"),
        ({"labels": lambda x: x[::-1]}, "other images or labels, or in another order"),
        ({"images": lambda x: x ^ 1}, "other images or labels, or in another order"),
        ({"images": lambda x: x[:80], "labels": lambda x: x[:80]}, "made on 100 images"),
    ],
)
def test_resumed_run_refuses_other_images(data, finished, tmp_path, capsys, change, words):
    before = (finished / "config.json").read_text()
    arrays = {name: change.get(name, lambda x: x)(array) for name, array in np.load(data).items()}
    np.savez(tmp_path / "train.npz", **arrays)
    assert train.main(["--resume", str(finished), "--data", str(tmp_path / "train.npz")]) == 2
    assert words in capsys.readouterr().err and (finished / "config.json").read_text() == before


def test_a_run_is_not_written_over_another(finished, data, capsys):
    assert train.main(["--data", str(data), "--steps", "2", "--out", str(finished), *SMALL]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_two_processes_cannot_write_one_run_folder(finished, capsys):
    with open(finished / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert train.main(["--resume", str(finished)]) == 2
    assert "another process" in capsys.readouterr().err
