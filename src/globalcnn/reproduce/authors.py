"""Weights of the authors' released code, by name, into the networks here.

The released code names the parts of a Global layer `convg`, `bng` (u), `convg1`, `bng1` (v), `convDx`,
`bnDx`, `convDy`, `bnDy`, `init_h`, `bn_out`. A family whose names differ beyond that says so in `_FAMILIES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..errors import UserError, UserTypeError
from ..models.darts import DARTS
from ..models.densenet import DenseNet
from ..models.digits import DigitsNet
from ..models.mdeq import MDEQ
from ..models.mnist import MNISTNet
from ..models.mobile_global import MobileGlobal
from ..models.neupde import PDEFunction
from ..models.resnet import ResNet
from ..nn import GlobalLayer

_GLOBAL = {
    "velocity_x.net": "convg",
    "velocity_x.norm": "bng",
    "velocity_y.net": "convg1",
    "velocity_y.norm": "bng1",
    "diffusion_x.net": "convDx",
    "diffusion_x.norm": "bnDx",
    "diffusion_y.net": "convDy",
    "diffusion_y.norm": "bnDy",
    "norm": "bn_out",
    "init": "init_h",
}


def load_authors_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict of the authors' released code into `model`, in place.

    model: a network of this library with Global layers, or one of its baselines from the same code.
    state_dict: the authors' names to tensors; a common prefix "module." (saved from DataParallel) is removed.
    Entries that their code saves and its forward never reads are passed over.

    Raises one `UserError` that lists all missing, unexpected and misshapen entries; the model is untouched
    then.
    """
    if not isinstance(state_dict, Mapping) or not all(isinstance(v, Tensor) for v in state_dict.values()):
        raise UserTypeError(
            "state_dict must map names to tensors; load the file and take its state dict out first"
        )
    given = dict(state_dict)
    if given and all(k.startswith("module.") for k in given):
        given = {k.removeprefix("module."): v for k, v in given.items()}
    given = {k: v for k, v in given.items() if not k.startswith(_without_use(model))}
    own = model.state_dict()
    names = authors_names(model)
    wanted = {names[k]: k for k in own}
    problems = _problems(wanted, own, given)
    if problems:
        raise UserError(
            f"the state dict does not fit {type(model).__name__}: " + "; ".join(problems) + ". "
            "Create the model with the num_classes and settings that the checkpoint was trained with"
        )
    with torch.no_grad():
        for theirs, ours in wanted.items():
            if theirs in given:
                own[ours].copy_(given[theirs])


def authors_names(model: nn.Module) -> dict[str, str]:
    """Our name of every entry of the state dict, to the authors' name of it."""
    family = next((rename for kind, rename in _FAMILIES.items() if isinstance(model, kind)), None)
    if family is None:
        known = ", ".join(kind.__name__ for kind in _FAMILIES)
        raise UserError(
            f"no names of the authors' code are known for {type(model).__name__} (known: {known})"
        )
    layers = [n for n, m in model.named_modules() if isinstance(m, GlobalLayer)]
    return {k: family(model, _in_global_layer(k, layers)) for k in model.state_dict()}


def _in_global_layer(key: str, layers: list[str]) -> str:
    for layer in layers:
        prefix = f"{layer}." if layer else ""
        if not key.startswith(prefix):
            continue
        rest = key.removeprefix(prefix)
        for ours, theirs in _GLOBAL.items():
            if rest == ours or rest.startswith(f"{ours}."):
                return prefix + theirs + rest.removeprefix(ours)
    return key


