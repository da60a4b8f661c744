"""saccade transfer: its numbers are eval.py's, one row a data set, one column a backbone."""

import json

import pytest

from saccade import eval as evaluation
from saccade.base.errors import UserError
from saccade.tools import transfer
from tests.test_eval import write_images, write_run


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    places = []
    for name in ("birds", "cars"):
        (folder / name).mkdir()
        places.append(write_images(folder / name / "train.npz", 48, len(name)))
        write_images(folder / name / "test.npz", 24, 7)
    return places


def test_the_table_holds_what_eval_prints(sets, tmp_path, capsys):
    run = write_run(tmp_path / "run", sets[0])
    arguments = [str(run), "--data", *sets, "--epochs", "3", "--json", str(tmp_path / "rows.json")]
    assert transfer.main(arguments) == 0
    table = capsys.readouterr().out.splitlines()[-3:]
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["data"] for row in rows] == sets and "untrained" in table[0]
    for row, line in zip(rows, table[1:], strict=True):
        flags = ["--data", row["data"], "--protocol", "linear", "--epochs", "3", "--device", "cpu"]
        assert evaluation.main([str(run), *flags]) == 0
        alone = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert row["top1"][str(run)] == alone["top1"] and row["n_test"] == alone["n_test"] == 24
        assert f"{alone['top1']:.2f}" in line and "48 + 24" in line


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--data", "textures", "--protocol", "lineer"], "did you mean linear"),
        (["--data", "textures", "--epochs", "0"], "--epochs 0 is not positive"),
        (["--data", "textures", "--seed", "-1"], "--seed -1 is negative"),
        (["--data", "textures", "--device", "tpu"], "--device tpu is unknown"),
        (["--data", "textures", "--pipeline", "fast"], "fast"),
        (["--data", "textures", "--json", "/no/such/folder/x.json"], "--json /no/such/folder/x.json"),
    ],
)
def test_a_bad_flag_is_one_sentence(sets, tmp_path, flags, says):
    with pytest.raises(UserError, match=says):
        transfer.main([str(write_run(tmp_path / "run", sets[0])), *flags])
