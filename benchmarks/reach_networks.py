"""The networks of the reach benchmark: one small backbone, and `ARMS`, what stands in the place of the layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from globalcnn import PDE, Boundary, GatedSweeps, GlobalLayer
from globalcnn.nn import ResidualDepthwise

T = TypeVar("T")

WIDTH, LAYERS = 12, 2
KERNEL, STRIDE, PADDING = 5, 3, 1  # of the stem


@dataclass(frozen=True)
class Setting:
    """What was searched for an arm.

    lr: learning rate; dt: time step; start: the coefficient norms' biases are drawn uniformly from it, so that
    they differ by channel. dt and start are None for arms without a PDE.
    """

    lr: float = 0.01
    dt: float | None = None
    start: tuple[float, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"lr": self.lr, "dt": self.dt, "start": None if self.start is None else list(self.start)}

    def __str__(self) -> str:
        """In words.

        >>> print(Setting(dt=10.0, start=(-1.0, 2.0)), Setting(0.03), sep="; ")
        rate 0.01, dt = 10, biases from -1 to 2; rate 0.03
        """
        rate = f"rate {self.lr:g}"
        if self.start is None:
            return rate
        low, high = self.start
        biases = f"from {low:g} to {high:g}" if low < high else f"{low:g}"
        return f"{rate}, dt = {self.dt:g}, biases {biases}"


@dataclass(frozen=True)
class Arm:
    """What stands in the place of the layer.

    words: its name in tables; tried: the settings of the search, the one in use first;
    make: (channels, index of the layer, setting) -> module.
    """

    words: str
    tried: tuple[Setting, ...]
    make: Callable[[int, int, Setting], nn.Module]

    @property
    def setting(self) -> Setting:
        """The one in use."""
        return self.tried[0]


def _depthwise(kernel_size: int) -> Callable[[int, int, Setting], nn.Module]:
    return lambda channels, index, setting: ResidualDepthwise(channels, kernel_size)


def _explicit(steps: int) -> Callable[[int, int, Setting], nn.Module]:
    # a periodic map would bring opposite edges together: the marks are near each other across the edge
    def make(channels: int, index: int, setting: Setting) -> nn.Module:
        pde = PDE(steps, dt=_given(setting.dt), boundary=Boundary.NEUMANN)
        return _opened(GlobalLayer(channels, pde, norm_eps=1e-5), setting)

    return make


def _sweeps(gate: Literal["transport", "sigmoid"]) -> Callable[[int, int, Setting], nn.Module]:
    def make(channels: int, index: int, setting: Setting) -> nn.Module:
        pde = PDE(dt=_given(setting.dt), scheme=GatedSweeps(gate, "y" if index % 2 else "x"))
        return _opened(GlobalLayer(channels, pde, norm_eps=1e-5), setting)

    return make


def _opened(layer: GlobalLayer, setting: Setting) -> GlobalLayer:
    """The layer, its coefficient norms started as the setting says: some channels then carry far at once."""
    for net in (layer.velocity_x, layer.velocity_y, layer.diffusion_x, layer.diffusion_y):
        nn.init.uniform_(net.norm.bias, *_given(setting.start))
    return layer


def _given(value: T | None) -> T:
    if value is None:
        raise ValueError("an arm with a PDE needs a setting with dt and start")
    return value


PUBLISHED = Setting(dt=0.2, start=(0.0, 0.0))
MIDDLE = Setting(dt=1.0, start=(-1.0, 2.0))
SLOW = Setting(0.003, dt=1.0, start=(-1.0, 2.0))
LARGE = Setting(dt=10.0, start=(-1.0, 2.0))
WIDE = Setting(dt=10.0, start=(-4.0, 4.0))  # for logits, into which dt does not enter


def _rates(*rates: float) -> tuple[Setting, ...]:
    return tuple(map(Setting, rates))


# `tried`: the best of the search first; of equals the published setting, or else the one nearest to it
ARMS = {
    "depthwise": Arm("residual depthwise 3x3", _rates(0.03, 0.01, 0.003, 0.001), _depthwise(3)),
    "depthwise-7": Arm("residual depthwise 7x7", _rates(0.01, 0.03, 0.003, 0.001), _depthwise(7)),
    "explicit-k1": Arm("Du Fort-Frankel, K = 1", (MIDDLE, PUBLISHED, SLOW, LARGE), _explicit(1)),
    "explicit-k5": Arm("Du Fort-Frankel, K = 5", (MIDDLE, PUBLISHED, SLOW, LARGE), _explicit(5)),
    "sweeps": Arm("gated sweeps, transport", (MIDDLE, PUBLISHED, SLOW, LARGE), _sweeps("transport")),
    "sweeps-sigmoid": Arm("gated sweeps, sigmoid", (PUBLISHED, MIDDLE, SLOW, WIDE), _sweeps("sigmoid")),
}


class SmallNet(nn.Module):
    """Stem of stride 3; layers with a 1x1 convolution before each, residual; 1x1; average; linear."""

    def __init__(self, arm: Arm, width: int, setting: Setting | None = None) -> None:
        super().__init__()
        setting = arm.setting if setting is None else setting
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, KERNEL, STRIDE, padding=PADDING, bias=False), *_norm_act(width)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 1, bias=False), *_norm_act(width), arm.make(width, i, setting)
            )
            for i in range(LAYERS)
        )
        self.last = nn.Sequential(nn.Conv2d(width, 2 * width, 1, bias=False), *_norm_act(2 * width))
        self.head = nn.Linear(2 * width, 2)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) to (N, 2 width, H / 3, W / 3)."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        features: Tensor = self.last(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) to (N, 2)."""
        logits: Tensor = self.head(self.forward_features(x).mean((2, 3)))
        return logits


def _norm_act(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(width), nn.ReLU()


def parameters(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in model.parameters())


def equal_width(arm: Arm) -> int:
    """The least width from `WIDTH` at which the network has no fewer parameters than one of Global layers."""
    wanted = parameters(SmallNet(ARMS["sweeps"], WIDTH))
    return next(w for w in range(WIDTH, 10 * WIDTH) if parameters(SmallNet(arm, w)) >= wanted)
