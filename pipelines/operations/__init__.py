"""The operations on a view: one class in one file each. Those that published recipes use are named here."""

from saccade.pipelines.operations.blur import Blur
from saccade.pipelines.operations.grey import Grey
from saccade.pipelines.operations.jitter import Jitter
from saccade.pipelines.operations.operation import Operation
from saccade.pipelines.operations.solarise import Solarise

USUAL = (Jitter, Grey, Blur, Solarise)  # in the order of the papers, which is that of the fused kernels

__all__ = ["USUAL", "Blur", "Grey", "Jitter", "Operation", "Solarise"]
