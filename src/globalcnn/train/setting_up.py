"""The parts of a training before its first step: processes and device, optimiser, mixing, averaging."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from timm.data.mixup import Mixup
from timm.optim import create_optimizer_v2, list_optimizers
from timm.utils import ModelEmaV3
from torch import nn
from torch.backends.cpu import get_cpu_capability

from ..errors import UserError, UserTypeError, unknown_name
from .optimizers import leaves_weights_to_adamw
from .recipe import Recipe

LARGEST_SEED = 2**32 - 1  # numpy takes no larger one


def checked_seed(seed: int) -> int:
    """`seed`, or a `UserError` unless it is a whole number from 0 to 2**32 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserTypeError(f"seed={seed!r} must be a whole number from 0 to {LARGEST_SEED}")
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed={seed!r} must be a whole number from 0 to {LARGEST_SEED}")
    return seed


def checked_device(device: str) -> str:
    """`device`, or a `UserError` unless torch finds it here."""
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise UserError(
            f"device={device!r} must be auto, cpu, cuda or mps (choose a card by CUDA_VISIBLE_DEVICES)"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device='cuda', but torch finds no CUDA device here; take --device cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("device='mps', but torch finds no such device here; take --device cpu")
    return device


def make_accelerator(device: str, precision: str, *, unused_parameters: bool = False) -> Accelerator:
    """Accelerate's view of this process: device, precision, and how many processes there are.

    device: "auto", "cpu", "cuda" or "mps" (with torchrun each process takes its own).
    unused_parameters: whether a step may leave parameters without gradient (auxiliary heads, stochastic
    depth).
    """
    checked_device(device)
    if AcceleratorState._shared_state:
        # accelerate keeps one state per process; a second training may want another precision
        AcceleratorState._reset_state(reset_partial_state=False)
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)]
    made = Accelerator(cpu=device == "cpu", mixed_precision=precision, kwargs_handlers=handlers)
    if precision == "bf16" and made.device.type == "cpu" and get_cpu_capability() == "AVX2":
        warnings.warn(
            "precision='bf16': on this processor (AVX2) PyTorch computes bfloat16 without instructions "
            "for it, and a step takes several times as long as with precision='no'",
            stacklevel=3,
        )
    return made


def make_optimizer(modules: Iterable[nn.Module], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the parameters of the modules."""
    extra: dict[str, Any] = {} if recipe.optimizer_eps is None else {"eps": recipe.optimizer_eps}
    if leaves_weights_to_adamw(recipe.optimizer):
        extra["fallback_lr_scale"] = recipe.fallback_lr_scale
    trained = list(modules)
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            trained[0] if len(trained) == 1 else nn.ModuleList(trained),
            opt=recipe.optimizer,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            filter_bias_and_bn=not recipe.decay_norms_and_biases,
            **extra,
        )
    except ValueError as error:
        if recipe.optimizer in list_optimizers():
            raise UserError(
                f"recipe: optimizer={recipe.optimizer!r} refuses its settings: {error}"
            ) from error
        known = [str(name) for name in list_optimizers()]
        raise unknown_name(
            "optimizer", recipe.optimizer, known, way_out="timm's names, such as sgd"
        ) from error
    if getattr(optimizer, "is_second_order", False):
        raise UserError(
            f"recipe: optimizer={recipe.optimizer!r} needs second derivatives of the loss, which training "
            "does not compute: take another, such as adamw"
        )
    return optimizer


def make_mixup(recipe: Recipe, num_classes: int) -> Mixup | None:
    """timm's mixing of images in pairs, if the recipe has any."""
    if not (recipe.mixup or recipe.cutmix):
        return None
    return Mixup(  # type: ignore[no-untyped-call, unused-ignore]
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        label_smoothing=recipe.label_smoothing,
        num_classes=num_classes,
    )


def make_average(model: nn.Module, recipe: Recipe) -> ModelEmaV3 | None:
    """The averaged copy of the network, if the recipe averages."""
    if not recipe.ema_decay:
        return None
    try:
        return ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        first = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"recipe: ema_decay={recipe.ema_decay} averages weights in a copy of the network, and "
            f"{type(model).__name__} cannot be copied ({first}): take ema_decay=0.0"
        ) from error
