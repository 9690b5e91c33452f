"""ResNet and Wide-ResNet for small images, with and without Global layers.

Stem conv3x3-BN-ReLU, stages of post-activation basic blocks (timm's), stride 2 from the second stage on,
average pool, linear. In the Global variants a `GlobalLayer` follows each stage named in `global_after`. The
networks with "sweeps" and "depthwise" in their names are this project's: the same with another block there.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2; Kag and Saligrama,
CVPR 2022, section 4.
"""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import Any, Final

from timm.layers import DropPath
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from ..errors import UserError
from ..graph import replace_module
from ..nn import GlobalLayer, ResidualDepthwise
from ..nn.narrow import NarrowConv2d
from ..ops import PDE, GatedSweeps
from .base import (
    ImageClassifier,
    Keep,
    activation,
    check_in_chans,
    feature,
    init_by_fan_out,
    normalisation,
    rising,
)
from .registry import register_cifar


class ResNet(ImageClassifier):
    """A residual network of basic blocks.

    depths, widths: blocks and channels per stage; global_after: stages (from 1) that a Global layer follows;
    pde, bias, norm_eps: its equation, whether its coefficient convolutions have a bias, and the eps of their
    norms (None: the number of channels). depthwise: instead of the Global layer, a residual depthwise
    convolution with a kernel of this side, odd.
    drop_rate: dropout before the linear layer; drop_path_rate: share of samples for which the branch of a
    block is dropped in training, rising linearly over the blocks from 0.
    act_layer: activation, also of the Global layers, default ReLU; norm_layer: norm of stem and blocks,
    default BatchNorm (the Global layers keep theirs).
    """

    stem_pattern = r"^(?:conv1|bn1)\."
    block_patterns = ((r"^layer(\d+)\.(\d+)", None), (r"^global(\d+)", (1000,)))

    def __init__(
        self,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        *,
        global_after: tuple[int, ...] = (),
        pde: PDE | None = None,
        bias: bool = True,
        norm_eps: float | None = None,
        depthwise: int | None = None,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: str | type[nn.Module] | None = None,
        norm_layer: str | type[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_in_chans(in_chans)
        _check_used(global_after, pde, norm_eps, depthwise)
        self.in_chans = in_chans
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        act, norm = activation(act_layer), normalisation(norm_layer)
        self.bn1 = norm(widths[0])
        self.act1 = act(inplace=True)
        self.feature_info = []
        self.body: list[str] = []
        width = widths[0]
        rates = iter(rising(drop_path_rate, sum(depths)))
        for i, (depth, wide) in enumerate(zip(depths, widths, strict=True), start=1):
            self._append(
                f"layer{i}",
                _stage(
                    width,
                    wide,
                    stride=1 if i == 1 else 2,
                    rates=list(islice(rates, depth)),
                    act=act,
                    norm=norm,
                ),
            )
            if i in global_after:
                self._append(
                    f"global{i}",
                    GlobalLayer(wide, pde, bias=bias, norm_eps=norm_eps, act=act)
                    if depthwise is None
                    else ResidualDepthwise(wide, depthwise, act),
                )
            self.feature_info.append(feature(wide, 2 ** (i - 1), self.body[-1]))
            width = wide
        _with_narrow_convolutions(self)
        init_by_fan_out(self)
        for module in self.modules():
            if isinstance(
                module, ResidualDepthwise
            ):  # N(0, 2 / (C k k)) is for coefficients that start small
                module.conv.reset_parameters()
        self.make_head(width, num_classes, global_pool, drop_rate)

    def _append(self, name: str, module: nn.Module) -> None:
        self.add_module(name, module)
        self.body.append(name)

    def run_features(self, x: Tensor, keep: Keep) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        for name in self.body:
            x = self.block(self.get_submodule(name), x)
            keep(name, x)
        return x


def _check_used(
    global_after: tuple[int, ...], pde: PDE | None, norm_eps: float | None, depthwise: int | None
) -> None:
    """Refuse settings of layers that the network does not have."""
    if depthwise is not None and not global_after:
        raise UserError(
            f"depthwise={depthwise!r} is only for the Global variants; this network has no place for it"
        )
    for name, value in (("pde", pde), ("norm_eps", norm_eps)):
        if value is not None and (depthwise is not None or not global_after):
            raise UserError(
                f"{name}={value!r} is only for the Global variants; this network solves no equation"
            )


def _with_narrow_convolutions(network: nn.Module) -> None:
    """Let convolutions between maps of few channels choose their memory layout; results are the same."""
    for name, conv in list(network.named_modules()):
        blocks = type(conv) is nn.Conv2d and conv.kernel_size == (3, 3) and conv.groups == 1
        if blocks and conv.in_channels > 4 and (conv.in_channels % 16 or conv.out_channels % 16):
            replace_module(network, name, new=NarrowConv2d.from_conv(conv))


def _stage(c_in: int, c_out: int, *, stride: int, rates: list[float], act: Any, norm: Any) -> nn.Sequential:
    """One basic block per rate of stochastic depth."""
    blocks = []
    for i, rate in enumerate(rates):
        first = i == 0
        step = stride if first else 1
        reshape = first and (step != 1 or c_in != c_out)
        shortcut = _shortcut(c_in, c_out, step, norm) if reshape else None
        drop_path = DropPath(rate) if rate else None
        blocks.append(
            BasicBlock(
                c_in if first else c_out,
                c_out,
                step,
                shortcut,
                act_layer=act,
                norm_layer=norm,
                drop_path=drop_path,
            )
        )
    return nn.Sequential(*blocks)


def _shortcut(c_in: int, c_out: int, stride: int, norm_layer: Any) -> nn.Sequential:
    """1x1 convolution of that stride, then the norm."""
    thin = stride if c_in < ThinnedSequential.SAFE_CHANNELS else 1
    conv = nn.Conv2d(c_in, c_out, 1, stride=stride // thin, bias=False)
    norm = norm_layer(c_out)
    return nn.Sequential(conv, norm) if thin == 1 else ThinnedSequential(thin, conv, norm)


class ThinnedSequential(nn.Sequential):
    """Layers in sequence, on every `stride`-th row and column: what a 1x1 convolution of that stride reads.

    On processors with AVX2 and without AVX-512, oneDNN writes past a buffer in the weight gradient of a 1x1
    convolution with a stride, on channels-last input of fewer than 8 channels: wrong gradients, hangs,
    aborts (torch 2.14; https://github.com/uxlfoundation/oneDNN/issues/6035). Without the stride it does not.
    """

    SAFE_CHANNELS: Final = 8

    def __init__(self, stride: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        for layer in self:
            x = layer(x)
        return x

    def extra_repr(self) -> str:
        """The stride, which `repr` of the layers inside does not contain."""
        return f"stride={self.stride}"


_SHAPE: dict[str, Any] = {"depths": (1, 1, 1, 1), "widths": (16, 32, 64, 64), "global_after": (1, 2, 3)}
_TINY: dict[str, Any] = {**_SHAPE, "widths": (10, 9, 16, 16)}
_SWEEPS: dict[str, Any] = {"pde": PDE(scheme=GatedSweeps("sigmoid")), "norm_eps": 1e-5}

_NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet32_cifar": ("ResNet-32", {"depths": (5, 5, 5), "widths": (16, 32, 64)}),
    "resnet56_cifar": ("ResNet-56", {"depths": (9, 9, 9), "widths": (16, 32, 64)}),
    "resnet_global_cifar": ("ResNet-Global: four blocks, three Global layers", _SHAPE),
    "resnet_sweeps_cifar": ("ResNet-Global with gated sweeps", {**_SHAPE, **_SWEEPS}),
    "resnet_depthwise_cifar": ("ResNet-Global with depthwise convolutions", {**_SHAPE, "depthwise": 7}),
    "resnet_global_large_cifar": (
        "large ResNet-Global: eight blocks, three Global layers",
        {"depths": (2, 2, 2, 2), "widths": (32, 64, 128, 128), "global_after": (1, 2, 3)},
    ),
    "resnet_tiny_cifar": ("tiny ResNet", {"depths": (3, 3, 3, 3), "widths": (6, 8, 8, 8)}),
    "resnet_global_tiny_cifar": ("tiny ResNet-Global", _TINY),
    "resnet_sweeps_tiny_cifar": ("tiny ResNet-Global with gated sweeps", {**_TINY, **_SWEEPS}),
    "resnet_depthwise_tiny_cifar": (
        "tiny ResNet-Global with depthwise convolutions",
        {**_TINY, "depthwise": 7},
    ),
    "wide_resnet_cifar": ("Wide-ResNet", {"depths": (6, 6, 6), "widths": (64, 128, 256)}),
    "wide_resnet_tiny_cifar": ("tiny Wide-ResNet", {"depths": (6, 6, 6), "widths": (8, 8, 8)}),
    "wide_resnet_global_cifar": (
        "Wide-ResNet with a Global layer after each stage",
        {"depths": (6, 6, 6), "widths": (64, 128, 256), "global_after": (1, 2, 3)},
    ),
    "wide_resnet_global_tiny_cifar": (
        "tiny Wide-ResNet-Global: three blocks, three Global layers",
        {"depths": (1, 1, 1), "widths": (16, 20, 20), "global_after": (1, 2, 3)},
    ),
}

_ON_CIFAR10 = ("resnet32_cifar", "resnet_global_cifar", "resnet_sweeps_cifar", "resnet_depthwise_cifar")

for _name, (_about, _shape) in _NETWORKS.items():
    register_cifar(
        _name,
        partial(ResNet, **_shape),
        _about,
        family="resnet",
        dataset="CIFAR-10" if _name in _ON_CIFAR10 else "CIFAR-100",
        first_conv="conv1",
        classifier="fc",
        features=len(_shape["depths"]),
    )
