"""The tables by their words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .engines import compare_engines
from .layer import compare_layers
from .memory import compare_memory
from .networks import compare_imagenet, compare_implicit, compare_networks
from .results import Progress, Result, Settings
from .schemes import compare_schemes
from .training import compare_training


@dataclass(frozen=True)
class TableInfo:
    """One table: what it shows, and how it is measured."""

    about: str
    run: Callable[[Settings, Progress], Result]


TABLES: dict[str, TableInfo] = {
    "layer": TableInfo("a Global layer against a 3x3 convolution", compare_layers),
    "schemes": TableInfo("gated sweeps against Du Fort-Frankel: layer, training step", compare_schemes),
    "networks": TableInfo("CIFAR networks, inference at batch 1, 64, 512", compare_networks),
    "training": TableInfo("one training step of ResNet-Global and ResNet-32", compare_training),
    "memory": TableInfo("memory of the layer in training against K", compare_memory),
    "imagenet": TableInfo("MobileNetV2 and EfficientNet-B0 at 224, batch 1, 16", compare_imagenet),
    "engines": TableInfo(
        "networks in globalcnn, ONNX Runtime and OpenVINO, batch 1, 64, 512; 224 x 224 at batch 1",
        compare_engines,
    ),
    "solvers": TableInfo("against implicit networks: Neural ODE, a reconstruction of MDEQ", compare_implicit),
}
