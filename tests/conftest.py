"""A virtual environment reused for a second clone would test the first one's code: refuse."""

import pytest

from base.checkout import foreign

if problem := foreign():
    pytest.exit(problem, returncode=2)
