"""tools.survey: a real run of one method, and what the table says of it."""

import json

import numpy as np
import pytest

from saccade.base.errors import UserError
from saccade.tools.survey import main


@pytest.mark.slow
def test_a_row_holds_what_the_run_and_its_features_showed(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 12)):
        np.savez(
            tmp_path / f"{split}.npz",
            images=rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8),
            labels=np.arange(count) % 3,
        )
    assert (
        main(
            [
                "--data",
                str(tmp_path / "train.npz"),
                "--steps",
                "2",
                "--batch-size",
                "8",
                "--methods",
                "simclr",
                "--json",
                str(tmp_path / "s.json"),
            ]
        )
        == 0
    )
    (row,) = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert row["steps"] == 2 and row["loss_highest"] == max(row["loss_first"], row["loss_last"])
    assert 0 <= row["knn_top1"] <= 100 and row["effective_rank"] >= 1
    head, _, line = capsys.readouterr().out.strip().splitlines()
    assert head.count("|") == line.count("|") and line.startswith("| simclr |")


@pytest.mark.parametrize(
    ("flags", "words"), [(["--steps", "1"], "shows no trend"), (["--methods", "simclrr"], "simclr")]
)
def test_bad_flags_are_said_before_anything_is_trained(flags, words):
    with pytest.raises(UserError, match=words):
        main(flags)
