"""Whether a network still computes what its weights were trained for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final

from timm.layers.drop import DropPath
from torch import nn

SHOWN: Final = 3  # modules named in a warning
REGULARISERS: Final = (nn.Identity, nn.modules.dropout._DropoutNd, DropPath)  # of training alone


def alike(given: Mapping[str, Any], trained: Mapping[str, Any]) -> bool:
    """Whether all settings that are given are those of the training, but for rates of dropout.

    >>> alike({"drop_rate": 0.1}, {}), alike({"act_layer": "silu"}, {"act_layer": "relu"})
    (True, False)
    """
    return all(
        k.endswith(("drop_rate", "drop_path_rate")) or (k in trained and bool(trained[k] == v))
        for k, v in given.items()
    )


def differences(model: nn.Module, trained: nn.Module) -> tuple[str, ...]:
    """Where `model` computes something else than the network `trained` with the same weights would.

    Each as "name: this instead of that", of modules that differ in kind or in what they print of themselves.

    Dropout in its forms does not count, nor do layers of other shapes, whose weights cannot be the same.

    >>> differences(nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU()))
    ("0: ReLU() instead of GELU(approximate='none')",)
    """
    ours, theirs = (dict(network.named_modules()) for network in (model, trained))
    found = []
    for name in {**theirs, **ours}:
        here, there = ours.get(name), theirs.get(name)
        if isinstance(here, (*REGULARISERS, type(None))) and isinstance(there, (*REGULARISERS, type(None))):
            continue
        now, before = (_described(module) for module in (here, there))
        if now != before and _shapes(here) == _shapes(there):
            found.append(f"{name or 'the network'}: {now} instead of {before}")
    return tuple(found)


def warn_of_differences(model: nn.Module, trained: nn.Module, where: str) -> None:
    """Warn where `model`, which got the weights of the file `where`, is not the network that was trained."""
    found = differences(model, trained)
    if not found:
        return
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    warnings.warn(
        f"{where}: these weights were trained in another network ({'; '.join([*found[:SHOWN], *more])}): "
        "what this one computes is not what was trained, until you train it",
        stacklevel=3,
    )


def _described(module: nn.Module | None) -> str:
    if module is None:
        return "nothing"
    inner = any(True for _ in module.children())
    return f"{type(module).__name__}({module.extra_repr()})" if inner else repr(module)


def _shapes(module: nn.Module | None) -> dict[str, Any]:
    return {} if module is None else {k: tuple(p.shape) for k, p in module.named_parameters(recurse=False)}
