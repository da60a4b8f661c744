"""docs/recipes.md keeps its word: its commands run, its settings are taken, its file is the printed one."""

import re
import shlex
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade import train
from saccade.losses.registry import find_method
from saccade.runs.plain_recipe import to_plain
from saccade.runs.settings import with_settings
from saccade.tools.recipes import main as recipes

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
ROWS = re.findall(r"^\| (`.*?`) \| ", PAGE, re.MULTILINE)
SETTINGS = [shlex.split(code)[0] for row in ROWS[1:] for code in re.findall(r"`(.*?)`(?:, |$)", row)]
BEFORE = {"views.small=none": "views.small+=strong", "schedule.options.milestones=60,80": "schedule.kind=step_decay"}
SMALL = ["--device", "cpu", "--workers", "1", "--eval-every", "0"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_changes_the_recipe(setting):
    base = with_settings(find_method("resa").recipe("imagenet", None), [BEFORE[setting]] if setting in BEFORE else [])
    changed = with_settings(base, [setting])
    assert to_plain(changed) != to_plain(base) or setting == "views.views=weak,strong"


def test_the_table_is_read():
    assert len(SETTINGS) >= 17 and len(COMMANDS) >= 7


@pytest.mark.slow
def test_the_commands_run_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PHOTOS").mkdir()
    for k, image in enumerate(np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(image).save(tmp_path / "PHOTOS" / f"{k}.png")
    for command in COMMANDS:
        assert command[0] == "saccade"
        if command[1] == "recipes":
            words = command[2 : command.index(">") if ">" in command else None]
            assert recipes(words) == 0
            printed = capsys.readouterr().out
            if ">" in command:
                Path(command[-1]).write_text(printed)
                continue
        elif command[1:3] == ["train", "--resume"]:
            next((tmp_path / "outputs/RUN/checkpoints").glob("step-00000002*")).unlink()
            assert train.main(command[2:]) == 0
        elif "mine.toml" in command:
            sizes = ["--backbone", "test_resnet", "--batch-size", "8", "--steps", "2", "--checkpoint-every", "1"]
            assert (
                train.main([*command[2:], *SMALL, *sizes, "--set", "options.queue_size=64", "--out", "outputs/RUN"])
                == 0
            )
        else:
            assert train.main([*command[2:], *SMALL, "--out", "outputs/again"]) == 0
            shutil.rmtree("outputs/again")


def test_the_part_of_a_file_is_one_of_the_printed_file(capsys):
    assert recipes(["ressl", "cifar10", "--toml"]) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    (shown,) = (tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
    assert shown["views"]["contrastive"].items() <= printed["views"]["contrastive"].items()
    assert shown["optimizer"].items() <= printed["optimizer"].items()
    assert {k: v for k, v in shown.items() if not isinstance(v, dict)}.items() <= printed.items()
