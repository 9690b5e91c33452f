"""The MNIST networks of the ODE comparison: one stem, a body at 64 x 6 x 6, one head.

Stem conv3x3(1 to 64, valid, bias)-GN-ReLU-conv4x4 s2(bias)-GN-ReLU-conv4x4 s2(bias): 28, 26, 13, 6. Then the
body, GN-ReLU, average pool, linear.

Source: Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018, section 3 (the network and its
stem); Kag and Saligrama, CVPR 2022, table of the ODE comparison.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import GlobalLayer
from ..ops import PDE
from .base import ImageClassifier, Keep, check_in_chans, feature
from .registry import register

WIDTH = 64
MEAN, STD = (0.1307,), (0.3081,)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups (or one per channel where there are fewer)."""
    return nn.GroupNorm(min(32, channels), channels)


class MNISTNet(ImageClassifier):
    """The shared stem and head around a `body` that keeps (N, 64, h, w)."""

    block_patterns = ((r"^body\.(\d+)", None), (r"^norm", (1000,)))

    def __init__(
        self,
        body: nn.Module,
        *,
        num_classes: int = 10,
        in_chans: int = 1,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_in_chans(in_chans)
        self.in_chans = in_chans
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, WIDTH, 3),
            group_norm(WIDTH),
            nn.ReLU(inplace=True),
            nn.Conv2d(WIDTH, WIDTH, 4, stride=2, padding=1),
            group_norm(WIDTH),
            nn.ReLU(inplace=True),
            nn.Conv2d(WIDTH, WIDTH, 4, stride=2, padding=1),
        )
        self.body = body
        self.norm = group_norm(WIDTH)
        self.act = nn.ReLU(inplace=True)
        self.feature_info = [
            feature(WIDTH, 1, "stem.2"),
            feature(WIDTH, 2, "stem.5"),
            feature(WIDTH, 4, "act"),
        ]
        self.make_head(WIDTH, num_classes, global_pool, drop_rate)

    def run_features(self, x: Tensor, keep: Keep) -> Tensor:
        for name, module in self.stem.named_children():
            x = module(x)
            keep(f"stem.{name}", x)
        for module in self.body if isinstance(self.body, nn.Sequential) else [self.body]:
            x = self.block(module, x)
        x = self.act(self.norm(x))
        keep("act", x)
        return x


class PreActBlock(nn.Module):
    """GN-ReLU-conv3x3-GN-ReLU-conv3x3 with identity, no biases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        branch: Tensor = self.conv2(F.relu(self.norm2(y)))
        return x + branch


def resnet_mnist(*, blocks: int = 6, num_classes: int = 10, in_chans: int = 1, **head: object) -> MNISTNet:
    """Six pre-activation residual blocks as the body."""
    body = nn.Sequential(*(PreActBlock(WIDTH) for _ in range(blocks)))
    return MNISTNet(body, num_classes=num_classes, in_chans=in_chans, **head)  # type: ignore[arg-type]


def global_mnist(
    *, pde: PDE | None = None, num_classes: int = 10, in_chans: int = 1, **head: object
) -> MNISTNet:
    """One Global layer without biases as the body."""
    body = nn.Sequential(GlobalLayer(WIDTH, pde, bias=False))
    return MNISTNet(body, num_classes=num_classes, in_chans=in_chans, **head)  # type: ignore[arg-type]


def register_mnist(name: str, build: object, about: str, **more: object) -> None:
    """Register a network of this family (solver-based ones live in their own files)."""
    register(
        name,
        build,  # type: ignore[arg-type]
        about=about,
        dataset="MNIST",
        input_size=(1, 28, 28),
        num_classes=10,
        first_conv="stem.0",
        classifier="fc",
        feature_cls="hook",
        features=3,
        mean=MEAN,
        std=STD,
        **{"family": "mnist", **more},  # type: ignore[arg-type]
    )


register_mnist("resnet_mnist", resnet_mnist, "six pre-activation residual blocks on MNIST")
register_mnist("global_mnist", global_mnist, "one Global layer on MNIST")
