"""Networks to optimise, and a clock that says what the test wants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from globalcnn import create_model
from globalcnn.optimize import search


@pytest.fixture
def lively() -> Callable[[nn.Module], nn.Module]:
    """Eval mode, with norms that do something: an untrained one subtracts 0 and divides by 1."""

    def lively(model: nn.Module) -> nn.Module:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                for t in (module.running_mean, module.bias):
                    nn.init.normal_(t, std=0.2)
                for t in (module.running_var, module.weight):
                    nn.init.uniform_(t, 0.5, 1.5)
        return model.eval()

    return lively


@pytest.fixture
def tiny(lively: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A small network with Global layers."""
    return lively(create_model("resnet_global_tiny_cifar"))


@pytest.fixture
def gains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every form that is tried counts as faster than the one before, however the clock runs."""
    monkeypatch.setattr(
        search._Search, "_race", lambda self, tried: [1.0 / n for n in range(1, len(tried) + 1)]
    )
