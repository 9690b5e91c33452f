"""Networks to optimise, and a clock that says what the test wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from globalcnn import create_model
from globalcnn.measure import Latency
from globalcnn.optimize import OptimizedModel
from globalcnn.optimize.search import Search


@pytest.fixture
def images() -> Tensor:
    """A small batch."""
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


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


def times(seconds: list[float]) -> dict[str, Latency]:
    """What a timer returns for candidates in order."""
    return {str(i): Latency(t, t, t, runs=1, batch_size=1) for i, t in enumerate(seconds)}


def always_gains(candidates: dict[str, Any], example: Tensor, **options: Any) -> dict[str, Latency]:
    """A clock by which every variant is faster than the one before."""
    return times([1.0 / n for n in range(1, len(candidates) + 1)])


def search(model: nn.Module, example: Tensor, **options: Any) -> OptimizedModel:
    """`optimize_for_inference` of a network in eval mode by the clock of `always_gains`, uncompiled."""
    given = {"seconds": 60, "tolerance": 1e-4, "compile": False, "timer": always_gains, **options}
    return Search(model, example, **given).run()
