"""`globalcnn demo`: the main job in small, on the built-in real digits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from ..data import DataSource, load_data
from ..errors import UserError
from ..files import write_json
from ..measure import environment
from ..models.base import ImageClassifier
from ..models.digits import GlobalBody
from ..nn import Evolution, GlobalLayer
from ..train import Recipe, suited_to
from ..train.comparison import Compared, compare
from ..viz import plot_comparison, plot_evolution, plot_feature_maps
from .compare import print_comparison
from .console import say
from .options import new_folder
from .reporting import TrainingReporter

BACKBONES = ("digits_conv", "digits_residual", "digits_global")
NETWORKS = ("resnet32_cifar", "resnet_global_cifar")
OUTPUTS = (
    "summary.json",
    "backbones.png",
    "feature_maps.png",
    "networks.png",
    "pde_digits_global.png",
    "pde_resnet_global.png",
)


@dataclass(frozen=True)
class Args:
    """The main job in small: train, compare and picture, on 5,000 real digits that are built in.

    (1) the three MNIST-10 backbones: accuracy, confusions between 3 and 5, and the feature map of one "3"
    after each; (2) ResNet against ResNet-Global: accuracy, parameters, multiply-adds, time; (3) what the PDE
    did to one image. The digits are 4,000 for training and 1,000 for testing, so accuracies are lower than on
    all of MNIST; results/ has those.
    """

    out: Path = Path("demo-out")
    """Folder for summary.json and the pictures."""
    seed: int = 0
    """Of weights and order."""
    epochs: tuple[int, int] = (15, 3)
    """Epochs of the backbones and of the two networks."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the outputs of an earlier demo in --out."""


def run(args: Args) -> None:
    """Train, compare, picture."""
    if min(args.epochs) < 1:
        raise UserError(f"--epochs {args.epochs[0]} {args.epochs[1]}: both must be at least 1")
    start = time.perf_counter()
    out = new_folder(args.out, overwrite=args.overwrite, ours=OUTPUTS)
    data = load_data("digits", validation=0.0)
    base = suited_to(Recipe(optimizer="sgd", validation=0.0, label_smoothing=0.0), "digits")
    say(
        f"data: real digits of {len(data.classes)} classes, {data.size('train')} to train and "
        f"{data.size('test')} to test"
    )

    say("\n(1) three backbones of about 500 parameters: convolution, residual, Global")
    recipe = base.replace(epochs=args.epochs[0])
    backbones = _compare(BACKBONES, data, recipe, args.seed)
    print_comparison(backbones, data.name, recipe, pair=(3, 5))
    image = _first(data, 3)
    _picture_backbones(backbones, image, out)

    say("\n(2) ResNet-32 against ResNet-Global")
    recipe = base.replace(epochs=args.epochs[1])
    networks = _compare(NETWORKS, data, recipe, args.seed)
    print_comparison(networks, data.name, recipe)
    plot_comparison(
        [n.figures() for n in networks], out / "networks.png", title="ResNet-32 against ResNet-Global"
    )

    say("\n(3) what the PDE did to one image")
    facts = _picture_evolutions(backbones[-1].models[0], networks[-1].models[0], image, out)
    for line in _in_words(facts):
        say(line)

    write_json(
        out / "summary.json",
        {
            "seed": args.seed,
            "data": {"name": data.name, "train": data.size("train"), "test": data.size("test")},
            "epochs": list(args.epochs),
            "backbones": [{**b.figures(), "confusions_3_5": b.confusions(3, 5)[0]} for b in backbones],
            "networks": [n.figures() for n in networks],
            "pde": facts,
            "pictures": [name for name in OUTPUTS if name.endswith(".png")],
            "seconds": round(time.perf_counter() - start, 1),
            "environment": environment(),
        },
    )
    say(f"\nwrote into {out}: {', '.join(OUTPUTS)}")
    say(f"took {time.perf_counter() - start:.0f} s")


def _compare(names: Sequence[str], data: DataSource, recipe: Recipe, seed: int) -> list[Compared]:
    return compare(
        names, data, recipe, seeds=(seed,), device="cpu", reporter=lambda label: TrainingReporter(label=label)
    )


def _first(data: DataSource, label: int) -> Tensor:
    """The first test image of a class, (1, C, H, W)."""
    for images, labels in data.loader("test", 64):
        found = (labels == label).nonzero()
        if len(found):
            return images[found[0]]
    raise UserError(f"the test images hold no class {label}")


@torch.no_grad()
def _picture_backbones(backbones: Sequence[Compared], image: Tensor, out: Path) -> None:
    plot_comparison(
        [b.figures() for b in backbones], out / "backbones.png", title="three backbones on digits"
    )
    maps = {b.model: _features(b.models[0], image)[0, 0] for b in backbones}
    plot_feature_maps(
        image[0, 0], maps, out / "feature_maps.png", title='feature map of a "3" after each backbone'
    )


def _picture_evolutions(digits: nn.Module, resnet: nn.Module, image: Tensor, out: Path) -> dict[str, Any]:
    body, layer = digits.get_submodule("body"), resnet.get_submodule("global1")
    assert isinstance(body, GlobalBody)
    assert isinstance(layer, GlobalLayer)
    one = body.evolution(input_of(digits, body, image))
    plot_evolution(
        one, out / "pde_digits_global.png", image=image[0, 0], title="digits_global: H over five steps, D = 1"
    )
    features = input_of(resnet, layer, image)
    many = layer.evolution(features)
    plot_evolution(
        many,
        out / "pde_resnet_global.png",
        image=image[0, 0],
        title="first Global layer of ResNet-Global: the three channels that the PDE changes most",
    )
    stability = layer.stability(features)
    return {
        "digits_global": _facts(one),
        "resnet_global_layer1": {
            **_facts(many),
            "share_beyond_stability_limit": stability.share_over,
        },
    }


def _features(model: nn.Module, images: Tensor) -> Tensor:
    assert isinstance(model, ImageClassifier)
    return model.forward_features(images)


@torch.no_grad()
def input_of(model: nn.Module, module: nn.Module, images: Tensor) -> Tensor:
    """What `module` reads when `images` go through `model`."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model.eval()(images)
    finally:
        handle.remove()
    return seen[0]


def _facts(evolution: Evolution) -> dict[str, Any]:
    first, last = evolution.levels[0], evolution.levels[-1]
    c = evolution.fields
    return {
        "steps": len(evolution.levels) - 1,
        "relative_change": ((last - first).norm() / first.norm()).item(),
        "largest_speed": torch.hypot(c.u, c.v).max().item(),
        "mean_Dx": c.Dx.mean().item() if isinstance(c.Dx, Tensor) else c.Dx,
        "mean_Dy": c.Dy.mean().item() if isinstance(c.Dy, Tensor) else c.Dy,
    }


def _in_words(facts: dict[str, Any]) -> list[str]:
    lines = []
    for name, f in facts.items():
        line = (
            f"  {name}: H changed by {100 * f['relative_change']:.0f} % in {f['steps']} step(s); "
            f"largest speed {f['largest_speed']:.3g} pixels per unit of time, "
            f"mean D ({f['mean_Dx']:.3g}, {f['mean_Dy']:.3g})"
        )
        if "share_beyond_stability_limit" in f:
            share = 100 * f["share_beyond_stability_limit"]
            line += f"; {share:.1f} % of its elements are beyond the scheme's stability limit"
        lines.append(line)
    return lines
