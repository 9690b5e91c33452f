"""One training per seed, target and arm: what is done, what another process does, what comes next."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from globalcnn.condense import Recovery, recover
from globalcnn.condense.recover_stages import renew_norms
from globalcnn.data import DataSource
from globalcnn.errors import UserError
from globalcnn.files import write_json
from globalcnn.measure import count, environment
from globalcnn.train import Recipe, evaluate, suited_to, train
from globalcnn.train.setting_up import make_accelerator

from ..stretches import RESULT, OutOfTime, claimed
from .arms import ARMS, REFERENCE, Arm, Candidate, find_arm
from .choice import choose
from .clock import Clock
from .latency import read_times
from .objective import distillation
from .original import Original

ORIGINAL, SECONDS, EPOCHS, BEFORE = (
    "original.json",
    "seconds.json",
    "epochs.json",
    "before.json",
)
BATCH = 256  # of evaluations
SCRATCH = Recipe(optimizer="sgd")
AFTERWARDS = SCRATCH.replace(lr=SCRATCH.lr / 2)  # of trained weights; the default of `condense.recover`


@dataclass(frozen=True)
class Settings:
    """Which trainings. epochs: of a recovery, its repair included; results: the folder of the times."""

    original: Original
    data: str
    runs: Path
    results: Path
    arms: tuple[str, ...]
    epochs: int = 10
    repair_epochs: int = 2
    targets: tuple[float, ...] = (2.0, 3.0)
    seeds: tuple[int, ...] = (0, 1)
    data_dir: Path | None = None
    device: str = "auto"
    train_images: int | None = None
    precision: str = "no"

    def __post_init__(self) -> None:
        if not 0 <= self.repair_epochs < self.epochs:
            raise UserError("--repair-epochs must be 0 or more, and below --epochs")
        if not all(target > 1 for target in self.targets):
            raise UserError("--targets must be speed-ups above 1")

    @property
    def folder(self) -> Path:
        """Of all trainings that are compared with each other."""
        limit = "" if self.train_images is None else f"-{self.train_images}-images"
        return self.runs / f"{self.original.name}-{self.data}-{self.epochs}{limit}"

    def run(self, arm: str, target: float, seed: int) -> Path:
        """The folder of a training."""
        return self.folder / f"{arm}-{target:g}x-seed{seed}"

    def __iter__(self) -> Iterator[tuple[Arm, float, int]]:
        for seed in self.seeds:
            for target in self.targets:
                for name in sorted(self.arms, key=list(ARMS).index):  # the reference before those that wait
                    yield find_arm(name), target, seed


@dataclass(frozen=True)
class Task:
    """One training."""

    settings: Settings
    arm: Arm
    target: float
    seed: int
    candidate: Candidate
    name: str
    data: DataSource
    say: Callable[[str], None]
    recovery: Recovery = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "recovery", Recovery(repair_epochs=self.settings.repair_epochs))

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return self.settings.run(self.arm.name, self.target, self.seed)

    @property
    def original(self) -> Original:
        """The network that is made faster."""
        return self.settings.original

    def built(self) -> nn.Module:
        """The candidate, new weights from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.candidate.build()

    def recipe(self, recipe: Recipe, epochs: int) -> Recipe:
        """The recipe as it suits the data, for so many epochs."""
        suited = suited_to(recipe, self.data.name)
        return suited.replace(epochs=epochs, precision=self.settings.precision, channels_last=True)


def work(settings: Settings, *, until: float, say: Callable[[str], None]) -> int:
    """Train what is not done yet, until the clock `time.monotonic()` says `until`; returns how many ended."""
    original = settings.original
    times = read_times(settings.results, original.name, original.weights())["arms"]
    data = original.data(
        settings.data, settings.data_dir, validation=AFTERWARDS.validation, train_images=settings.train_images
    )
    _note_original(settings, data)
    ended = 0
    for arm, target, seed in settings:
        folder = settings.run(arm.name, target, seed)
        if (folder / RESULT).is_file():
            continue
        if arm.from_scratch and not (settings.run(REFERENCE, target, seed) / RESULT).is_file():
            say(f"{folder.name} waits for {REFERENCE}, by whose time it is trained")
            continue
        original.model.cpu()  # a training before may have moved it
        found = _chosen(original, arm, target, times)
        if found is None:
            say(f"{folder.name}: no candidate is fast enough")
            continue
        with claimed(folder) as ours:
            if not ours:
                continue
            say(f"{original.name} on {settings.data}: {folder.name}, {found[0]}")
            task = Task(settings, arm, target, seed, found[1], found[0], data, say)
            try:
                write_json(folder / RESULT, _trained(task, until))
            except OutOfTime:
                say("the time is over; the same command goes on from here")
                return ended
            ended += 1
    return ended


def _chosen(
    original: Original, arm: Arm, target: float, times: Mapping[str, Any]
) -> tuple[str, Candidate] | None:
    """The candidate that is taken, with its name."""
    if arm.name not in times:
        raise UserError(f"the candidates of {arm.name!r} were not measured: do it with --latency --arms")
    measured = times[arm.name]["candidates"]
    name = choose(measured, target if arm.meets_target else None)
    if name is None:
        return None
    candidate = arm.candidates(original).get(name)
    if candidate is None or dict(candidate.settings) != measured[name]["settings"]:
        raise UserError(f"the candidates of {arm.name!r} are others than were measured: --latency again")
    return name, candidate