def _problems(wanted: dict[str, str], own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    # a counter of batches carries no weights, and old checkpoints lack it
    missing = [k for k in wanted if k not in given and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in given if k not in wanted]
    misshapen = [
        f"{k} has shape {tuple(given[k].shape)}, not {tuple(own[wanted[k]].shape)}"
        for k in wanted
        if k in given and given[k].shape != own[wanted[k]].shape
    ]
    lists = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    return [f"{len(found)} {what} ({', '.join(found)})" for what, found in lists.items() if found]


def _same(model: nn.Module, key: str) -> str:
    return key


def _mnist(model: nn.Module, key: str) -> str:
    """One sequential: 0..6 the stem, 7.. the body, then norm, (ReLU, pool, flatten), linear.

    The function of an ODE is `odefunc`, its convolutions over time and state hold a `_layer`.
    """
    assert isinstance(model, MNISTNet)
    if any(isinstance(m, PDEFunction) for m in model.modules()):
        raise UserError("neupde_mnist is a reconstruction: the authors' code has no names for it")
    after_body = 7 + len(model.body)  # type: ignore[arg-type]
    key = re.sub(r"^stem\.", "", key)
    key = re.sub(r"^body\.(\d+)\.", lambda m: f"{7 + int(m[1])}.", key)
    key = re.sub(r"^(\d+)\.f\.", r"\1.odefunc.", key)
    key = re.sub(r"\.layer\.(weight|bias)$", r"._layer.\1", key)
    key = re.sub(r"^norm\.", f"{after_body}.", key)
    return re.sub(r"^fc\.", f"{after_body + 4}.", key)


_MDEQ = (
    (r"^stem\.", "downsample."),
    (r"^inject\.", "stage0."),
    (r"^expand\.(\d+)\.", r"incre_modules.\1.0."),
    (r"\.shortcut\.", ".downsample."),
    (r"^reduce\.", "downsamp_modules."),
    (r"^final\.", "final_layer."),
    (r"parametrizations\.weight\.original0$", "weight_g"),
    (r"parametrizations\.weight\.original1$", "weight_v"),
    (r"^equilibrium\.f\.branches\.(\d+)\.norm", r"fullstage.branches.\1.blocks.0.gn"),
    (r"^equilibrium\.f\.branches\.(\d+)\.", r"fullstage.branches.\1.blocks.0."),
    (r"^equilibrium\.f\.fused\.(\d+)\.norm\.", r"fullstage.post_fuse_layers.\1.gnorm."),
    (r"^equilibrium\.f\.fused\.", "fullstage.post_fuse_layers."),
    (r"^equilibrium\.f\.fusion\.(\d+)\.(\d+)\.norm\.", r"fullstage.fuse_layers.\1.\2.net.gnorm."),
    (r"^equilibrium\.f\.fusion\.(\d+)\.(\d+)\.", r"fullstage.fuse_layers.\1.\2.net."),
)


def _mdeq(model: nn.Module, key: str) -> str:
    """The names of the code of Bai, Koltun and Kolter, with which the published MDEQ figures were made."""
    for ours, theirs in _MDEQ:
        key = re.sub(ours, theirs, key)
    # layers of a downward path, (conv, norm, ReLU) for each halving
    return re.sub(
        r"\.net\.(\d+)\.",
        lambda m: f".net.{int(m[1]) // 3}.{('conv', 'gnorm')[int(m[1]) % 3]}.",
        key,
    )


_DIGITS = (
    (r"^stem\.0\.", "conv.bn_f1."),
    (r"^stem\.2\.", "conv.f."),
    (r"^body\.g\.0\.", "conv.bn_g."),
    (r"^body\.g\.2\.", "conv.g."),
    (r"^body\.norm\.", "conv.bn_out."),
)


def _digits(model: nn.Module, key: str) -> str:
    """The names of the released experiment on MNIST-10, where all of the body is `conv`."""
    for ours, theirs in _DIGITS:
        key = re.sub(ours, theirs, key)
    return key


def _without_use(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of entries of the authors' checkpoints of `model` that its forward never reads."""
    if isinstance(model, MDEQ):  # its solver kept the cell a second time, and both under its own name too
        return "fullstage_copy.", "deq."
    if isinstance(model, DigitsNet) and not hasattr(model.body, "norm"):  # digits_conv
        return ("conv.bn_out.",)
    return ()


_FAMILIES: dict[type[nn.Module], Callable[[nn.Module, str], str]] = {
    ResNet: _same,
    DenseNet: _same,
    DARTS: _same,
    MobileGlobal: _same,
    MNISTNet: _mnist,
    MDEQ: _mdeq,
    DigitsNet: _digits,
}
