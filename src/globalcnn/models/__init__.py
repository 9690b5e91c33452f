"""The networks, by family, and their registry."""

from .. import _torchvision

_torchvision.check()

from . import darts, densenet, digits, mdeq, mnist, mobile_global, neupde, neural_ode, resnet  # noqa: E402, F401
from .card import Card, make_card  # noqa: E402
from .condensed import CondensedSource, Place, put_places  # noqa: E402
from .create import create_model  # noqa: E402
from .registry import (  # noqa: E402
    ModelInfo,
    check_model_name,
    is_reconstruction,
    list_models,
    model_info,
    settings_for_size,
    shown_name,
)
from .source import (  # noqa: E402
    FactorySource,
    FileSource,
    ModuleSource,
    NamedSource,
    Source,
    parse_source,
    source_from_json,
    source_of,
)
from .weights import load, load_with_card, read_card, save_weights  # noqa: E402

__all__ = [
    "Card",
    "CondensedSource",
    "FactorySource",
    "FileSource",
    "ModelInfo",
    "ModuleSource",
    "NamedSource",
    "Place",
    "Source",
    "check_model_name",
    "create_model",
    "is_reconstruction",
    "list_models",
    "load",
    "load_with_card",
    "make_card",
    "model_info",
    "parse_source",
    "put_places",
    "read_card",
    "save_weights",
    "settings_for_size",
    "shown_name",
    "source_from_json",
    "source_of",
]
