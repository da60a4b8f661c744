"""Several data sets as one: every image as often as its weight says, labels by the classes' names, the one order."""

import numpy as np
import pytest
from PIL import Image

from saccade import train
from saccade.base.errors import UserError
from saccade.pipelines.build import build_pipeline
from saccade.pipelines.data import open_data
from saccade.pipelines.order import Order
from saccade.pipelines.sources.holdout import hold_out
from saccade.pipelines.views import View, Views
from saccade.runs.flags import parse_flags
from saccade.runs.record import check_local
from tests.present import present


@pytest.fixture
def places(tmp_path):
    for name, classes in (("a", ("cat", "dog")), ("b", ("dog", "eel"))):
        for k in range(6):
            file = tmp_path / name / classes[k % 2] / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), ((40 if name == "b" else 0) + k, 0, 0)).save(file)
    np.savez(tmp_path / "c.npz", images=np.full((4, 16, 16, 3), 99, np.uint8))
    return tmp_path


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 1), (1, 0.5, 3)])
def test_each_image_is_there_as_often_as_its_weight(places, weights):
    flags = parse_flags(["--data", *(f"{places / n}:{w}" for n, w in zip(("a", "b", "c.npz"), weights, strict=True))])
    source, _ = open_data(flags.data)
    reds = np.bincount([int(source.read(i)[0, 0, 0]) for i in range(len(source))], minlength=100)
    assert (reds[:6] == weights[0]).all() and reds[40:46].sum() == 6 * weights[1] and reds[99] == 4 * weights[2]
    assert source.classes == ("cat", "dog", "eel") and (source.labels[-1] == -1)
    for i in range(len(source)):
        red = int(source.read(i)[0, 0, 0])
        want = "none" if red == 99 else ("cat", "dog")[red % 2] if red < 40 else ("dog", "eel")[red % 2]
        assert ("none" if source.labels[i] < 0 else source.classes[source.labels[i]]) == want


def test_it_renders_like_any_source(places):
    source, _ = open_data(f"{places / 'a'} + {places / 'b'}:2")
    for executor in ("resident", "reference"):
        with build_pipeline(source, Views((View("a", 8),)), Order(18, 6, seed=1), executor, workers=0) as pipeline:
            seen = [
                (int(i), int(label))
                for batch in pipeline
                for i, label in zip(batch.index, present(batch.label), strict=True)
            ]
        assert sorted(i for i, _ in seen) == list(range(18)) and all(source.labels[i] == label for i, label in seen)


def test_a_run_mixes_and_resumes(places):
    flags = [
        "--backbone",
        "test_resnet",
        "--image-size",
        "32",
        "--batch-size",
        "8",
        "--eval-every",
        "0",
        "--device",
        "cpu",
    ]
    out = places / "run"
    assert (
        train.main(["--data", str(places / "a"), f"{places / 'c.npz'}:3", *flags, "--steps", "3", "--out", str(out)])
        == 0
    )
    assert train.main(["--resume", str(out)]) == 0


@pytest.mark.parametrize("weight", ["0", "5000"])
def test_a_weight_that_is_none_is_refused(places, weight):
    with pytest.raises(UserError, match="a weight is above 0"):
        open_data(f"{places / 'a'}:{weight}")


def test_a_record_that_hides_a_url_behind_a_folder_is_not_trusted(tmp_path):
    with pytest.raises(UserError, match="if you trust it"):
        check_local("photos + http://elsewhere/x.tar", "--data", tmp_path)


def test_a_mixture_is_evaluated_on_its_parts_splits_and_an_image_is_no_neighbour_of_its_copy(places):
    for k in range(3):
        file = places / "a2" / ("val" if k else "train") / "eel" / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (200 + k, 0, 0)).save(file)
    train, val = open_data(f"{places / 'a2'} + {places / 'b'}:3")
    assert len(train) == 1 + 18 and present(val).classes == train.classes == ("eel", "dog")
    assert [int(present(val).read(i)[0, 0, 0]) for i in range(2)] == [201, 202] and len(present(val)) == 2
    assert any("b has no validation split" in line for line in train.account.warnings())
    bank, test, _ = hold_out(train, share=0.5)
    shown = [{int(part.read(i)[0, 0, 0]) for i in range(len(part))} for part in (bank, test)]
    assert not shown[0] & shown[1] and len(bank) + len(test) == 7
    assert hold_out(train, alone=True)[0].index.length == 7
