"""What each form of the Global layer costs where it is deployed: parameters, multiply-adds, latency by engine.

    python -m benchmarks.deployed_forms                          # -> results/bench/deployed_forms.json
    python -m benchmarks.deployed_forms --quick --out quick.json

In each network every Global layer is replaced by one form; the baseline is the network that it is meant to
replace. All forms of a network are timed in the same rounds. Weights are untrained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from globalcnn import create_model
from globalcnn.cli.networks import build_named
from globalcnn.files import write_json
from globalcnn.measure import count
from globalcnn.nn.deployed import DeployedGlobalLayer

from . import forms, machine
from .deployed_engines import COMPETING, ENGINES, latencies_of
from .pages import RESULTS

OUT = RESULTS / "bench" / "deployed_forms.json"
SEED = 0


@dataclass(frozen=True)
class Form:
    """A form of the layer. about: what it is; make: None keeps the published layer."""

    about: str
    make: forms.Make | None


FORMS: dict[str, Form] = {
    "published": Form("the published layer", None),
    "published-dirichlet": Form(
        "the published layer, zero beyond the edge", forms.with_pde(boundary="dirichlet")
    ),
    "grouped": Form(
        "the published layer, its coefficients by one grouped convolution",
        lambda layer, i: DeployedGlobalLayer(forms.again(layer).eval(), grouped=True),
    ),
    "shared-groups": Form(
        "one coefficient map for four channels", forms.changed(coefficients="shared-groups")
    ),
    "half-resolution": Form(
        "coefficients at half the resolution", forms.changed(coefficients="half-resolution")
    ),
    "bounded": Form("velocity within the stability limit", forms.changed(bounded=True)),
    "image-affine": Form("coefficients by the image, zero beyond the edge", forms.uniform("image-affine")),
    "image-linear": Form(
        "coefficients by the means of all channels, zero beyond the edge", forms.uniform("image-linear")
    ),
    "constant": Form("constant coefficients, zero beyond the edge", forms.uniform()),
    "constant-periodic": Form("constant coefficients, periodic", forms.uniform(boundary="periodic")),
    "constant-k5": Form(
        "constant coefficients, five steps, zero beyond the edge: five convolutions", forms.uniform(steps=5)
    ),
    "constant-k5-periodic": Form(
        "constant coefficients, five steps, periodic: one 11x11 convolution",
        forms.uniform(boundary="periodic", steps=5),
    ),
    "gated-sweeps": Form("rational gates, one sweep along each direction", forms.sweeps("rational")),
    "depthwise-3": Form("a residual depthwise 3x3", forms.depthwise(3)),
    "depthwise-5": Form("a residual depthwise 5x5", forms.depthwise(5)),
    "depthwise-7": Form("a residual depthwise 7x7", forms.depthwise(7)),
    "norm-act": Form("norm and activation", forms.norm_act),
    "nothing": Form("nothing", forms.nothing),
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


def _networks(setting: Setting, names: Sequence[str]) -> dict[str, nn.Module]:
    built = {"baseline": build_named(setting.baseline).model}
    for name in names:
        torch.manual_seed(SEED)
        built[name] = forms.put_into(create_model(setting.network), FORMS[name].make)
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
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(COMPETING))
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True,
                        help="whether globalcnn's search compiles, a minute per network")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="the smallest network, nothing compiled")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    write_json(args.out, measured(args))


if __name__ == "__main__":
    main()
