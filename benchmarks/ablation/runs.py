"""One training per arm and seed: what is done, what is being done by another process, what comes next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from globalcnn import create_model
from globalcnn.data import load_data
from globalcnn.files import write_json
from globalcnn.measure import count, environment
from globalcnn.train import Recipe, train

from ..stretches import RESULT, EndsAt, OutOfTime, claimed
from .arms import Arm, find_arm

# One recipe for all arms of a group. 5,000 of the training images are held out; nothing is chosen by test accuracy.
RECIPE = Recipe(
    name="ablation",
    batch_size=128,
    optimizer="sgd",
    lr=0.2,
    weight_decay=1e-4,
    decay_norms_and_biases=False,
    schedule="cosine",
    warmup_epochs=1.0,
    label_smoothing=0.0,
    ema_decay=0.0,
    validation=0.1,
    channels_last=True,
)
RECIPES = {"sgd": RECIPE, "muon": RECIPE.replace(optimizer="muon", lr=0.03, weight_decay=0.05)}


@dataclass(frozen=True)
class Plan:
    """Which trainings: a network on data, for so many epochs, in the order of seeds and then arms.

    optimizer: which of `RECIPES`.
    """

    network: str
    data: str
    epochs: int
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: Path
    data_dir: Path | None = None
    device: str = "auto"
    optimizer: str = "sgd"

    def __iter__(self) -> Iterator[tuple[Arm, int, Path]]:
        for seed in self.seeds:
            for arm in self.arms:
                yield find_arm(arm), seed, self.runs / self.group / f"{arm}-seed{seed}"

    @property
    def group(self) -> str:
        """The name of their folder, and of the file of their results."""
        other = "" if self.optimizer == "sgd" else f"-{self.optimizer}"
        return f"{self.network}-{self.data}-{self.epochs}{other}"

    @property
    def recipe(self) -> Recipe:
        """Of every arm."""
        return RECIPES[self.optimizer].replace(epochs=self.epochs)


def build(network: str, arm: Arm, *, num_classes: int, seed: int) -> nn.Module:
    """The network with the arm's blocks; the same seed gives the same weights in what the arms share."""
    torch.manual_seed(seed)
    model = create_model(network, num_classes=num_classes)
    torch.manual_seed(seed + 1)
    return arm.put_into(model)


def work(plan: Plan, *, until: float, say: Any) -> int:
    """Train what is not done yet, until the clock `time.monotonic()` says `until`; returns how many ended."""
    ended = 0
    for arm, seed, folder in plan:
        with claimed(folder) as ours:
            if not ours:
                continue
            say(f"{plan.network} on {plan.data}, {arm.name}, seed {seed}: {folder}")
            try:
                write_json(folder / RESULT, _trained(plan, arm, seed, folder / "run", until))
            except OutOfTime:
                say("the time is over; the same command goes on from here")
                return ended
            ended += 1
    return ended


def _trained(plan: Plan, arm: Arm, seed: int, out: Path, until: float) -> dict[str, Any]:
    recipe = plan.recipe
    data = load_data(plan.data, data_dir=plan.data_dir, validation=recipe.validation, seed=0)
    model = build(plan.network, arm, num_classes=len(data.classes), seed=seed)
    cost = count(model, (data.in_chans, *data.image_size))
    notes = {"arm": arm.name, "question": arm.question}
    result = train(
        model,
        data,
        recipe,
        out=out,
        seed=seed,
        device=plan.device,
        resume=out.exists(),
        notes=notes,
        reporter=EndsAt(until),
    )
    assert result.test is not None
    return {
        "network": plan.network,
        "data": plan.data,
        "arm": arm.name,
        "question": arm.question,
        "seed": seed,
        "parameters": cost.params,
        "macs": cost.macs,
        "test_accuracy": result.test.accuracy,
        "validation_accuracy": [e["val_accuracy"] for e in result.epochs],
        "train_loss": [e["train_loss"] for e in result.epochs],
        "seconds": round(sum(e["seconds"] for e in result.epochs)),
        "recipe": recipe.as_dict(),
        "environment": environment(),
    }
