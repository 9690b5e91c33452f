"""One process of `before_after`: times the cells with the library that PYTHONPATH names, prints JSON.

It runs with checkouts of different ages, so it takes nothing but what all of them have in common.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import globalcnn
from globalcnn import PDE, GlobalLayer, create_model
from globalcnn.nn.fused import FusedGlobalLayer
from globalcnn.ops import BACKENDS, native

FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def main() -> None:
    """Argument: settings as JSON (`before_after.worker_settings`)."""
    settings = json.loads(sys.argv[1])
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    unavailable = BACKENDS["native"].unavailable()
    about = {
        "library": globalcnn.__file__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "native": unavailable or native.instruction_set(),
        "available": unavailable is None,
    }
    times = {}
    if unavailable is None and settings["measure"]:
        for name, build in cells(settings):
            times[name] = seconds(build(), settings["burst"])
    print(json.dumps({"about": about, "seconds": times}))


def cells(settings: dict[str, Any]) -> list[tuple[str, Callable[[], Callable[[], Any]]]]:
    """Name of each cell, and what builds the call to time; "control" is the same code on every side."""
    found: list[tuple[str, Callable[[], Callable[[], Any]]]] = []
    for shape in settings["shapes"] if "layer" in settings["tables"] else ():
        for words, fmt in FORMATS.items():
            for kind, step in (("forward", forward), ("forward + backward", forward_backward)):
                where = f"{'x'.join(map(str, shape))}, {words}, {kind}"
                for k in settings["steps"]:
                    found.append(
                        (f"layer: {where}, K = {k}", partial(step, partial(layer, shape, k), shape, fmt))
                    )
                    if kind == "forward":
                        build = partial(step, partial(frozen, shape, k), shape, fmt)
                        found.append((f"layer, frozen: {where}, K = {k}", build))
                control = partial(step, partial(convolution, shape), shape, fmt)
                found.append((f"control: {where}, convolution", control))
    for name in settings["networks"] if "training" in settings["tables"] else ():
        table = "training" if "global" in name else "control"
        for words, fmt in FORMATS.items():
            about = f"{table}: step of {name}, batch {settings['batch']}, {words}"
            found.append((about, partial(training_step, name, settings["batch"], fmt)))
    return found


def layer(shape: list[int], steps: int) -> GlobalLayer:
    """A Global layer with weights of seed 0."""
    torch.manual_seed(0)
    return GlobalLayer(shape[1], PDE(steps=steps))


def frozen(shape: list[int], steps: int) -> nn.Module:
    """The same layer with its weights folded once, as `optimize_for_inference` runs it."""
    made = FusedGlobalLayer.from_layer(layer(shape, steps).eval())
    assert made is not None
    return made


def convolution(shape: list[int]) -> nn.Module:
    """A 3x3 convolution of the same shape."""
    torch.manual_seed(0)
    return nn.Conv2d(shape[1], shape[1], 3, padding=1, bias=False)


def image(shape: list[int], fmt: torch.memory_format) -> torch.Tensor:
    """A batch of seed 0."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=fmt)


def forward(build: Callable[[], nn.Module], shape: list[int], fmt: torch.memory_format) -> Callable[[], Any]:
    """A forward in eval mode."""
    module, x = build().to(memory_format=fmt).eval(), image(shape, fmt)

    def run() -> Any:
        with torch.inference_mode():
            return module(x)

    return run


def forward_backward(
    build: Callable[[], nn.Module], shape: list[int], fmt: torch.memory_format
) -> Callable[[], Any]:
    """Forward in training mode, and backward to the input and all weights."""
    module, x = build().to(memory_format=fmt).train(), image(shape, fmt).requires_grad_()
    with torch.no_grad():
        grad = torch.randn_like(module(x))

    def run() -> None:
        x.grad = None
        module.zero_grad()
        module(x).backward(grad)

    return run


def training_step(name: str, batch: int, fmt: torch.memory_format) -> Callable[[], Any]:
    """Forward, loss, backward, SGD step with momentum."""
    torch.manual_seed(0)
    model = create_model(name).to(memory_format=fmt).train()
    x, y = image([batch, 3, 32, 32], fmt), torch.arange(batch) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return run


def seconds(run: Callable[[], Any], burst: float) -> float:
    """Mean seconds of a call over a burst, after calls that fill the caches."""
    start = time.perf_counter()
    run()
    while time.perf_counter() - start < burst / 3:
        run()
    calls, start = 0, time.perf_counter()
    while True:
        run()
        calls += 1
        spent = time.perf_counter() - start
        if spent >= burst:
            return spent / calls


if __name__ == "__main__":
    main()
