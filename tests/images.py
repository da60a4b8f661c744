"""Images that tests read: rendered photos beside them, and the large sets that are not in the repository."""

import os
from pathlib import Path

import pytest

PHOTOS = Path(__file__).with_name("data") / "photos"  # 12 JPEGs in two classes, described in data/README.md


def large_set(name: str) -> Path:
    """A file of the folder $SACCADE_TEST_DATA, for tests marked `large`."""
    path = Path(os.environ.get("SACCADE_TEST_DATA", "")) / name
    if not path.is_file():
        pytest.fail(f"tests marked large need {name} in the folder that SACCADE_TEST_DATA names; {path} is no file")
    return path
