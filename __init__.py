"""Saccade pre-trains vision backbones without labels, the data pipeline first.

`import saccade` loads nothing heavy; a name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from saccade.base.allocator import keep_freed_memory as keep_freed_memory
    from saccade.base.errors import UserError as UserError
    from saccade.models.backbone import load_backbone as load_backbone
    from saccade.pipelines.build import build_pipeline as build_pipeline
    from saccade.pipelines.data import open_data as open_data
    from saccade.pipelines.views import Crop as Crop
    from saccade.pipelines.views import View as View
    from saccade.pipelines.views import Views as Views
    from saccade.tools.pretrain import pretrain as pretrain

_HOMES = {  # public name: the module it lives in
    "UserError": "saccade.base.errors",
    "Crop": "saccade.pipelines.views",
    "View": "saccade.pipelines.views",
    "Views": "saccade.pipelines.views",
    "build_pipeline": "saccade.pipelines.build",
    "keep_freed_memory": "saccade.base.allocator",
    "load_backbone": "saccade.models.backbone",
    "open_data": "saccade.pipelines.data",
    "pretrain": "saccade.tools.pretrain",
}
__all__ = [
    "Crop",
    "UserError",
    "View",
    "Views",
    "__version__",
    "build_pipeline",
    "keep_freed_memory",
    "load_backbone",
    "open_data",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'saccade' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
