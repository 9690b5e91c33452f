"""Finding the first layer that is not finite when the loss is not."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite; the message names the epoch, the step, the layer and the remedy."""


def finite(value: object) -> bool:
    """Whether all floating tensors in `value` (a tensor, or nested tuples, lists and dicts) are finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, (tuple, list)):
        return all(finite(v) for v in value)
    if isinstance(value, dict):
        return all(finite(v) for v in value.values())
    return True


def where_it_began(model: nn.Module, images: Tensor) -> str:
    """A phrase for the first place that is not finite when `images` go through `model`, in its present
    mode."""
    if not finite(images):
        return "the images of the batch"
    for name, parameter in model.named_parameters():
        if not finite(parameter):
            return f"the weights of layer {name.rpartition('.')[0] or 'the network'!r} ({name})"
    found: list[str] = []

    def watch(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not found and not finite(output):
                found.append(f"layer {name!r} ({type(module).__name__})")

        handles.append(module.register_forward_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for name, module in model.named_modules():
            if name:
                watch(name, module)
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "the loss itself (every layer's output is finite)"
