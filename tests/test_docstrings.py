"""The examples in docstrings: each gives what it says, and the names that a stranger meets first have one."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import saccade

ROOT = Path(saccade.__file__).parent
ROOMS = ("base", "pipelines", "models", "losses", "evaluation", "runs")
FILES = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py")) if ">>> " in file.read_text()]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_examples_give_what_they_say(file):
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    found = doctest.testmod(import_module(f"saccade.{name}".removesuffix(".__init__")))
    assert found.attempted and not found.failed


@pytest.mark.parametrize("name", ["View", "Views", "build_pipeline", "open_data"])
def test_what_the_package_offers_has_an_example(name):
    assert "\n    Examples:\n" in getattr(saccade, name).__doc__
