"""Fine-tuning: a network that starts from the weights of another run."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ..errors import UserError
from ..models.state_dicts import fitted
from ..models.weights import find_weights, read_weights


def start_from(
    model: nn.Module, path: str | os.PathLike[str], *, classes: Sequence[str] = ()
) -> tuple[str, ...]:
    """Give `model` the weights of a run folder or weights file; return sentences on what was adapted.

    Two things may differ: the classifier's size, whose layer in `model` is then kept, and the input channels
    of the first convolution, whose kernels are then summed or repeated as timm does. The classifier is also
    kept if `classes`, those that will be trained, differ from the file's.

    Raises `UserError`, with `model` as it was, if anything else differs.
    """
    file = find_weights(os.fspath(path))
    weights, card = read_weights(file)
    own = model.state_dict()
    weights = fitted(weights, own, repr(str(file)))
    heads = classifier_names(model)
    wrong = [f"{k} is missing" for k in own if k not in weights and not _of(k, heads)]
    wrong += [f"{k} is not part of the network" for k in weights if k not in own and not _of(k, heads)]
    taken: dict[str, Tensor] = {}
    notes: list[str] = []
    other = bool(card is not None and card.classes and classes and tuple(card.classes) != tuple(classes))
    for name, value in own.items():
        if name not in weights:
            if _of(name, heads):
                notes.append(f"{name} starts anew: the file has none")
            continue
        given = weights[name]
        if _of(name, heads) and (other or given.shape != value.shape):
            reason = "the classes are others" if given.shape == value.shape else _shapes(given, value)
            notes.append(f"{name} starts anew: {reason}")
        elif given.shape == value.shape:
            taken[name] = given
        elif _is_first_convolution(model, name, given, value):
            taken[name] = adapt_input_conv(value.shape[1], given)
            notes.append(f"{name} is adapted from {given.shape[1]} to {value.shape[1]} channels")
        else:
            wrong.append(f"{name} has shape {_shapes(given, value)}")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        listed = "; ".join(wrong[:5]) + more
        raise UserError(f"the weights in {str(file)!r} cannot start this network: {listed}")
    with torch.no_grad():
        model.load_state_dict({**own, **taken})
    return tuple(notes)


def _shapes(given: Tensor, value: Tensor) -> str:
    return f"{tuple(given.shape)}, not {tuple(value.shape)}"


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that give the logits: what the network says, else its last linear layer."""
    told = getattr(model, "get_classifier", None)
    heads: list[nn.Module] = []
    if callable(told):
        found = told()
        heads = [m for m in (found if isinstance(found, (tuple, list)) else (found,)) if m is not None]
    names = [name for name, module in model.named_modules() if name and any(module is h for h in heads)]
    if not names:
        kinds = (nn.Linear, nn.Conv2d)
        names = [name for name, module in model.named_modules() if isinstance(module, kinds)][-1:]
    return (*names, *getattr(model, "uncounted_modules", ()))


def _of(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _is_first_convolution(model: nn.Module, name: str, given: Tensor, value: Tensor) -> bool:
    first = next((n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)), None)
    if name != f"{first}.weight" or given.ndim != 4 or {given.shape[1], value.shape[1]} != {1, 3}:
        return False
    return given[:, :1].shape == value[:, :1].shape
