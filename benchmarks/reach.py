"""Does a layer carry information over the map? Small networks on the generated data "reach" and "reach-curve".

python -m benchmarks.reach --search --data reach
python -m benchmarks.reach --data reach

One backbone, with each of `ARMS` in the place of the layer, at the same number of parameters. Its convolution of
stride 3 and its two layers see little of the image unless the layer reaches far.

--search trains every arm once with each of its settings and judges it on images held out of training; the test
images are not in the data that it is given. Files: results/reach/search/DATA-ARM-N.json. Which setting an arm uses
is in benchmarks/reach_networks.py: the best of the search.

Without --search, every arm is trained with its setting, for each seed: results/reach/DATA-ARM-SEED.json. The test
images are evaluated once, with the weights of the last epoch. At the end it draws reach.png from the files.

A training whose file is there with the same settings is not repeated, so a stopped run continues.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from globalcnn.data import DataSource, load_data
from globalcnn.data.memory import TensorSource
from globalcnn.files import read_json, write_json
from globalcnn.graph import eval_mode
from globalcnn.measure import receptive_field
from globalcnn.train import Recipe, RunResult, TrainingDiverged, train
from globalcnn.viz.figure import new_figure, save

from .machine import facts
from .pages import RESULTS
from .reach_networks import ARMS, KERNEL, LAYERS, PADDING, STRIDE, Setting, SmallNet, equal_width, parameters

FOLDER = RESULTS / "reach"
SEARCH = "search"  # the folder in it with the files of the search
SEARCH_SEED = 100
DATA = ("reach", "reach-curve")
EPOCHS = {"reach": 4, "reach-curve": 15}
RECIPE = Recipe(
    name="reach", batch_size=64, optimizer="adamw", lr=0.01, weight_decay=1e-4, decay_norms_and_biases=False,
    warmup_epochs=0.5, label_smoothing=0.0, ema_decay=0.0, crop_padding=0, flip=True, validation=0.1,
)  # fmt: skip
FIELD_IMAGES = 100  # over which the effective receptive field is averaged
FAR = 16.0  # pixels
COLUMNS = 5  # of the picture
EXAMPLE = 6  # which test image of each class it shows, chosen so that the curves wind

Say = Callable[[str], None]


def effective_field(model: SmallNet, images: Tensor) -> Tensor:
    """|d feature / d pixel| of the central feature, over channels and images, largest 1; (48, 48)."""
    with eval_mode(model):
        pixels = images.clone().requires_grad_()
        features = model.forward_features(pixels)
        centre = features[:, :, features.shape[2] // 2, features.shape[3] // 2]
        total = torch.zeros(images.shape[-2:])
        for channel in range(centre.shape[1]):
            (gradient,) = torch.autograd.grad(centre[:, channel].sum(), pixels, retain_graph=True)
            total += gradient.abs().mean((0, 1))
    return total / total.max()


def to_rows(field: Tensor) -> list[str]:
    """A field as short text, one string for each row.

    >>> to_rows(torch.tensor([[1.0, 0.25], [0.0, 3e-5]]))
    ['1.0e+00 2.5e-01', '0.0e+00 3.0e-05']
    """
    return [" ".join(f"{value:.1e}" for value in row) for row in field.tolist()]


def from_rows(rows: Sequence[str]) -> Tensor:
    """The field of `to_rows`, two digits of it."""
    return torch.tensor([[float(value) for value in row.split()] for row in rows])


def central_place(size: Sequence[int]) -> tuple[int, int]:
    """The pixel (row, column) on which the window of the central feature is centred, before the layers."""
    row, column = (
        ((pixels + 2 * PADDING - KERNEL) // STRIDE + 1) // 2 * STRIDE - PADDING + KERNEL // 2
        for pixels in size
    )
    return row, column


def far_share(field: Tensor, distance: float = FAR) -> float:
    """The share of the field farther than `distance` pixels from the central feature's place."""
    row, column = central_place(field.shape)
    down, right = torch.arange(field.shape[0]) - row, torch.arange(field.shape[1]) - column
    squares = down.square().unsqueeze(1) + right.square()
    return float(field[squares > distance**2].sum() / field.sum())


def without_test(source: DataSource) -> DataSource:
    """The same training and held-out images, and no test images."""
    assert isinstance(source, TensorSource)  # as generated data is
    pools = {"train": source.pools["train"]}
    return replace(source, pools=pools, members=source.members | {"test": ("train", torch.arange(0))})


