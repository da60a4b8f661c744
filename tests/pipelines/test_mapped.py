"""A .beton that becomes shorter while it is read: words and an exit code, where there was silence."""

import subprocess
import sys

from tests.pipelines.test_ffcv import write_beton

READ = """
import os, sys
from pathlib import Path
from saccade.pipelines.sources.beton import BetonSource
source = BetonSource(Path(sys.argv[1]))
source.read(0)
os.truncate(sys.argv[1], 4096)
for i in range(len(source)):
    source.read(i).sum()  # of raw pixels `read` is a view
print("read")
"""


def test_a_beton_that_shrinks_is_told(tmp_path):
    place = write_beton(tmp_path / "x.beton", "raw")
    found = subprocess.run([sys.executable, "-c", READ, str(place)], capture_output=True, text=True, timeout=120)
    assert found.returncode == 135 and "became shorter while it was in use" in found.stderr, found
    assert "Traceback" not in found.stderr and "read" not in found.stdout
