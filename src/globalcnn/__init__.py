"""globalcnn: condense CNNs with partial differential equations.

>>> import globalcnn
>>> model = globalcnn.create_model("resnet_global_cifar", num_classes=10)
"""

from . import _torchvision
from .errors import UserError
from .nn import GlobalLayer
from .ops import PDE, GatedSweeps, solve
from .ops import Boundary as Boundary  # its values are also taken as strings
from .ops import DuFortFrankel as DuFortFrankel  # the default scheme

try:
    _torchvision.check()
    from . import condense
    from .export import export  # as with train, the function
    from .models import create_model, list_models, load
    from .optimize import optimize_for_inference
    from .train import train  # the function; `from globalcnn.train import Recipe` finds the package as before
except _torchvision.BrokenTorchvision:
    # The command line imports this package before it can catch errors, and must report this one in
    # one line. So the import succeeds, and functions that need torchvision raise when they are called.
    condense = _torchvision.Refusal()  # type: ignore[assignment]
    create_model = export = list_models = load = optimize_for_inference = train = _torchvision.refuse

__version__ = "0.1.0"

__all__ = [
    "PDE",
    "GatedSweeps",
    "GlobalLayer",
    "UserError",
    "condense",
    "create_model",
    "export",
    "list_models",
    "load",
    "optimize_for_inference",
    "solve",
    "train",
]
