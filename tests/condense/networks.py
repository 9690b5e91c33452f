"""Networks as users write them, for the tests of condensing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def plain() -> nn.Module:
    """All layers in one nn.Sequential."""
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    for a, b in ((8, 8), (8, 8), (8, 16), (16, 16), (16, 16)):
        stride = 1 if a == b else 2
        layers += [nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


class Block(nn.Module):
    """A branch without its shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.b = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return self.b(F.relu(self.norm(self.a(x))))


class ShortcutOutside(nn.Module):
    """The forward adds every block, with a scale that is a bare parameter; it asserts and branches."""

    def __init__(self, channels: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(Block(channels) for _ in range(depth))
        self.scale = nn.Parameter(torch.full((depth,), 0.5))
        self.fc = nn.Linear(channels, 10)

    def forward(self, x):
        assert x.ndim == 4
        x = self.stem(x)
        if x.shape[-1] > 4:
            x = x * 1.5
        for i, block in enumerate(self.blocks):
            x = x + self.scale[i] * block(x)
        return self.fc(x.mean((2, 3)))


class WrittenOut(nn.Module):
    """Two layers per shortcut, called one by one, with one ReLU for all that works in place."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.depth = depth
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        for i in range(depth):
            for j in (1, 2):
                self.add_module(f"conv{i}_{j}", nn.Conv2d(8, 8, 3, padding=1, bias=False))
                self.add_module(f"norm{i}_{j}", nn.BatchNorm2d(8))
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 10)

    def layer(self, i, j, x):
        return self.get_submodule(f"norm{i}_{j}")(self.get_submodule(f"conv{i}_{j}")(x))

    def forward(self, x):
        x = self.relu(self.stem(x))
        for i in range(self.depth):
            y = self.relu(self.layer(i, 1, x))
            y = self.layer(i, 2, y)
            y += x
            x = self.relu(y)
        return self.fc(x.mean((2, 3)))


class PreActivation(nn.Module):
    """Norm, ReLU, layer, twice per shortcut, called one by one."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 10)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2 * depth))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2 * depth))
        for norm in self.norms:
            nn.init.normal_(norm.bias)

    def forward(self, x):
        x = self.stem(x)
        for i in range(0, len(self.convs), 2):
            y = self.convs[i](F.relu(self.norms[i](x)))
            x = x + self.convs[i + 1](F.relu(self.norms[i + 1](y)))
        return self.fc(x.mean((2, 3)))


class UNet(nn.Module):
    """Resizes and concatenates in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.low, self.up = _double(3, 8), _double(8, 16), _double(24, 8)
        self.pool, self.out = nn.MaxPool2d(2), nn.Conv2d(8, 10, 1)

    def forward(self, x):
        a = self.down(x)
        b = F.interpolate(self.low(self.pool(a)), size=a.shape[2:])
        return self.out(self.up(torch.cat([b, a], 1)))


def _double(a: int, b: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(a, b, 3, padding=1), nn.ReLU(True), nn.Conv2d(b, b, 3, padding=1), nn.ReLU(True)
    )


class TwoStreams(nn.Module):
    """Its blocks take and return a map and a state that they do not change."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x, state):
            return F.relu(x + self.b(F.relu(self.a(x)))), state

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 10)
        self.blocks = nn.ModuleList(TwoStreams.Block() for _ in range(3))

    def forward(self, x):
        state = x.mean()
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x, state = block(x, state)
        return self.fc(x.mean((2, 3))) + state


class Changing(TwoStreams):
    """As above, but the blocks change the state too."""

    class Block(TwoStreams.Block):
        def forward(self, x, state):
            x, state = super().forward(x, state)
            return x, state + x.mean()

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Changing.Block() for _ in range(3))


class Shared(nn.Module):
    """One block called several times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc, self.block = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 10), Block(8)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = F.relu(self.block(x))
        return self.fc(x.mean((2, 3)))


class Branches(nn.Module):
    """Two blocks side by side, which are no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 10)
        self.left, self.right = Block(8), Block(8)

    def forward(self, x):
        x = self.stem(x)
        return self.fc((self.left(x) * torch.sigmoid(self.right(x))).mean((2, 3)))


class Held(nn.Module):
    """Also holds its blocks in a plain list, and calls those."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 10)
        self.registered = nn.ModuleList(Block(8) for _ in range(3))
        self.plain = list(self.registered)

    def forward(self, x):
        x = self.stem(x)
        for block in self.plain:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def without_repetitions() -> nn.Module:
    """Every layer changes the shape."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten(1), nn.Linear(576, 10)
    )