def settings_of(file: dict[str, Any]) -> dict[str, Any]:
    """Those that a file was made with; fields of the recipe that it does not know have their defaults."""
    told: dict[str, Any] = file["settings"]
    return {**told, "recipe": Recipe.from_dict(told["recipe"]).as_dict()}


def settings(data: str, arm: str, seed: int, setting: Setting | None = None) -> dict[str, Any]:
    """What decides a training; a file with other settings is written anew. setting: default, the arm's."""
    setting = ARMS[arm].setting if setting is None else setting
    return {
        "data": data,
        "arm": arm,
        "words": ARMS[arm].words,
        **setting.as_dict(),
        "width": equal_width(ARMS[arm]),
        "layers": LAYERS,
        "recipe": RECIPE.replace(epochs=EPOCHS[data], lr=setting.lr).as_dict(),
        "seed": seed,
    }


def trained(source: DataSource, told: dict[str, Any], setting: Setting) -> tuple[SmallNet, RunResult, float]:
    """The network, the result of its training, and the seconds that it took."""
    torch.manual_seed(told["seed"])
    model = SmallNet(ARMS[told["arm"]], told["width"], setting)
    start = time.perf_counter()
    result = train(model, source, Recipe.from_dict(told["recipe"]), seed=told["seed"], device="cpu")
    return model, result, time.perf_counter() - start


def run(source: DataSource, told: dict[str, Any]) -> dict[str, Any]:
    """One training with the arm's setting, and its test; what its file holds."""
    model, result, seconds = trained(source, told, ARMS[told["arm"]].setting)
    field = receptive_field(model, (1, *source.image_size))
    images, _ = next(iter(source.loader("test", FIELD_IMAGES)))
    assert result.test is not None  # the generated data has test images
    return {
        "settings": told,
        "parameters": parameters(model),
        "accuracy": result.test.accuracy,
        "validation": [epoch["val_accuracy"] for epoch in result.epochs],
        "seconds": round(seconds, 1),
        "receptive_field": [field.height, field.width],
        "effective_field": to_rows(effective_field(model, images)),
        **facts(seed=told["seed"]),
    }


def run_all(data: Iterable[str], arms: Iterable[str], seeds: Iterable[int], folder: Path, say: Say) -> None:
    """Every training that is not in `folder` yet, seed after seed."""
    for seed in seeds:
        for name in data:
            source = load_data(name, validation=RECIPE.validation)
            for arm in arms:
                path, told = folder / f"{name}-{arm}-{seed}.json", settings(name, arm, seed)
                if not path.exists() or settings_of(read_json(path)) != told:
                    write_json(path, run(source, told))
                found = read_json(path)
                say(
                    f"{name:12} {found['settings']['words']:26} seed {seed}: {found['parameters']:,} parameters, "
                    f"{100 * found['accuracy']:.1f} % of the test images, {found['seconds']:.0f} s"
                )


