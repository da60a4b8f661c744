"""Before any test: the right checkout, and what several test processes on one machine share."""

import functools
import os
from collections.abc import Iterator

import pytest

from base.checkout import foreign


def pytest_configure() -> None:
    """Refuse another checkout's code, and set what torch reads when it is imported."""
    if problem := foreign():  # a virtual environment reused for a second clone would test the first one's code
        pytest.exit(problem, returncode=2)
    from saccade.base.libraries import prepare_libraries
    from saccade.base.machine import available_cpus

    if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # no two threads a core
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // workers)))
    prepare_libraries()


@pytest.fixture(autouse=True, scope="session")
def textures_drawn_once() -> Iterator[None]:
    """The embedded data set takes a second to draw, and a hundred tests open it."""
    from saccade.pipelines.sources import named

    drawn = functools.cache(named.textures)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(named, "textures", lambda split: tuple(array.copy() for array in drawn(split)))
        yield
