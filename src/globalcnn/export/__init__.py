"""Files for inference engines: ONNX, OpenVINO, torch.export. Each is compared with its network there."""

from .. import _torchvision

_torchvision.check()

from .checking import Check  # noqa: E402
from .exporting import export  # noqa: E402
from .int8 import Int8  # noqa: E402
from .report import ExportReport  # noqa: E402
from .target import Target  # noqa: E402
from .targets import TARGETS  # noqa: E402

__all__ = ["TARGETS", "Check", "ExportReport", "Int8", "Target", "export"]
