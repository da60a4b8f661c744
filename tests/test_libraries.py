"""Settings that must be there before torch is: looked at in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WANTED = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "OMP_WAIT_POLICY")


AT_TORCH = f"""
import os, sys
class Look:
    def find_spec(self, name, *rest):
        if name == "torch":
            print(*map(os.environ.get, {WANTED}), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Look())
"""


def settings_with(code: str, **environment: str) -> list[str]:
    """WANTED at the moment when `code` begins to import torch."""
    clean = {k: v for k, v in os.environ.items() if k not in WANTED}
    printed = subprocess.run(
        [sys.executable, "-c", AT_TORCH + code],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return printed.split()


@pytest.mark.parametrize("code", ["import train", "import eval", "import tools.bench"])
def test_what_is_compiled_is_kept_in_the_users_cache_unless_he_says_otherwise(code, tmp_path):
    cache = tmp_path / ".cache" / "saccade"
    assert settings_with(code, HOME=str(tmp_path)) == [str(cache / "compiled"), str(cache / "triton"), "PASSIVE"]
    assert settings_with(code, HOME=str(tmp_path), TRITON_CACHE_DIR="/mine", OMP_WAIT_POLICY="ACTIVE")[1:] == [
        "/mine",
        "ACTIVE",
    ]


def test_where_home_cannot_be_written_a_temporary_folder_serves(tmp_path):
    compiled, triton, _ = settings_with("import tools, torch", HOME="/proc/nobody", TMPDIR=str(tmp_path))
    assert Path(compiled).parent == Path(triton).parent and Path(triton).parent.parent == tmp_path
