"""Operations on any network: tracing of shapes, folding of norms, replacing a named child."""

from .folding import Folding, fold_batch_norms, is_altered
from .replace import replace_module
from .shapes import Call, ShapeTrace, TensorInfo, trace_shapes
from .state import eval_mode

__all__ = [
    "Call",
    "Folding",
    "ShapeTrace",
    "TensorInfo",
    "eval_mode",
    "fold_batch_norms",
    "is_altered",
    "replace_module",
    "trace_shapes",
]
