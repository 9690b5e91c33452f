"""What each form of the Global layer costs where it is deployed: parameters, multiply-adds, latency by engine.

    python -m benchmarks.deployed_forms                          # -> results/bench/deployed_forms.json
    python -m benchmarks.deployed_forms --quick --out quick.json

In each network every Global layer is replaced by one form; the baseline is the network that it is meant to
replace. All forms of a network are timed in the same rounds. Weights are untrained.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from globalcnn import create_model
from globalcnn.cli.networks import build_named
from globalcnn.errors import UserError
from globalcnn.files import write_json
from globalcnn.graph import replace_module
from globalcnn.measure import count
from globalcnn.nn import GlobalLayer, NormAct, ResidualDepthwise, UniformGlobalLayer
from globalcnn.nn.deployed import DeployedGlobalLayer
from globalcnn.ops import PDE, GatedSweeps

from . import machine
from .deployed_engines import ENGINES, latencies, latencies_of
from .pages import RESULTS

__all__ = ["FORMS", "latencies", "latencies_of", "with_form"]

OUT = RESULTS / "bench" / "deployed_forms.json"
SEED = 0
# (the published layer, its number among the network's layers from 0) -> what takes its place
Make = Callable[[GlobalLayer, int], nn.Module]


@dataclass(frozen=True)
class Form:
    """A form of the layer. about: what it is; make: None keeps the published layer."""

    about: str
    make: Make | None


def again(layer: GlobalLayer, pde: PDE | None = None, **changes: Any) -> GlobalLayer:
    """A Global layer with the settings of `layer`, except for the changes; new weights, the same init block."""
    conv: Any = layer.velocity_x.net
    settings: dict[str, Any] = {
        "kernel_size": conv.kernel_size[0],
        "bias": conv.bias is not None,
        "diffusivity": layer.diffusivity,
        "shared_product": layer.shared_product,
        "velocity_from": layer.velocity_from,
        "start_from": layer.start_from,
        "source": layer.source,
        "init": copy.deepcopy(layer.init),
        "norm_eps": layer.velocity_x.norm.eps,
        "residual": layer.residual,
        "act": _act(layer),
        **changes,
    }
    return GlobalLayer(layer.channels, pde or layer.pde, **settings)


def _act(layer: GlobalLayer) -> Callable[[], nn.Module]:
    return lambda: copy.deepcopy(layer.act)


def _after_init(block: Callable[[GlobalLayer], nn.Module]) -> Make:
    """A block that takes the place of all of the layer but its init block."""

    def make(layer: GlobalLayer, i: int) -> nn.Module:
        new = block(layer)
        return new if layer.init is None else nn.Sequential(copy.deepcopy(layer.init), new)

    return make


def _uniform(coefficients: Any, boundary: str, steps: int = 1) -> Make:
    def block(layer: GlobalLayer) -> nn.Module:
        pde = PDE(steps=steps, dt=layer.pde.dt, spacing=layer.pde.spacing, boundary=boundary)  # type: ignore[arg-type]
        return UniformGlobalLayer(layer.channels, pde, coefficients=coefficients, act=_act(layer))

    return _after_init(block)


def _sweeps(layer: GlobalLayer, i: int) -> nn.Module:
    scheme = GatedSweeps(gate="rational", first="xy"[i % 2])  # type: ignore[arg-type]
    return again(layer, PDE(dt=layer.pde.dt, scheme=scheme), diffusivity=None)


def _depthwise(kernel_size: int) -> Make:
    return _after_init(lambda layer: ResidualDepthwise(layer.channels, kernel_size, _act(layer)))


FORMS: dict[str, Form] = {
    "published": Form("the published layer", None),
    "published-dirichlet": Form(
        "the published layer, zero beyond the edge",
        lambda layer, i: again(layer, replace(layer.pde, boundary="dirichlet")),  # type: ignore[arg-type]
    ),
    "grouped": Form(
        "the published layer, its coefficients by one grouped convolution",
        lambda layer, i: DeployedGlobalLayer(again(layer).eval(), grouped=True),
    ),
    "shared-groups": Form(
        "one coefficient map for four channels",
        lambda layer, i: again(layer, coefficients="shared-groups"),
    ),
    "half-resolution": Form(
        "coefficients at half the resolution",
        lambda layer, i: again(layer, coefficients="half-resolution"),
    ),
    "bounded": Form("velocity within the stability limit", lambda layer, i: again(layer, bounded=True)),
    "image-affine": Form(
        "coefficients by the image, zero beyond the edge", _uniform("image-affine", "dirichlet")
    ),
    "image-linear": Form(
        "coefficients by the means of all channels, zero beyond the edge",
        _uniform("image-linear", "dirichlet"),
    ),
    "constant": Form("constant coefficients, zero beyond the edge", _uniform("constant", "dirichlet")),
    "constant-periodic": Form("constant coefficients, periodic", _uniform("constant", "periodic")),
    "constant-k5": Form(
        "constant coefficients, five steps, zero beyond the edge: five convolutions",
        _uniform("constant", "dirichlet", 5),
    ),
    "constant-k5-periodic": Form(
        "constant coefficients, five steps, periodic: one 11x11 convolution",
        _uniform("constant", "periodic", 5),
    ),
    "gated-sweeps": Form("rational gates, one sweep along each direction", _sweeps),
    "depthwise-3": Form("a residual depthwise 3x3", _depthwise(3)),
    "depthwise-5": Form("a residual depthwise 5x5", _depthwise(5)),
    "depthwise-7": Form("a residual depthwise 7x7", _depthwise(7)),
    "norm-act": Form("norm and activation", _after_init(lambda layer: NormAct(layer.channels, _act(layer)))),
    "nothing": Form("nothing", _after_init(lambda layer: nn.Identity())),
}


@dataclass(frozen=True)
class Setting:
    """A network, the network that it is meant to replace, and the input."""

    network: str
    baseline: str
    input_size: tuple[int, int, int]


SETTINGS = (
    Setting("resnet_global_tiny_cifar", "resnet_tiny_cifar", (3, 32, 32)),
    Setting("resnet_global_cifar", "resnet32_cifar", (3, 32, 32)),
    Setting("mobilenetv2_global", "mobilenetv2_100", (3, 224, 224)),
)


def with_form(network: nn.Module, form: Form) -> nn.Module:
    """The network with the form in the place of each of its Global layers, in place."""
    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, GlobalLayer)]
    if not layers:
        raise UserError("the network has no Global layer: there is nothing that a form could replace")
    for i, (name, layer) in enumerate(layers):
        if form.make is not None:
            replace_module(network, name, new=form.make(layer, i))
    return network


def _networks(setting: Setting, forms: Sequence[str]) -> dict[str, nn.Module]:
    built = {"baseline": build_named(setting.baseline).model}
    for name in forms:
        torch.manual_seed(SEED)
        built[name] = with_form(create_model(setting.network), FORMS[name])
    for model in built.values():
        _draw_norms(model)
    return {name: model.eval() for name, model in built.items()}


def _draw_norms(model: nn.Module) -> None:
    """Norms that do something: an untrained one subtracts 0 and divides by 1."""
    generator = torch.Generator().manual_seed(SEED)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0.0, 0.1, generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.1, generator=generator)


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """All that the command writes."""
    before, cells = machine.load_averages(), []
    for setting in SETTINGS[:1] if args.quick else SETTINGS:
        networks = _networks(setting, args.forms)
        size = setting.input_size
        counts = {name: count(model, size) for name, model in networks.items()}
        for batch in args.batches:
            x = torch.randn(batch, *size, generator=torch.Generator().manual_seed(SEED))
            found = latencies_of(
                networks, x, engines=args.engines, rounds=args.rounds, seconds=args.seconds,
                compile=args.compile and not args.quick, progress=lambda line: print(line, file=sys.stderr),
            )  # fmt: skip
            rows = [
                {
                    "form": name,
                    "about": setting.baseline if name == "baseline" else FORMS[name].about,
                    "params": counts[name].params,
                    "macs": counts[name].macs,
                    "engines": found[name],
                    "ratio_to_baseline": {
                        e: _ratio(found[name][e], found["baseline"][e]) for e in args.engines
                    },
                }
                for name in networks
            ]
            cells.append({"network": setting.network, "batch": batch, "input": list(size), "forms": rows})
            torch._dynamo.reset()
    return {
        **machine.facts(seed=SEED),
        "load_before": before,
        "tolerance": "each engine's output within 1e-4 of the largest value of the module's",
        "cells": cells,
    }


def _ratio(form: dict[str, Any], baseline: dict[str, Any]) -> float | None:
    a, b = form["seconds"], baseline["seconds"]
    return None if a is None or b is None else a / b


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deployed_forms", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=120.0, help="at most, per network and batch")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True,
                        help="whether globalcnn's search compiles, a minute per network")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="the smallest network, nothing compiled")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    write_json(args.out, measured(args))


if __name__ == "__main__":
    main()
