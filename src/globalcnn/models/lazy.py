"""Networks with lazy layers (`nn.LazyConv2d`, `nn.LazyLinear`): one image gives them their shapes."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import UserError


def has_lazy_tensors(network: nn.Module) -> bool:
    """Whether a parameter or buffer has no shape yet.

    >>> has_lazy_tensors(nn.LazyLinear(3)), has_lazy_tensors(nn.Linear(2, 3))
    (True, False)
    """
    return any(is_lazy(t) for t in chain(network.parameters(), network.buffers()))


def with_shapes(network: nn.Module, in_chans: int, image_size: tuple[int, int]) -> nn.Module:
    """`network`, its lazy layers shaped by one image (1, in_chans, *image_size) of zeros, in eval mode.

    Their fresh weights are drawn from the global generator, as in a first forward. Without lazy layers
    nothing runs. Raises `UserError` if the network does not run on such an image.

    >>> with_shapes(nn.LazyConv2d(4, 3), 3, (8, 8)).weight.shape
    torch.Size([4, 3, 3, 3])
    """
    if not has_lazy_tensors(network):
        return network
    flags = [(m, m.training) for m in network.modules()]
    like = next(network.parameters())
    try:
        network.eval()
        with torch.no_grad():
            network(torch.zeros(1, in_chans, *image_size, device=like.device, dtype=like.dtype))
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, (UserError, torch.OutOfMemoryError)):
            raise
        first = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"the network's lazy layers get no shape from an image of {(in_chans, *image_size)}: "
            f"{type(error).__name__}: {first}"
        ) from error
    finally:
        for module, flag in flags:
            module.training = flag
    if has_lazy_tensors(network):
        raise UserError("the network has lazy layers that its forward does not reach: remove them")
    return network
