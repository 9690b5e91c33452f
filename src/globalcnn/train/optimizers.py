"""What a recipe knows of timm's optimisers: their usual rates, and which leave some weights to AdamW."""

from __future__ import annotations

import inspect

from timm.optim import Muon, get_optimizer_info

_MUON, _ADAMW, _SGD = (0.03, 0.05), (1e-3, 0.05), (0.1, 5e-4)  # learning rate, weight decay
_UNKNOWN_RATE = 1e-3


def _known(optimizer: str) -> tuple[str, type | None]:
    """The name as timm reads it, "Lookahead_AdamW" as adamw, and the class if it is installed."""
    name = optimizer.lower().split("_")[-1]
    try:
        found = get_optimizer_info(name).opt_class
    except ValueError:
        found = None
    return name, found if isinstance(found, type) else None


def usual_rates(optimizer: str) -> dict[str, float]:
    """Learning rate and weight decay that an optimiser gets where none are given.

    Those of Muon were measured (docs/accuracy-per-hour.md); beyond Muon, SGD and AdamW the rate is the
    default of the optimiser's own constructor.

    >>> usual_rates("nmuon"), usual_rates("SGD")
    ({'lr': 0.03, 'weight_decay': 0.05}, {'lr': 0.1, 'weight_decay': 0.0005})
    >>> usual_rates("lion")
    {'lr': 0.0001, 'weight_decay': 0.0005}
    """
    name, kind = _known(optimizer)
    if leaves_weights_to_adamw(optimizer):
        lr, weight_decay = _MUON
    elif name.endswith("adamw"):
        lr, weight_decay = _ADAMW
    elif kind is None or kind.__name__.startswith("SGD"):
        lr, weight_decay = _SGD
    else:
        given = inspect.signature(kind).parameters["lr"].default
        lr, weight_decay = given if isinstance(given, float) else _UNKNOWN_RATE, _SGD[1]
    return {"lr": lr, "weight_decay": weight_decay}


def leaves_weights_to_adamw(optimizer: object) -> bool:
    """Whether it is Muon or one of its variants, which are for dense weights alone."""
    kind = _known(optimizer)[1] if isinstance(optimizer, str) else None
    return kind is not None and issubclass(kind, Muon)
