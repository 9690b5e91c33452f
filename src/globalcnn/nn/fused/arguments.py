"""The plain arguments of the operators, from a layer's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...ops import torch_ops
from ...ops.spec import ACTIVATIONS as OPERATOR_ACTIVATIONS
from .eligibility import ACTIVATIONS

if TYPE_CHECKING:
    from ..global_layer import GlobalLayer


def layer_arguments(layer: GlobalLayer) -> tuple[object, ...]:
    """Those of `globalcnn::layer` after the tensors."""
    return (
        *_common(layer),
        layer.shared_product,
        layer.velocity_from == "f",
        layer.start_from == "h",
        layer.source,
        layer.residual,
    )


def evolve_arguments(layer: GlobalLayer) -> tuple[object, ...]:
    """Those of `globalcnn::evolve` after eps."""
    return (*_common(layer), layer.shared_product, layer.start_from == "h", layer.source)


def _common(layer: GlobalLayer) -> tuple[object, ...]:
    Dx0, Dy0 = (0.0, 0.0) if layer.diffusivity is None else layer.diffusivity
    return *torch_ops.numbers(Dx0, Dy0, layer.pde), OPERATOR_ACTIVATIONS.index(ACTIVATIONS[type(layer.act)])
