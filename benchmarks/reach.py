"""Does a layer carry information over the map? Small networks on the generated data "reach" and "reach-curve".

python -m benchmarks.reach

One backbone, with each of `ARMS` in the place of the layer, at the same number of parameters. Its convolution of
stride 3 and its two layers see little of the image unless the layer reaches far. A file results/reach/DATA-ARM-SEED.json for
each training; those that are there with the same settings are not trained again, so a stopped run continues.
At the end it draws reach.png from the files. Settings were tuned on images held out of training; the test
images are evaluated once, with the weights of the last epoch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from globalcnn import PDE, Boundary, GatedSweeps, GlobalLayer
from globalcnn.data import DataSource, load_data
from globalcnn.files import read_json, write_json
from globalcnn.graph import eval_mode
from globalcnn.measure import receptive_field
from globalcnn.train import Recipe, train
from globalcnn.viz.figure import new_figure, save

from .machine import facts
from .pages import RESULTS

FOLDER = RESULTS / "reach"
DATA = ("reach", "reach-curve")
EPOCHS = {"reach": 4, "reach-curve": 10}
WIDTH, LAYERS = 12, 2
RECIPE = Recipe(
    name="reach", batch_size=64, optimizer="adamw", lr=0.01, weight_decay=1e-4, decay_norms_and_biases=False,
    warmup_epochs=0.5, label_smoothing=0.0, ema_decay=0.0, crop_padding=0, flip=True, validation=0.1,
)  # fmt: skip
FIELD_IMAGES = 100  # over which the effective receptive field is averaged


class Depthwise(nn.Module):
    """`x + relu(norm(conv(x)))`, a depthwise 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return x + y.relu()


@dataclass(frozen=True)
class Arm:
    """What stands in the place of the layer: its words, and `make(channels, index)`."""

    words: str
    make: Callable[[int, int], nn.Module]


def _explicit(steps: int) -> Callable[[int, int], nn.Module]:
    # a periodic map would bring opposite edges together: the marks are near each other across the edge
    def make(channels: int, index: int) -> nn.Module:
        return _opened(GlobalLayer(channels, PDE(steps, boundary=Boundary.NEUMANN), norm_eps=1e-5), -1.0, 2.0)

    return make


def _sweeps(
    gate: Literal["transport", "sigmoid"], low: float, high: float
) -> Callable[[int, int], nn.Module]:
    def make(channels: int, index: int) -> nn.Module:
        scheme = GatedSweeps(gate, "y" if index % 2 else "x")
        return _opened(GlobalLayer(channels, PDE(dt=10.0, scheme=scheme), norm_eps=1e-5), low, high)

    return make


def _opened(layer: GlobalLayer, low: float, high: float) -> GlobalLayer:
    """Coefficients that differ by channel from the start, uniformly, so that some channels carry far."""
    for net in (layer.velocity_x, layer.velocity_y, layer.diffusion_x, layer.diffusion_y):
        nn.init.uniform_(net.norm.bias, low, high)
    return layer


ARMS = {
    "depthwise": Arm("residual depthwise 3x3", lambda channels, index: Depthwise(channels)),
    "explicit-k1": Arm("Du Fort-Frankel, K = 1", _explicit(1)),
    "explicit-k5": Arm("Du Fort-Frankel, K = 5", _explicit(5)),
    "sweeps": Arm("gated sweeps, transport", _sweeps("transport", -1.0, 2.0)),
    "sweeps-sigmoid": Arm("gated sweeps, sigmoid", _sweeps("sigmoid", -4.0, 4.0)),
}


