"""The peers by name: what each needs, and what it leaves out of the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from saccade.base.errors import UserError
from saccade.base.text import did_you_mean
from saccade.pipelines.sources import FolderSource
from saccade.tools.benchmark.peers import per_image, whole_batch
from saccade.tools.benchmark.peers.materials import Materials
from saccade.tools.benchmark.suites import Work

INSTALL = "pip install 'saccade[peers]'"


@dataclass(frozen=True)
class Peer:
    """views: materials -> batches of views without end, each view (N, 3, S, S) float32, normalised.

    module, package: what it is imported and installed as; leaves_out: what it does not do, or otherwise, in words;
    beton: which .beton it reads; without: operations of the recipe that it has not; pace: how many times as long as
    torchvision's slower loader it takes at most; first: seconds before its first batch, of a .beton's for each view.
    """

    views: Callable[[Materials], Iterator[list[Tensor]]]
    module: str
    package: str
    leaves_out: str = ""
    beton: str = ""
    without: tuple[str, ...] = ()
    pace: float = 1.0
    first: float = 6.0
    install: str = INSTALL

    @property
    def version(self) -> str:
        """Of its package; "" where it is not installed."""
        try:
            return metadata.version(self.package) if find_spec(self.module) else ""
        except (metadata.PackageNotFoundError, ModuleNotFoundError):
            return ""

    def suits(self, work: Work) -> bool:
        """Small images are pixels and no JPEGs."""
        return self.beton != "jpg" or isinstance(work.source, FolderSource)

    def check(self, materials: Materials) -> None:
        """UserError where it cannot take part."""
        if not self.version:
            raise UserError(f"not installed; {self.install}")
        if self.beton and self.beton not in materials.betons:
            raise UserError(f"there is no {self.beton} .beton of this work")


_NO_ANTIALIASING = "antialiasing where a crop is made smaller"
_FFCV: dict[str, Any] = {
    "module": "ffcv",
    "package": "ffcv",
    "leaves_out": "hue, grey and blur, which it has not; it decodes once for each view",
    "without": ("hue", "grey", "blur"),
    "first": 12.0,
    "install": "pip install 'saccade[ffcv]' (docs/data.md)",
}
PEERS = {
    "ffcv-loader jpg": Peer(whole_batch.ffcv_jpg, beton="jpg", **_FFCV),
    "ffcv-loader raw": Peer(whole_batch.ffcv_raw, beton="raw", **_FFCV),
    "dali-graph": Peer(
        whole_batch.dali,
        "nvidia.dali",
        "nvidia-dali-cuda130",
        "nothing; jitter in one fixed order, hue linear in YIQ",
        install="pip install nvidia-dali-cuda130",
    ),
    "albumentations": Peer(per_image.albumentations, "albumentations", "albumentations", _NO_ANTIALIASING),
    "kornia": Peer(per_image.kornia, "kornia", "kornia", _NO_ANTIALIASING, pace=4.0),
    "spdl": Peer(
        whole_batch.spdl, "spdl.io", "spdl-io", "nothing; it decodes, the views are torchvision v2's", pace=2.0
    ),
    "lightly": Peer(per_image.lightly, "lightly", "lightly", "nothing; torchvision's operations on PIL images"),
    "webdataset": Peer(
        per_image.webdataset, "webdataset", "webdataset", "nothing; torchvision's operations on PIL images"
    ),
}


def chosen(names: str) -> dict[str, Peer]:
    """E.g. "all", or "dali-graph,kornia"; UserError for one that is unknown."""
    if names == "all":
        return PEERS
    for name in (wanted := names.split(",")):
        if name not in PEERS:
            raise UserError(f"--peers {name} is unknown{did_you_mean(name, PEERS)}; use some of {', '.join(PEERS)}.")
    return {name: PEERS[name] for name in wanted}
