"""What torch, Triton and OpenMP read from the environment when they are loaded: set it before importing them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from saccade.base.caches import cache_folder


def prepare_libraries() -> None:
    """Waiting threads sleep, and what is compiled is kept in the cache folder. What the user has set stays."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads must not burn shared cores
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a fellow that is gone is one sentence, not a stack of C++
    wanted = {"TORCHINDUCTOR_CACHE_DIR": "compiled", "TRITON_CACHE_DIR": "triton"}
    if missing := [variable for variable in wanted if variable not in os.environ]:
        cache = _writable_cache()
        os.environ.update({variable: str(cache / wanted[variable]) for variable in missing})


def _writable_cache() -> Path:
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK | os.X_OK):
            return cache
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="saccade-"))  # Triton would fail; /tmp is kept for this process at least
