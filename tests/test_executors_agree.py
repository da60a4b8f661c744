"""The same training steps on every executor: equal samples and parameters, pixels and losses within tolerance."""

import json
import math
import shutil
import tarfile
from pathlib import Path

import pytest

from benchmarks import agree
from saccade.base.errors import UserError
from saccade.pipelines.build import dali_installed
from saccade.pipelines.order import Order
from saccade.pipelines.threads import ThreadsPipeline
from saccade.runs import session
from tests.images import PHOTOS, large_set

EXECUTORS = ",".join(("reference", "threads", *(("dali",) if dali_installed() else ()), "ffcv", "ffcv-raw"))
SMALL = ["--steps", "6", "--batch-size", "4", "--image-size", "48", "--workers", "0"]


@pytest.fixture
def photos() -> Path:
    """12 JPEGs, no two of one size: six steps of four images are two epochs, of all twelve six."""
    return PHOTOS


def run(photos: Path, file: Path, method: str, *more: str) -> tuple[int, dict]:
    code = agree.main(["--data", str(photos), "--method", method, "--json", str(file), *SMALL, *more])
    return code, json.loads(file.read_text())["runs"][-1]


def check(run: dict, executors: str, steps: int) -> None:
    others = executors.split(",")[1:]
    assert [e["executor"] for e in run["executors"]] == [*others, "noise"]
    for e in run["executors"][:-1]:
        assert e["same_samples"] == e["same_params"] == steps == len(e["losses"])
        assert set(e["mean"]) == set(e["largest"]) == set(run["views"])
        assert e["pixel_mean"] < 0.005 and e["pixel_largest"] < 0.5
        assert e["loss_shared_largest"] < 1e-3 and e["failures"] == []
    assert all(math.isfinite(loss) for loss in run["reference_losses"]) and len(set(run["reference_losses"])) == steps


@pytest.mark.parametrize(("method", "views"), [("rsa", 4), pytest.param("ressl", 6, marks=pytest.mark.slow)])
def test_six_steps_agree(photos, tmp_path, capsys, method, views):
    # Batch norm over 4 images is chaotic: of 30 orders of these photos one took learners apart by 2e-2, most by 1e-6.
    code, found = run(photos, tmp_path / "agree.json", method, "--executors", EXECUTORS, "--batch-size", "12")
    assert code == 0 and len(found["views"]) == views and found["hardware"]["cpus"] and found["versions"]["torch"]
    check(found, EXECUTORS, 6)
    shown = capsys.readouterr().out
    assert "6/6" in shown and "all within tolerance" in shown


def test_json_keeps_other_methods_and_replaces_the_same(photos, tmp_path):
    file = tmp_path / "agree.json"
    file.write_text(
        json.dumps({"runs": [{"method": "rsa", "recipe": "imagenet100"}, {"method": "byol", "recipe": "cifar10"}]})
    )
    run(photos, file, "rsa", "--executors", "reference,ffcv", "--steps", "1")
    runs = json.loads(file.read_text())["runs"]
    assert [r["method"] for r in runs] == ["byol", "rsa"] and runs[1]["steps"] == 1


def test_pixels_that_are_off_are_noticed_in_pixels_and_losses(photos, tmp_path, monkeypatch, capsys):
    """A channel order of BGR: what a decoder's wrong flag would give."""
    made = ThreadsPipeline._make

    def swapped(self, *args):
        views, *rest = made(self, *args)
        return {name: view.flip(1) for name, view in views.items()}, *rest

    monkeypatch.setattr(ThreadsPipeline, "_make", swapped)
    code, found = run(photos, tmp_path / "agree.json", "rsa", "--executors", "reference,ffcv", "--steps", "3")
    executor = found["executors"][0]
    assert code == 1 and {"pixels", "loss of shared weights"} <= set(executor["failures"])
    assert executor["same_samples"] == executor["same_params"] == 3 and executor["pixel_mean"] > 1
    assert "outside of tolerance: rsa ffcv: pixels" in capsys.readouterr().out


def test_another_order_and_other_draws_are_noticed(photos, tmp_path, monkeypatch):
    build = session.build_pipeline

    def other_seed(source, recipe, order, name, *args, **kwargs):
        order = Order(order.samples, order.batch_size, order.seed + (name == "ffcv"))
        return build(source, recipe, order, name, *args, **kwargs)

    monkeypatch.setattr(session, "build_pipeline", other_seed)
    code, found = run(photos, tmp_path / "agree.json", "rsa", "--executors", "reference,ffcv", "--steps", "2")
    assert code == 1 and found["executors"][0]["same_samples"] == found["executors"][0]["same_params"] == 0
    assert {"samples", "parameters"} <= set(found["executors"][0]["failures"])


def test_noise_is_as_large_as_the_pixel_tolerance(photos, tmp_path):
    noise = run(photos, tmp_path / "agree.json", "rsa", "--executors", "reference,ffcv", "--steps", "1")[1][
        "executors"
    ][-1]
    assert noise["executor"] == "noise" and noise["failures"] == []
    assert all(abs(mean / noise["allowed"]["mean"] - 1) < 0.02 for mean in noise["mean"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--executors", "reference,dally"], "dally is unknown"),
        (["--executors", "dali,ffcv"], "reference and at least one other"),
        (["--executors", "reference"], "reference and at least one other"),
        (["--steps", "0"], "--steps 0 is not positive"),
        (["--batch-size", "13"], "larger than the data set"),
        (["--method", "rsb"], "rsb"),
        (["--method", "rsa", "--recipe", "imagenet10"], "imagenet10"),
        (["--method", "rsa,ressl", "--recipe", "imagenet100"], "goes with one method"),
        (["--json", "/no/such/folder/x.json"], "does not exist"),
        (["--image-size", "8", "--batch-size", "4"], "does not fit"),
        (["--data", "/no/such/photos"], "no such file or folder"),
        (["--data", "textures"], "a folder of photos is needed"),
    ],
)
def test_bad_input_is_one_sentence(photos, arguments, message):
    with pytest.raises(UserError, match=message):
        agree.main(["--data", str(photos), *arguments])


def test_foreign_json_is_not_overwritten(photos, tmp_path):
    (tmp_path / "mine.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="something else"):
        agree.main(["--data", str(photos), "--json", str(tmp_path / "mine.json")])
    assert (tmp_path / "mine.json").read_text() == '{"a": 1}'


def test_unreadable_photo_would_shift_the_numbers_of_a_beton(photos, tmp_path):
    shutil.copytree(photos, tmp_path, dirs_exist_ok=True)
    (tmp_path / "leaves" / "03.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="1 of the 12 photos cannot be read"):
        agree.main(["--data", str(tmp_path), "--batch-size", "4"])


@pytest.mark.large
@pytest.mark.parametrize("method", ["rsa", "ressl"])
def test_200_steps_on_photos_agree(tmp_path, method):
    with tarfile.open(large_set("photos/caltech101_20.tar")) as tar:
        tar.extractall(tmp_path, filter="data")
    flags = ["--data", str(tmp_path), "--method", method, "--steps", "200", "--executors", EXECUTORS]
    assert agree.main([*flags, "--json", str(tmp_path / "agree.json")]) == 0
    found = json.loads((tmp_path / "agree.json").read_text())["runs"][0]
    assert found["images"] == 1280  # so that 200 steps of 8 images are more than an epoch
    check(found, EXECUTORS, 200)
