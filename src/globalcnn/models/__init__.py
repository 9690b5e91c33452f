"""The networks, by family, and their registry."""

from .. import _torchvision

_torchvision.check()

from . import darts, densenet, digits, mdeq, mnist, mobile_global, neupde, neural_ode, resnet  # noqa: E402, F401
from .authors import load_authors_state_dict  # noqa: E402
from .registry import ModelInfo, check_model_name, create_model, list_models, model_info  # noqa: E402

__all__ = [
    "ModelInfo",
    "check_model_name",
    "create_model",
    "list_models",
    "load_authors_state_dict",
    "model_info",
]