def try_setting(source: DataSource, told: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """One training of the search. validation: held-out accuracy after each epoch, empty if it diverged."""
    try:
        _, result, seconds = trained(source, told, setting)
    except TrainingDiverged as error:
        return {"settings": told, "validation": [], "diverged": str(error), **facts(seed=told["seed"])}
    assert result.test is None
    validation = [epoch["val_accuracy"] for epoch in result.epochs]
    return {
        "settings": told, "validation": validation, "seconds": round(seconds, 1), **facts(seed=told["seed"])
    }  # fmt: skip


def search(data: Iterable[str], arms: Iterable[str], folder: Path, say: Say) -> None:
    """Every training of the search that is not in `folder` yet."""
    for name in data:
        source = without_test(load_data(name, validation=RECIPE.validation))
        for arm in arms:
            for setting in ARMS[arm].tried:
                path = folder / f"{name}-{arm}-{_slug(setting)}.json"
                told = settings(name, arm, SEARCH_SEED, setting)
                if not path.exists() or settings_of(read_json(path)) != told:
                    write_json(path, try_setting(source, told, setting))
                found = read_json(path)
                say(f"{name:12} {ARMS[arm].words:26} {setting!s:50}: {100 * held_out(found):.1f} % held out")


def held_out(found: dict[str, Any]) -> float:
    """Held-out accuracy with the last weights, by which settings are chosen; 0 if the training diverged."""
    return float(found["validation"][-1]) if found["validation"] else 0.0


def _slug(setting: Setting) -> str:
    if setting.start is None:
        return f"lr{setting.lr:g}"
    low, high = setting.start
    return f"dt{setting.dt:g}_start{low:g}to{high:g}_lr{setting.lr:g}"


def read_search(folder: Path = FOLDER / SEARCH) -> dict[str, dict[str, list[tuple[Setting, dict[str, Any]]]]]:
    """The files of the search: data -> arm -> its settings in the order of `tried`, each with its file."""
    files = [read_json(path) for path in sorted(folder.glob("*.json"))]
    found: dict[str, dict[str, list[tuple[Setting, dict[str, Any]]]]] = {}
    for data in DATA:
        for arm in ARMS:
            for setting in ARMS[arm].tried:
                told = settings(data, arm, SEARCH_SEED, setting)
                for file in files:
                    if settings_of(file) == told:
                        found.setdefault(data, {}).setdefault(arm, []).append((setting, file))
    return found


def read_runs(folder: Path = FOLDER) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The files of `folder`: data -> arm -> runs by seed."""
    files = [read_json(path) for path in folder.glob("*.json")]
    files.sort(key=lambda file: int(file["settings"]["seed"]))
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for data in DATA:
        for arm in ARMS:
            found = [f for f in files if (f["settings"]["data"], f["settings"]["arm"]) == (data, arm)]
            if found:
                runs.setdefault(data, {})[arm] = found
    return runs


def draw(folder: Path) -> None:
    """reach.png in `folder`: for each data set an image of each class, and the effective field of each arm."""
    runs = read_runs(folder)
    rows = [-(-(2 + len(arms)) // COLUMNS) for arms in runs.values()]
    figure, axes = new_figure(
        sum(rows), COLUMNS, width=2.6 * COLUMNS, height=2.95 * sum(rows) + 0.5, squeeze=False
    )
    drawn: Any = None
    for k, (data, arms) in enumerate(runs.items()):
        cells = list(axes[sum(rows[:k]) : sum(rows[: k + 1])].flat)
        _draw_classes(cells[:2], data)
        for cell, found in zip(cells[2:], arms.values(), strict=False):
            drawn = _draw_field(cell, found)
        for cell in cells:
            cell.set(xticks=[], yticks=[])
        for cell in cells[2 + len(arms) :]:
            cell.set_axis_off()
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="log10 |d feature / d pixel|, largest 0")
    figure.suptitle(
        f"What the central feature depends on after training, first seed (circle: {FAR:g} pixels),\n"
        "and accuracy on the test images, each seed"
    )
    save(figure, folder / "reach.png")


def _draw_classes(cells: Sequence[Any], data: str) -> None:
    """An image of each class."""
    source = load_data(data)
    assert isinstance(source, TensorSource)
    part = source.pools["test"]
    for label, cell in enumerate(cells):
        image = part.images[int((part.labels == label).nonzero()[EXAMPLE, 0]), 0]
        cell.imshow(image.numpy(), cmap="gray", vmin=0, vmax=255)
        cell.set_title(f"{data}:\n{source.classes[label]}", fontsize=10)


def _draw_field(cell: Any, found: Sequence[dict[str, Any]]) -> Any:
    """The effective field of an arm's first seed."""
    field = from_rows(found[0]["effective_field"])
    drawn = cell.imshow(field.clamp(min=1e-4).log10().numpy(), cmap="viridis", vmin=-4, vmax=0)
    angle = torch.linspace(0, 2 * torch.pi, 100)
    row, column = central_place(field.shape)
    cell.plot(column + FAR * angle.cos(), row + FAR * angle.sin(), color="white", linewidth=0.8)
    accuracies = ", ".join(f"{100 * run['accuracy']:.1f}" for run in found)
    cell.set_title(f"{found[0]['settings']['words']}:\n{accuracies} %", fontsize=10)
    return drawn


def main(words: Sequence[str] | None = None) -> None:
    """Search, or train what is missing and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reach", description=__doc__)
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=tuple(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1))
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--search", action="store_true", help="try each arm's settings on held-out images")
    given = parser.parse_args(words)

    def say(text: str) -> None:
        print(text, flush=True)

    if given.search:
        search(given.data, given.arms, given.out / SEARCH, say)
        return
    run_all(given.data, given.arms, given.seeds, given.out, say)
    draw(given.out)


if __name__ == "__main__":
    main()