class SmallNet(nn.Module):
    """Stem of stride 3; layers with a 1x1 convolution before each, residual; 1x1; average; linear."""

    def __init__(self, arm: Arm, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 5, 3, padding=1, bias=False), *_norm_act(width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1, bias=False), *_norm_act(width), arm.make(width, i))
            for i in range(LAYERS)
        )
        self.last = nn.Sequential(nn.Conv2d(width, 2 * width, 1, bias=False), *_norm_act(2 * width))
        self.head = nn.Linear(2 * width, 2)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        features: Tensor = self.last(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
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


def effective_field(model: SmallNet, images: Tensor) -> list[list[float]]:
    """|d feature / d pixel| of the central feature, over channels and images, largest 1; (48, 48)."""
    with eval_mode(model):
        pixels = images.clone().requires_grad_()
        features = model.forward_features(pixels)
        centre = features[:, :, features.shape[2] // 2, features.shape[3] // 2]
        total = torch.zeros(images.shape[-2:])
        for channel in range(centre.shape[1]):
            (gradient,) = torch.autograd.grad(centre[:, channel].sum(), pixels, retain_graph=True)
            total += gradient.abs().mean((0, 1))
    total /= total.max()
    return [[float(f"{value:.2e}") for value in row] for row in total.tolist()]


def settings(data: str, arm: str, seed: int) -> dict[str, Any]:
    """What decides a training; a file with other settings is written anew."""
    return {
        "data": data,
        "arm": arm,
        "words": ARMS[arm].words,
        "width": equal_width(ARMS[arm]),
        "layers": LAYERS,
        "recipe": RECIPE.replace(epochs=EPOCHS[data]).as_dict(),
        "seed": seed,
    }


def run(source: DataSource, told: dict[str, Any]) -> dict[str, Any]:
    """One training; what its file holds."""
    torch.manual_seed(told["seed"])
    model = SmallNet(ARMS[told["arm"]], told["width"])
    field = receptive_field(model, (1, *source.image_size))
    start = time.perf_counter()
    result = train(model, source, Recipe.from_dict(told["recipe"]), seed=told["seed"], device="cpu")
    seconds = time.perf_counter() - start
    images, _ = next(iter(source.loader("test", FIELD_IMAGES)))
    assert result.test is not None  # the generated data has test images
    return {
        "settings": told,
        "parameters": parameters(model),
        "accuracy": result.test.accuracy,
        "validation": [epoch["val_accuracy"] for epoch in result.epochs],
        "seconds": round(seconds, 1),
        "receptive_field": [field.height, field.width],
        "effective_field": effective_field(model, images),
        **facts(seed=told["seed"]),
    }


def run_all(
    data: Iterable[str], arms: Iterable[str], seeds: Iterable[int], folder: Path, say: Callable[[str], None]
) -> None:
    """Every training that is not in `folder` yet, seed after seed."""
    for seed in seeds:
        for name in data:
            source = load_data(name, validation=RECIPE.validation)
            for arm in arms:
                path, told = folder / f"{name}-{arm}-{seed}.json", settings(name, arm, seed)
                if not path.exists() or read_json(path)["settings"] != told:
                    write_json(path, run(source, told))
                found = read_json(path)
                say(
                    f"{name:12} {found['settings']['words']:26} seed {seed}: {found['parameters']:,} parameters, "
                    f"{100 * found['accuracy']:.1f} % of the test images, {found['seconds']:.0f} s"
                )


def read_runs(folder: Path = FOLDER) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The files of `folder`: data -> arm -> runs by seed."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for data in DATA:
        for arm in ARMS:
            found = [read_json(path) for path in sorted(folder.glob(f"{data}-{arm}-[0-9]*.json"))]
            if found:
                runs.setdefault(data, {})[arm] = found
    return runs


def draw(folder: Path) -> None:
    """reach.png in `folder`: per data set an image of each class, and the effective field of each arm."""
    runs = read_runs(folder)
    columns = 2 + max(map(len, runs.values()))
    figure, axes = new_figure(
        len(runs), columns, width=2.2 * columns, height=2.75 * len(runs) + 0.3, squeeze=False
    )
    drawn: Any = None
    for cells, (data, arms) in zip(axes, runs.items(), strict=True):
        part = load_data(data).pools["test"]  # type: ignore[attr-defined]
        for label, word in enumerate(("same", "different")):
            image = part.images[int((part.labels == label).nonzero()[3, 0]), 0]
            cells[label].imshow(image.numpy(), cmap="gray", vmin=0, vmax=255)
            cells[label].set_title(f"{data}: {word}", fontsize=9)
        for cell, found in zip(cells[2:], arms.values(), strict=False):
            field = torch.tensor(found[0]["effective_field"]).clamp(min=1e-4).log10()
            drawn = cell.imshow(field.numpy(), cmap="viridis", vmin=-4, vmax=0)
            mean = sum(f["accuracy"] for f in found) / len(found)
            cell.set_title(f"{found[0]['settings']['words']}\n{100 * mean:.1f} %", fontsize=9)
        for cell in cells:
            cell.set(xticks=[], yticks=[])
        for cell in cells[2 + len(arms) :]:
            cell.set_axis_off()
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="log10 |d feature / d pixel|")
    figure.suptitle("What the central feature depends on after training, and test accuracy (mean over seeds)")
    save(figure, folder / "reach.png")


def main(words: Sequence[str] | None = None) -> None:
    """Train what is missing, then draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reach", description=__doc__)
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=tuple(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1))
    parser.add_argument("--out", type=Path, default=FOLDER)
    given = parser.parse_args(words)
    run_all(given.data, given.arms, given.seeds, given.out, lambda text: print(text, flush=True))
    draw(given.out)


if __name__ == "__main__":
    main()
