"""State dicts as programs write them: found in a file, wrappers' prefixes removed, fitted to a network.

Nothing is loaded in part: an error leaves the network as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from ..errors import UserError
from .lazy import has_lazy_tensors

# entries of a checkpoint dictionary that hold weights, and those that hold their moving average
PLAIN: Final = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "module")
AVERAGED: Final = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "params_ema")
# names that wrappers put into the names of parameters
WRAPPERS: Final = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
COUNTERS: Final = ("n_averaged", "num_updates", "updates", "decay", "step", "initted")
SHOWN: Final = 5

StateDict = dict[str, Tensor]


def state_dict_in(content: Any, where: str, *, ema: bool | None = None) -> StateDict:
    """The state dict in what a checkpoint file holds: itself one, or a dictionary with one.

    ema: where a file has both, whether the moving average is meant; None refuses such a file by name. True
    also refuses a file without an average.
    """
    found, told = _search(content, where, ema)
    if ema and not told and not any(_is_average(name.split(".")[0]) for name in found):
        raise UserError(f"{where} holds no moving average of weights")
    return found


def _search(content: Any, where: str, ema: bool | None) -> tuple[StateDict, bool]:
    """(the state dict, whether an entry's name said if it is an average)."""
    if _is_state_dict(content):
        return dict(content), False
    if not isinstance(content, Mapping):
        raise UserError(f"{where} holds a {type(content).__name__}, no state dict (names to tensors)")
    plain = [k for k in PLAIN if _holds_weights(content.get(k))]
    averaged = [k for k in AVERAGED if _holds_weights(content.get(k))]
    if not plain and not averaged:
        raise UserError(
            f"{where} holds no state dict (names to tensors), also not under {', '.join(PLAIN + AVERAGED)}; "
            f"it has {_some([str(k) for k in content])}"
        )
    name = _chosen(plain, averaged, where, ema)
    told = name in averaged or bool(averaged)
    found, below = _search(content[name], where, None if told else ema)
    return found, told or below


def _chosen(plain: list[str], averaged: list[str], where: str, ema: bool | None) -> str:
    """The entry that is meant."""
    if plain and averaged and ema is None:
        raise UserError(
            f"{where} holds weights ({plain[0]!r}) and their moving average ({averaged[0]!r}): say which, "
            "ema=True or ema=False (--ema, --no-ema)"
        )
    names = averaged if averaged and (ema or not plain) else plain
    if ema is False and names is averaged:
        raise UserError(f"{where} holds a moving average ({averaged[0]!r}) and no plain weights")
    if len(names) > 1:
        raise UserError(f"{where} holds several state dicts: {', '.join(names)}; take one out yourself")
    return names[0]


def _is_average(prefix: str) -> bool:
    return "ema" in prefix.split("_") or "average" in prefix


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _holds_weights(value: Any) -> bool:
    return _is_state_dict(value) or (
        isinstance(value, Mapping) and any(_is_state_dict(value.get(k)) for k in PLAIN + AVERAGED)
    )


def fitted(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str, *, ema: bool | None = None
) -> StateDict:
    """`weights` under the names of `own`, wrappers' prefixes removed.

    Names that fit are left alone. Else the names that wrappers add (`module.`, `_orig_mod.`, ..., in any
    order) go; an averaged model's counter too; and where all parameters stand under one more prefix
    ("model.", "ema."), that. Weights and their average beside each other are told apart by `ema`.
    """
    if weights.keys() == own.keys():
        return dict(weights)
    bare = _without_wrappers(weights, own)
    if bare.keys() == own.keys():
        return bare
    under: dict[str, StateDict] = {}
    for prefix in {k.split(".")[0] for k in bare}:
        inside = {k[len(prefix) + 1 :]: v for k, v in bare.items() if k.startswith(f"{prefix}.")}
        inside = _without_wrappers(inside, own)
        if inside.keys() == own.keys():
            under[prefix] = inside
    if not under:
        return bare
    left = [k for k in bare if k.split(".")[0] not in under and k.rpartition(".")[2] not in COUNTERS]
    if left:
        raise UserError(
            f"{where}: the entries under {_some(sorted(under))} fit the network, but there are more "
            f"({_some(left)}); save the state dict of the network alone"
        )
    averaged = sorted(p for p in under if _is_average(p))
    plain = sorted(set(under) - set(averaged))
    return under[_chosen(plain, averaged, where, ema)]


def _without_wrappers(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> StateDict:
    """Names without the parts that wrappers add; as they were where that would make two names one."""
    kept = {part for name in own for part in name.split(".")} & set(WRAPPERS)
    drop = set(WRAPPERS) - kept
    bare: StateDict = {}
    for name, value in weights.items():
        short = ".".join(p for p in name.split(".") if p not in drop)
        if short == name and name in COUNTERS and name not in own:
            continue
        if short in bare:
            return dict(weights)
        bare[short] = value
    return bare


def load_into(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    where: str | Path,
    *,
    adapt: bool = False,
    ema: bool | None = None,
) -> tuple[str, ...]:
    """`load_state_dict`, with one clear error if the entries do not fit; the network is untouched then.

    adapt: where the network has another number of classes or input channels, keep its own new head, and
    spread the first convolution over its channels as timm does. Returns sentences on what was adapted, and
    warns of it. Without it other shapes are errors.
    """
    where = repr(str(where)) if isinstance(where, Path) else where
    if has_lazy_tensors(network):
        raise UserError(f"the network for the weights in {where} has lazy layers: run it on one image first")
    own = network.state_dict()
    found = fitted(weights, own, where, ema=ema)
    said = _adapt(network, found, own) if adapt else ()
    _check_fit(found, own, where)
    network.load_state_dict(found)
    for words in said:
        warnings.warn(f"{where}: {words}", stacklevel=3)
    return said


def _check_fit(found: StateDict, own: Mapping[str, Tensor], where: str) -> None:
    wrong = [f"{k} is missing" for k in own if k not in found]
    wrong += [f"{k} is not part of the network" for k in found if k not in own]
    for k, v in found.items():
        if k not in own:
            continue
        if own[k].shape != v.shape:
            wrong.append(f"{k} has shape {tuple(v.shape)}, not {tuple(own[k].shape)}")
        elif own[k].is_complex() != v.is_complex() or own[k].is_floating_point() != v.is_floating_point():
            wrong.append(f"{k} is {v.dtype}, not {own[k].dtype}")
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise UserError(f"the weights in {where} do not fit the network: {'; '.join(wrong[:SHOWN])}{more}")


def _adapt(network: nn.Module, found: StateDict, own: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Fit head and first convolution of `found` to the network, in place; return sentences on what was
    done."""
    config = getattr(network, "pretrained_cfg", None) or {}
    said = []
    for head in _heads(network, found, own) | dict.fromkeys(_names(config.get("classifier"))):
        keys = [k for k in (f"{head}.weight", f"{head}.bias") if k in found or k in own]
        fits = all(k in found and k in own and found[k].shape == own[k].shape for k in keys)
        if keys and not fits:
            for k in keys:
                found.pop(k, None)
            found.update({k: own[k] for k in keys if k in own})
            said.append(f"the number of classes differs, so the layer {head!r} is new (random)")
    for first in _names(config.get("first_conv")):
        key = f"{first}.weight"
        if key in found and key in own and _differ_in_channels(found[key], own[key]):
            before, now = found[key].shape[1], own[key].shape[1]
            try:
                found[key] = adapt_input_conv(now, found[key], base_chans=before)
            except NotImplementedError:
                continue
            said.append(f"the weights of {first!r} were spread from {before} to {now} input channels")
    return tuple(said)


def _differ_in_channels(a: Tensor, b: Tensor) -> bool:
    same = a.ndim == b.ndim == 4 and a.shape[0] == b.shape[0] and a.shape[2:] == b.shape[2:]
    return same and a.shape[1] != b.shape[1]


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _heads(network: nn.Module, found: StateDict, own: Mapping[str, Tensor]) -> dict[str, None]:
    """Linear layers of the network that differ from those of `found` in the number of classes alone."""
    classes = getattr(network, "num_classes", None)
    heads: dict[str, None] = {}
    for name, module in network.named_modules():
        key = f"{name}.weight"
        if not (isinstance(module, nn.Linear) and module.out_features == classes):
            continue
        if key in found and key in own and found[key].shape[1:] == own[key].shape[1:]:
            heads[name] = None
    return heads


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(n[:80] for n in names[:SHOWN]) + more
