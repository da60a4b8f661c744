"""docs/from_python.md keeps its word: its blocks run, one after another, in one process."""

import re
from pathlib import Path

import torch

from tests.test_eval import write_images

PAGE = Path(__file__).resolve().parents[1] / "docs" / "from_python.md"


def test_the_pages_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_images("train.npz", 64, 0)
    write_images("test.npz", 32, 1)
    text, names = PAGE.read_text().replace('data="textures"', 'data="train.npz", image_size=32'), {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block.replace("...\n", "break\n"), str(PAGE), "exec"), names)
    shown = dict(re.findall(r"^>>> (\w+)\n(.+)$", text, re.MULTILINE))
    if not torch.cuda.is_available():
        assert {name: repr(names[name]) for name in shown} == shown and len(shown) == 2
    printed = capsys.readouterr().out
    assert re.search(r"^<Trained simclr, 20 steps, kNN top-1 \d+\.\d %: first_run>$", printed, re.MULTILINE)
    assert "test_resnet 32" in printed and names["model"](torch.zeros(2, 3, 32, 32)).shape == (2, 96)
