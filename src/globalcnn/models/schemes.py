"""The time scheme of a whole network by name: `create_model(..., scheme="gated-sweeps")`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from torch import nn

from ..errors import UserError, UserTypeError, unknown_name
from ..nn.global_layer import check_diffusivity
from ..ops import PDE, AxisScheme, DuFortFrankel, GatedSweeps, Scheme, TridiagonalImplicit

NAMED_SCHEMES: Final[dict[str, Scheme]] = {
    "du-fort-frankel": DuFortFrankel(),
    "gated-sweeps": GatedSweeps(),
    "gated-sweeps-sigmoid": GatedSweeps("sigmoid"),
    "gated-sweeps-rational": GatedSweeps("rational"),
    "tridiagonal-implicit": TridiagonalImplicit(),
}


def find_scheme(scheme: str | Scheme) -> Scheme:
    """The scheme of that name, or the scheme itself.

    >>> find_scheme("gated-sweeps-sigmoid")
    GatedSweeps(gate='sigmoid', first='x')
    """
    if isinstance(scheme, Scheme):
        return scheme
    if not isinstance(scheme, str):
        raise UserTypeError(
            f"scheme={scheme!r} must be one of {', '.join(NAMED_SCHEMES)}, or a Scheme object"
        )
    if scheme not in NAMED_SCHEMES:
        raise unknown_name("scheme", scheme, NAMED_SCHEMES)
    return NAMED_SCHEMES[scheme]


def check_scheme(name: str, settings: dict[str, Any]) -> None:
    """Raise `UserError` for a `scheme` among the settings of `name` that cannot be used."""
    find_scheme(settings["scheme"])
    if settings.get("pde") is not None:
        raise UserError(
            f"model {name!r}: pde={settings['pde']!r} and scheme={settings['scheme']!r} cannot both be "
            "given; pde=PDE(scheme=...) states both"
        )


def set_scheme(model: nn.Module, scheme: str | Scheme) -> None:
    """Let every layer of `model` that solves a PDE use `scheme`, with the scheme's own boundary.

    Steps, dt and spacing stay. A scheme that works axis by axis starts with its `first` in the first of these
    layers, with the other axis in the next one, and so on.

    Raises `UserError` for an unknown scheme, a network without such layers, or a layer with constant
    diffusion where the scheme predicts all gates; the network is unchanged then.

    >>> from globalcnn import create_model
    >>> model = create_model("resnet_global_cifar")
    >>> set_scheme(model, "gated-sweeps")
    >>> [pde.scheme.first for pde in equations(model)][:3]
    ['x', 'y', 'x']
    """
    found = find_scheme(scheme)
    layers = list(_layers(model))
    if not layers:
        raise UserError(
            f"scheme={scheme!r} is for networks with Global layers; {type(model).__name__} has none "
            '(`globalcnn list "*global*"` shows those that do)'
        )
    planned = []
    for i, layer in enumerate(layers):
        pde = replace(layer.pde, scheme=_alternating(found, i), boundary=None)
        check_diffusivity(pde, getattr(layer, "diffusivity", None))
        if getattr(layer, "bounded", False) and not isinstance(pde.scheme, DuFortFrankel):
            raise UserError(f"scheme={scheme!r}: bounded=True is for the scheme DuFortFrankel() alone")
        planned.append(pde)
    for layer, pde in zip(layers, planned, strict=True):
        layer.pde = pde


def alternate_axes(model: nn.Module) -> None:
    """Let a scheme that works axis by axis start with the other axis in every second layer.

    The first layer's scheme says which axis the first one starts with. Layers of other schemes stay.

    >>> from globalcnn import create_model
    >>> model = create_model("resnet_global_cifar", pde=PDE(scheme=GatedSweeps(first="y")))
    >>> [pde.scheme.first for pde in equations(model)]
    ['y', 'x', 'y']
    """
    layers = list(_layers(model))
    for i, layer in enumerate(layers):
        first = layers[0].pde.scheme
        if type(layer.pde.scheme) is type(first):
            layer.pde = replace(layer.pde, scheme=_alternating(first, i))


def equations(model: nn.Module) -> list[PDE]:
    """The equations that the layers of `model` solve, in the order of its modules."""
    return [layer.pde for layer in _layers(model)]


def _layers(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(getattr(module, "pde", None), PDE))


def _alternating(scheme: Scheme, position: int) -> Scheme:
    if position % 2 == 0 or not isinstance(scheme, AxisScheme):
        return scheme
    other: Scheme = replace(scheme, first="y" if scheme.first == "x" else "x")  # type: ignore[type-var]
    return other
