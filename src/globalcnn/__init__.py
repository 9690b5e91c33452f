"""globalcnn: condense CNNs with partial differential equations.

>>> import globalcnn
>>> model = globalcnn.create_model("resnet_global_cifar", num_classes=10)
"""

from .errors import UserError
from .models import create_model, list_models, load_authors_state_dict
from .nn import GlobalLayer
from .ops import PDE, Boundary, DuFortFrankel, solve

__version__ = "0.1.0"

__all__ = [
    "PDE",
    "Boundary",
    "DuFortFrankel",
    "GlobalLayer",
    "UserError",
    "create_model",
    "list_models",
    "load_authors_state_dict",
    "solve",
]