def _note_original(settings: Settings, data: DataSource) -> None:
    """Evaluate the original once; raise `UserError` where the folder is of another one."""
    path, original = settings.folder / ORIGINAL, settings.original
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8"))["weights"] != original.weights():
            raise UserError(f"{str(settings.folder)!r} holds trainings of another original: other --runs")
        return
    cost = count(original.model, original.size)
    settings.folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "test_accuracy": _accuracy(original.model, data, settings.device),
        "parameters": cost.params,
        "macs": cost.macs,
        "weights": original.weights(),
    }
    write_json(path, facts)


def _accuracy(model: nn.Module, data: DataSource, device: str) -> float:
    """On the test images; the model is on the CPU afterwards."""
    where = make_accelerator(device, "no").device
    try:
        return evaluate(model.to(where), data.loader("test", BATCH, device=where), len(data.classes)).accuracy
    finally:
        model.cpu()


def _trained(task: Task, until: float) -> dict[str, Any]:
    if task.arm.from_scratch:
        _decide_epochs(task)
    clock = Clock(task.folder / SECONDS, until)
    if task.candidate.plan is not None:
        found = _recovered(task, clock)
    elif task.arm.from_scratch:
        found = _from_scratch(task, clock)
    else:
        found = _finetuned(task, clock)
    cost = count(found.pop("model"), task.original.size)
    return {
        "network": task.original.name,
        "data": task.settings.data,
        "arm": task.arm.name,
        "question": task.arm.question,
        "target": task.target,
        "seed": task.seed,
        "candidate": task.name,
        "settings": dict(task.candidate.settings),
        "parameters": cost.params,
        "macs": cost.macs,
        **found,
        "seconds": round(clock.seconds(), 1),
        "environment": environment(),
    }


def _recovered(task: Task, clock: Clock) -> dict[str, Any]:
    """Condensed, repaired and trained end to end, by `condense.recover`."""
    epochs = task.settings.epochs - task.recovery.repair_epochs
    recipe = task.recipe(AFTERWARDS, epochs)
    plan, out = task.candidate.plan, task.folder / "run"
    assert plan is not None
    result = recover(
        task.original.model,
        plan,
        task.data,
        recipe,
        out=out,
        recovery=task.recovery,
        card=task.original.card,
        seed=task.seed,
        device=task.settings.device,
        resume=(out / "run.json").is_file(),
        tell=task.say,
        reporters=lambda phase, path: nullcontext(clock),
    )
    return {
        "model": result.model,
        "test_accuracy": result.report["condensed"]["test"],
        "before_recovery": result.report["phases"][0]["test"],
        "epochs": epochs,
        "repair_epochs": task.recovery.repair_epochs,
        "recipe": recipe.as_dict(),
    }


def _finetuned(task: Task, clock: Clock) -> dict[str, Any]:
    """Channels pruned, norms anew, then trained as in the end-to-end phase of `condense.recover`."""
    recipe, model = task.recipe(AFTERWARDS, task.settings.epochs), task.built()
    where = make_accelerator(task.settings.device, "no").device
    renew_norms(model.to(where), task.data.loader("train", BATCH, seed=task.seed, device=where))
    model.cpu()
    path = task.folder / BEFORE
    if not path.is_file():
        write_json(path, _accuracy(model, task.data, task.settings.device))
    objective = distillation(task.original, model, task.data, recipe, task.recovery)
    return {
        **_train(task, model, recipe, clock, objective=objective),
        "before_recovery": json.loads(path.read_text(encoding="utf-8")),
    }


def _from_scratch(task: Task, clock: Clock) -> dict[str, Any]:
    """Fresh weights, no teacher, for about as long as the reference took."""
    decided = json.loads((task.folder / EPOCHS).read_text(encoding="utf-8"))
    found = _train(task, task.built(), task.recipe(SCRATCH, decided["epochs"]), clock)
    return {**found, "allowed_seconds": decided["allowed_seconds"], "before_recovery": None}


def _decide_epochs(task: Task) -> None:
    """Write how many epochs fit into the time of the reference, by one that is trained for it and thrown away."""
    path = task.folder / EPOCHS
    if path.is_file():
        return
    reference = task.settings.run(REFERENCE, task.target, task.seed) / RESULT
    allowed = json.loads(reference.read_text(encoding="utf-8"))["seconds"]
    recipe = task.recipe(SCRATCH, 1)
    tried = train(task.built(), task.data, recipe, seed=task.seed, device=task.settings.device)
    epoch = tried.epochs[0]["seconds"]
    write_json(
        path,
        {"allowed_seconds": allowed, "epoch_seconds": epoch, "epochs": max(1, round(allowed / epoch))},
    )


def _train(task: Task, model: nn.Module, recipe: Recipe, clock: Clock, **options: Any) -> dict[str, Any]:
    out = task.folder / "run"
    result = train(
        model,
        task.data,
        recipe,
        out=out,
        seed=task.seed,
        device=task.settings.device,
        resume=(out / "run.json").is_file(),
        reporter=clock,
        **options,
    )
    assert result.test is not None
    return {
        "model": result.model,
        "test_accuracy": result.test.accuracy,
        "epochs": recipe.epochs,
        "repair_epochs": 0,
        "recipe": recipe.as_dict(),
    }
