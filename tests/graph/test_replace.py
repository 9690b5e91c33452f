"""Replacing a module by name: everywhere it is registered, in its place, or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from globalcnn.errors import UserError, UserTypeError
from globalcnn.graph import replace_module


class Net(nn.Module):
    """Children of every kind: an attribute, a Sequential, a ModuleList, a ModuleDict, a shared module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.several = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)])
        self.by_name = nn.ModuleDict({"a": nn.Conv2d(4, 4, 1), "b": nn.ReLU()})
        self.again = self.several[1]


@pytest.mark.parametrize("name", ["stem", "body", "body.0", "body.1", "several.0", "by_name.a"])
def test_the_named_child_is_replaced_and_the_others_keep_their_places(name):
    net = Net()
    before = list(net.named_modules(remove_duplicate=False))
    new = nn.Identity()
    assert replace_module(net, name, new=new) is net
    after = dict(net.named_modules(remove_duplicate=False))
    assert after[name] is new
    kept = [n for n, _ in before if not n.startswith(f"{name}.")]
    assert list(after) == kept
    assert all(after[n] is m for n, m in before if n in after and n != name)


def test_a_module_with_several_names_is_replaced_under_all_of_them():
    for name in ("again", "several.1"):
        net, new = Net(), nn.Identity()
        replace_module(net, name, new=new)
        assert net.again is new
        assert net.several[1] is new


def test_the_new_module_may_contain_the_old_one():
    net = Net()
    wrapped = nn.Sequential(net.stem, nn.ReLU())
    replace_module(net, "stem", new=wrapped)
    assert net.stem is wrapped
    assert net.stem[0].in_channels == 3


def test_the_network_itself_gives_the_new_one():
    net, new = Net(), nn.Identity()
    assert replace_module(net, "", new=new) is new
    assert isinstance(net.stem, nn.Conv2d)


class HoldsAList(nn.Module):
    """Calls its layer through a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ReLU()
        self.layers = [self.layer]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x)


def test_what_cannot_be_replaced_is_refused_by_name():
    net = Net()
    with pytest.raises(UserError, match=r"unknown submodule 'body\.2'; did you mean"):
        replace_module(net, "body.2", new=nn.Identity())
    with pytest.raises(UserTypeError, match=r"new must be a torch\.nn.Module, got str"):
        replace_module(net, "stem", new="relu")
    with pytest.raises(UserTypeError, match=r"root must be a torch\.nn.Module"):
        replace_module("net", "stem", new=nn.ReLU())
    with pytest.raises(UserError, match="would contain itself"):
        replace_module(net, "body.0", new=nn.Sequential(net.body))
    held = HoldsAList()
    with pytest.raises(
        UserError, match="'layer' is also held by the plain attribute 'layers' of the network"
    ):
        replace_module(held, "layer", new=nn.SiLU())
    assert isinstance(held.layer, nn.ReLU)
