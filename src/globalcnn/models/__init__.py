"""The networks, by family, and their registry."""

from .. import _torchvision

_torchvision.check()

from . import darts, densenet, digits, mdeq, mnist, mobile_global, neupde, neural_ode, resnet  # noqa: E402, F401
from .registry import (  # noqa: E402
    ModelInfo,
    check_model_name,
    create_model,
    is_reconstruction,
    list_models,
    model_info,
    settings_for_size,
    shown_name,
)

__all__ = [
    "ModelInfo",
    "check_model_name",
    "create_model",
    "is_reconstruction",
    "list_models",
    "model_info",
    "settings_for_size",
    "shown_name",
]
