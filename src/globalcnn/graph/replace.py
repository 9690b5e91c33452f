"""Replacing a module inside a network, by its qualified name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..errors import UserError, UserTypeError, unknown_name


def replace_module(root: nn.Module, name: str, *, new: nn.Module) -> nn.Module:
    """Put `new` in the place of the submodule `name` of `root`; returns the network with it.

    A module that is registered under several names is replaced under all of them, so that it remains shared.
    Order and names of the children, and thus of the state dict, are kept. The name "" means the network
    itself: then `new` is returned, and nothing is changed. `new` is not changed: mode, device, dtype and
    hooks are the caller's. It may contain the old module.

    Raises `UserTypeError` where `root` or `new` is not a module; `UserError` where there is no such
    submodule, where `new` contains the parent of its place, or where the old module is also held by a plain
    Python attribute (a list of layers besides the registered ones, for instance), which would still call it.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> replace_module(net, "1", new=nn.SiLU())[1]
    SiLU()
    """
    for argument, value in {"root": root, "new": new}.items():
        if not isinstance(value, nn.Module):
            raise UserTypeError(
                f"replace_module: {argument} must be a torch.nn.Module, got {type(value).__name__}"
            )
    if name == "":
        return new
    names = {n: m for n, m in root.named_modules(remove_duplicate=False) if n}
    if name not in names:
        raise unknown_name("submodule", name, names)
    old = names[name]
    if new is old:
        return root
    places = [(p, key) for p in root.modules() for key, child in p._modules.items() if child is old]
    inner = set(new.modules())
    if any(parent in inner for parent, _ in places):
        raise UserError(f"replace_module: new contains the parent of {name!r}, and would contain itself")
    for where, attribute in _plain_holders(root, old):
        raise UserError(
            f"replace_module: {name!r} is also held by the plain attribute {attribute!r} of {where}, which "
            "would keep the old module; register it as a submodule alone, or replace it there by hand"
        )
    for parent, key in places:
        parent._modules[key] = new
    return root


def _plain_holders(root: nn.Module, module: nn.Module) -> Iterator[tuple[str, str]]:
    """(name of the holder, attribute) of every Python attribute, list, tuple or dict with `module` in it."""
    for name, holder in root.named_modules():
        for attribute, value in vars(holder).items():
            if attribute not in _OF_TORCH and _holds(value, module):
                yield name or "the network", attribute


_OF_TORCH = frozenset(vars(nn.Module()))


def _holds(value: Any, module: nn.Module) -> bool:
    if isinstance(value, (list, tuple)):
        return any(item is module for item in value)
    if isinstance(value, dict):
        return any(item is module for item in value.values())
    return value is module
