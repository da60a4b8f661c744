"""Values that no method can work with: one sentence from train.py before the first step, and exit code 2."""

import numpy as np
import pytest

from saccade import train
from saccade.losses.registry import find_method
from saccade.runs.settings import with_settings


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "train.npz"
    np.savez(path, images=np.zeros((128, 16, 16, 3), np.uint8))
    return str(path)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "ressl", "--batch-size", "48"], "does not hold whole batches of 48; give --batch-size 32"),
        (["--method", "ressl", "--batch-size", "64", "--set", "options.queue_size=32"], "options.queue_size=64"),
        (["--method", "ressl", "--batch-size", "64", "--set", "batch_norm=split-7"], "does not fall into the 7 groups"),
        (
            ["--method", "ressl", "--batch-size", "64", "--accumulate", "16", "--set", "batch_norm=split-8"],
            "a forward pass of 4 images",
        ),
        (["--method", "ressl", "--set", "batch_norm=grouped"], "use local, sync or"),
        (["--method", "resa", "--set", "options.temperature=0"], "temperature is 0.0; it must be above 0"),
        (["--method", "ressl", "--set", "options.t_teacher=-1"], "must be 0 or above"),
        (
            ["--method", "byol", "--set", "options.teacher_momentum=1.5"],
            "teacher_momentum is 1.5; it must lie in [0, 1]",
        ),
        (["--method", "rsa", "--set", "options.beta=2"], "[0, 1]"),
        (["--method", "resa", "--set", "views.views=weak"], "needs a weak view and one or more strong ones"),
        (["--method", "ressl", "--set", "views.views=contrastive"], "needs the view weak"),
        (["--method", "rsa", "--set", "views.views=weak_1,aggressive_1"], "lacks aggressive_2, weak_2"),
        (["--method", "byol", "--set", "views.views=view_3"], "no view 'view_3'"),
        (["--method", "rsa", "--set", "views.weak_1=3"], "name a field of the view"),
        (["--method", "resa", "--recipe", "imagenet-5crop"], "unknown for resa"),
        (["--method", "resa", "--recipe", "imagenet-vit", "--image-size", "100"], "patch"),
    ],
)
def test_bad_value_is_one_sentence_before_the_first_step(flags, words, data, capsys, tmp_path):
    small = [] if "imagenet-vit" in flags else ["--backbone", "test_resnet"]
    out = tmp_path / "run"
    assert train.main(["--data", data, "--device", "cpu", "--out", str(out), *small, *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and len(error.strip().splitlines()) == 1
    assert not out.exists()


def test_one_view_can_be_changed_by_name():
    recipe = with_settings(
        find_method("resa").recipe("cifar10", None), ["views.strong.crop.scale=0.1,0.9", "views.strong.jitter.hue=0.2"]
    )
    assert recipe.views["strong"].crop.scale == (0.1, 0.9) and recipe.views["strong"]["jitter"].hue == 0.2
    assert recipe.views["weak"].crop.scale == (0.2, 1.0)
