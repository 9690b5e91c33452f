"""The effective receptive field: how strongly the central feature depends on each pixel of the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..graph import eval_mode
from .probe import checked_model, checked_size, run_once

IMAGES = 8


def effective_field(
    model: nn.Module,
    input_size: Sequence[int],
    *,
    images: Tensor | None = None,
    features: Callable[[Tensor], Any] | None = None,
) -> Tensor:
    """The mean size of the gradient of the central feature by pixel, (H, W), its largest value 1.

    Of the feature map (N, C', H', W') of `features(images)` (by default `model.forward_features` where the
    model has that method, else `model`), the element (H' // 2, W' // 2), summed over the channels with random
    signs, is differentiated with respect to the image; sizes are summed over the image's channels and
    averaged over `images` (N, C, H, W), by default 8 of noise with a fixed seed. Unlike `receptive_field` it
    depends on the weights. The model runs in eval mode and is restored.

    Source: Luo, Li, Urtasun and Zemel, "Understanding the effective receptive field in deep convolutional
    neural networks", NeurIPS 2016; the random signs keep channels from cancelling.

    Raises `UserError` where the feature map is not four-dimensional, or nothing of the image reaches its
    centre with a finite gradient.

    >>> effective_field(nn.Conv2d(1, 4, 3, padding=1), (1, 5, 5)).gt(0).int().tolist()[0]
    [0, 0, 0, 0, 0]
    """
    model = checked_model(model)
    size = checked_size(input_size)
    run: Callable[[Tensor], Any] = features or getattr(model, "forward_features", None) or model
    weight = next(model.parameters(), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    if images is None:
        images = torch.randn(IMAGES, *size, generator=generator)
    images = images.to(weight.device, weight.dtype)
    with eval_mode(model), torch.enable_grad():
        source = images.clone().requires_grad_()
        outputs = run_once(run, source)
        if len(outputs) != 1 or outputs[0].ndim != 4:
            got = ", ".join(str(tuple(output.shape)) for output in outputs)
            raise UserError(
                f"an effective receptive field needs one feature map (N, C, H, W), got {got or 'no tensor'}: "
                "give features=, a callable that makes it from the images"
            )
        maps = outputs[0]
        centre = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]
        signs = (torch.randint(0, 2, centre.shape, generator=generator) * 2 - 1).to(centre)
        try:
            (gradient,) = torch.autograd.grad((centre * signs).sum(), source)
        except RuntimeError as error:
            raise UserError("the feature map has no gradient with respect to the image") from error
    field = gradient.abs().sum(1).mean(0).detach().double().cpu()
    if not bool(field.isfinite().all()) or not field.max() > 0:
        raise UserError("nothing of the image reaches the centre of the feature map with a finite gradient")
    return (field / field.max()).float()
