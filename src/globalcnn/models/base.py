"""The base class of every classifier: timm's contract."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d, get_act_layer, get_norm_act_layer, get_norm_layer
from torch import Tensor, nn

from ..errors import UserError, UserTypeError, unknown_name
from ..nn.implicit.layer import ImplicitLayer
from .checkpointing import checkpointed

POOLINGS = ("avg", "max", "avgmax", "fast", "fastavg", "fastmax", "fastavgmax", "")


# called with the name and output of each module of `feature_info` (and of others)
Keep = Callable[[str, Tensor], None]


def global_pooling(kind: str) -> nn.Module:
    """Pooling of the whole feature map to (N, C): "avg", "max" or their mean "avgmax"; "" keeps the map."""
    if kind not in POOLINGS:
        raise unknown_name("global_pool", kind, POOLINGS)
    return SelectAdaptivePool2d(pool_type=kind, flatten=True) if kind else nn.Identity()


class ImageClassifier(nn.Module):
    """Features, pooling, one linear layer: images (N, in_chans, H, W) to logits (N, num_classes).

    A family writes `run_features` and fills `feature_info`, then calls `make_head` at the end of its
    constructor. `num_features` is the channel count of the feature map, `head_hidden_size` what the linear
    layer reads; num_classes = 0 leaves the pooled features. `head_name` is the attribute of the linear layer.
    `stem_pattern` and `block_patterns` match the names of parameters in the stem and, with the block's
    number, in the body, for learning rates that fall with depth.
    """

    head_name: ClassVar[str] = "fc"
    stem_pattern: ClassVar[str] = r"^stem"
    block_patterns: ClassVar[tuple[tuple[str, tuple[int, ...] | None], ...]] = ()
    grad_checkpointing: bool = False

    num_classes: int
    in_chans: int
    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]
    make_pool: Callable[[str], nn.Module]

    def make_head(self, num_features: int, num_classes: int, global_pool: str, drop_rate: float) -> None:
        """Create the pooling and the linear layer."""
        self.num_features = self.head_hidden_size = num_features
        self.drop_rate = checked_rate("drop_rate", drop_rate)
        self.make_pool = global_pooling
        self.reset_classifier(num_classes, global_pool)

    @abstractmethod
    def run_features(self, x: Tensor, keep: Keep) -> Tensor:
        """The last feature map; calls `keep(name, output)` for each module of `feature_info`."""

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, (N, num_features, h, w)."""
        return self.run_features(x, keep_nothing)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """(last feature map, feature maps), the maps those of `feature_info` by index; timm's signature.

        indices: None for all, an int for the last ones, or a list (negative from the end). stop_early: leave
        out what comes after the last one asked for (the map that comes with them is then that one).
        intermediates_only: only the list. norm: no effect, feature maps here have no norm of their own.

        Raises `UserError` for indices that do not exist and for another `output_fmt`.
        """
        if output_fmt != "NCHW":
            raise UserError(f"output_fmt={output_fmt!r}: feature maps here are 'NCHW'")
        names = [entry["module"] for entry in _as_list(self.feature_info)]
        wanted = {names[i] for i in _indices(indices, len(names))}
        found: dict[str, Tensor] = {}

        def keep(name: str, out: Tensor) -> None:
            if name in wanted:
                found[name] = out
                if stop_early and len(found) == len(wanted):
                    raise _Enough(out)

        try:
            last = self.run_features(x, keep)
        except _Enough as enough:
            last = enough.last
        maps = [found[names[i]] for i in _indices(indices, len(names))]
        return maps if intermediates_only else (last, maps)

    def block(self, module: nn.Module, *inputs: Tensor) -> Any:
        """`module(*inputs)`, one block of the body: under gradient checkpointing, computed twice."""
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpointed(module, *inputs)
        return module(*inputs)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs in training and compute the blocks again in the backward.

        Costs one more forward; results and BatchNorm's statistics are the same. Raises `UserError` for
        networks with an implicit layer.
        """
        if enable and any(isinstance(m, ImplicitLayer) for m in self.modules()):
            raise UserError(
                f"{type(self).__name__} has an implicit layer, which is not checkpointed: its own gradient "
                "saves memory (adjoint=True of an ODE; that of an equilibrium keeps one evaluation)"
            )
        self.grad_checkpointing = bool(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order the parameters from stem to head, as timm's layer-wise decay takes them."""
        blocks = list(self.block_patterns)
        if coarse:
            blocks = [(pattern.replace(r"\.(\d+)", ""), None) for pattern, _ in blocks]
        return {"stem": self.stem_pattern, "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay leaves out, besides norms and biases: none."""
        return set()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of a feature map; with `pre_logits` what the linear layer would read."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The linear layer, or an identity without classes."""
        return self.get_submodule(self.head_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new linear layer for `num_classes` (0: none), and other pooling if named ("avg", "max", ...)."""
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
            raise UserError(f"num_classes={num_classes!r} must be a whole number >= 0 (0: no classifier)")
        if global_pool == "" and num_classes:
            raise UserError(
                'global_pool="" keeps the feature map, which no linear layer reads: num_classes=0'
            )
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = self.make_pool(global_pool)
        width = self.head_hidden_size
        head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        setattr(self, self.head_name, head.to(_device_and_dtype(self)))


class _Enough(Exception):
    """Raised when all requested feature maps are computed."""

    def __init__(self, last: Tensor) -> None:
        super().__init__()
        self.last = last


def keep_nothing(name: str, out: Tensor) -> None:
    """For a forward that needs only the last map."""


def _as_list(info: Any) -> list[dict[str, Any]]:
    """`feature_info` is a list, or timm's wrapper of it."""
    entries: list[dict[str, Any]] = info if isinstance(info, list) else info.info
    return entries


def _indices(asked: int | Sequence[int] | None, there: int) -> list[int]:
    """Feature maps by number, from the beginning."""
    if isinstance(asked, int):
        if not 0 < asked <= there:
            raise UserError(f"indices={asked!r}: the last maps are from 1 to {there}")
        return list(range(there - asked, there))
    chosen = list(range(there)) if asked is None else list(asked)
    if not chosen or not all(isinstance(i, int) and -there <= i < there for i in chosen):
        raise UserError(f"indices={asked!r}: there are {there} feature maps, 0 to {there - 1}")
    return [i % there for i in chosen]


def activation(act_layer: str | type[nn.Module] | None, default: type[nn.Module] = nn.ReLU) -> Any:
    """The class of an activation, given as a class, by timm's name ("silu"), or None for the default."""
    if act_layer is None:
        return default
    if not isinstance(act_layer, (str, type)):
        raise UserTypeError(f"act_layer={act_layer!r} must be a class such as torch.nn.SiLU, or its name")
    if isinstance(act_layer, type) and "inplace" in inspect.signature(act_layer).parameters:
        return act_layer
    name = act_layer if isinstance(act_layer, str) else act_layer.__name__.lower()
    try:
        return get_act_layer(name)  # timm's variants take inplace=, as its blocks give it
    except (KeyError, AssertionError):
        raise UserError(
            f"act_layer={act_layer!r} is no activation that timm knows, such as 'silu', nor one that takes "
            "inplace="
        ) from None


def normalisation(norm_layer: str | Callable[..., nn.Module] | None) -> Any:
    """The class of a norm, given as a class, by timm's name ("groupnorm1"), or None for BatchNorm."""
    if norm_layer is None:
        return nn.BatchNorm2d
    if not (isinstance(norm_layer, str) or callable(norm_layer)):
        raise UserTypeError(
            f"norm_layer={norm_layer!r} must be a class such as torch.nn.BatchNorm2d, or its name"
        )
    try:
        return get_norm_layer(norm_layer)  # type: ignore[no-untyped-call]
    except (KeyError, AssertionError):
        raise UserError(
            f"norm_layer={norm_layer!r} is no norm that timm knows, such as 'batchnorm2d' or 'groupnorm1'"
        ) from None


def norm_and_activation(norm: Any, act: Any) -> Any:
    """One class that normalises and then activates, as timm's blocks take it."""
    try:
        return get_norm_act_layer(norm, act_layer=act)
    except (KeyError, AssertionError):
        raise UserError(
            f"norm_layer={norm!r} has no variant with an activation in timm; take 'batchnorm2d', 'groupnorm' "
            "or 'groupnorm1'"
        ) from None


def shape_is_known(x: Tensor) -> bool:
    """Whether an input can be checked: not while a graph is traced, which would hold the check's outcome."""
    return not (isinstance(x, torch.fx.Proxy) or torch.jit.is_tracing())  # type: ignore[no-untyped-call]


def rising(rate: float, count: int) -> list[float]:
    """Rates of stochastic depth for `count` blocks, rising linearly from 0 to `rate`."""
    rate = checked_rate("drop_path_rate", rate)
    return [rate * i / max(count - 1, 1) for i in range(count)]


def _device_and_dtype(model: nn.Module) -> Tensor:
    """A tensor on the device and of the dtype of the model, for `.to`."""
    return next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))


def init_by_fan_out(model: nn.Module) -> None:
    """Published initialisation: conv weights N(0, 2 / (C_out k k)), not divided by groups; norms 1, 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def feature(channels: int, reduction: int, module: str) -> dict[str, Any]:
    """One entry of `feature_info`."""
    return {"num_chs": channels, "reduction": reduction, "module": module}


def checked_rate(name: str, rate: float) -> float:
    """A share of what is left out in training: a number >= 0 and < 1."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise UserError(f"{name}={rate!r} must be a number >= 0 and < 1")
    return float(rate)


def check_in_chans(in_chans: int) -> None:
    """The number of input channels is a whole number >= 1."""
    if isinstance(in_chans, bool) or not isinstance(in_chans, int) or in_chans < 1:
        raise UserError(f"in_chans={in_chans!r} must be a whole number >= 1")
