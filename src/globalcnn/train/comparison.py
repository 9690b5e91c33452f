"""Several networks, one recipe: accuracy over seeds, size, and latency measured side by side."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import DataSource
from ..errors import UserError
from ..measure import Counts, Latency, count, latency
from ..models import Source, is_reconstruction, parse_source, shown_name
from .evaluate import Evaluation
from .folder import RUN
from .network import build_for
from .progress import Reporter
from .recipe import Recipe
from .run import RunResult, train
from .setting_up import checked_seed

BATCHES = (1, 64)


@dataclass(frozen=True)
class Compared:
    """One network of a comparison.

    accuracies: test accuracy of each seed (shares of 1), by the rule in `judged_by`; mean, spread: their
    mean and sample standard deviation (None for one seed); latencies: by batch size; seconds: training, each
    seed;
    models: the trained networks, one per seed.
    """

    model: str
    params: int
    macs: int
    seeds: tuple[int, ...]
    evaluations: tuple[Evaluation, ...]
    latencies: dict[int, Latency]
    seconds: tuple[float, ...]
    epochs: tuple[tuple[dict[str, Any], ...], ...]
    models: tuple[nn.Module, ...]

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Test accuracy of each seed."""
        return tuple(e.accuracy for e in self.evaluations)

    @property
    def mean(self) -> float:
        """Mean accuracy over the seeds."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds."""
        return statistics.stdev(self.accuracies) if len(self.seeds) > 1 else None

    def confusions(self, a: int, b: int) -> tuple[int, ...]:
        """Confusions between two classes, both directions, for each seed."""
        return tuple(e.confusions(a, b) for e in self.evaluations)

    def figures(self) -> dict[str, Any]:
        """All figures as plain values, for JSON."""
        return {
            "model": self.model,
            "reconstruction": is_reconstruction(self.model),
            "params": self.params,
            "macs": self.macs,
            "seeds": list(self.seeds),
            "accuracy": list(self.accuracies),
            "accuracy_mean": self.mean,
            "accuracy_spread": self.spread,
            "confusion": [e.confusion for e in self.evaluations],
            "latency": {str(b): asdict(t) for b, t in self.latencies.items()},
            "training_seconds": list(self.seconds),
            "epochs": [list(figures) for figures in self.epochs],
        }


def judged_by(recipe: Recipe) -> str:
    """Which weights a comparison evaluates: the last epoch's, unless held-out images choose the epoch."""
    if recipe.validation:
        return "the epoch that is best on the held-out images"
    return "the last epoch"


def compare(
    models: Sequence[str | Source],
    data: DataSource,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    out: Path | None = None,
    device: str = "auto",
    resume: bool = False,
    batches: Sequence[int] = BATCHES,
    notes: Mapping[str, Any] | None = None,
    reporter: Callable[[str], AbstractContextManager[Reporter]],
) -> list[Compared]:
    """Train every network with every seed, by the same recipe, then measure all side by side.

    models: names, or how networks are built (see `models.parse_source`); each is built anew for each seed.
    out: holds one run folder per training, MODEL/seedSEED; None keeps none.
    resume: continue trainings that were stopped; finished ones are not repeated.
    batches: batch sizes of the latency, measured alternating in this process after all trainings.
    notes: plain values that every run.json keeps.
    reporter: makes the reporter of the training with that label.
    """
    sources = [parse_source(m) if isinstance(m, str) else m for m in models]
    labels = [source.label for source in sources]
    if not labels or len(set(labels)) != len(labels):
        raise UserError(f"models={labels!r}: give at least one network, each once")
    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(f"seeds={list(seeds)!r}: give at least one seed, each once")
    for seed in seeds:
        checked_seed(seed)
    runs: dict[str, list[RunResult]] = {label: [] for label in labels}
    for source, label in zip(sources, labels, strict=True):
        for seed in seeds:
            folder = None if out is None else run_folder(out, label, seed)
            going_on = resume and folder is not None and (folder / RUN).is_file()
            with reporter(f"{shown_name(label)} seed {seed}") as speaker:
                result = train(
                    build_for(source, data, recipe, seed=seed),
                    data,
                    recipe,
                    out=folder,
                    seed=seed,
                    device=device,
                    resume=going_on,
                    notes=notes,
                    reporter=speaker,
                )
            if result.test is None:
                raise UserError(f"the data {data.name!r} has no test images to compare networks by")
            runs[label].append(result)
    size = (data.in_chans, *data.image_size)
    counts = {label: count(runs[label][0].model, size) for label in labels}
    times = {b: _latencies({label: runs[label][0].model for label in labels}, size, b) for b in batches}
    return [
        _compared(label, counts[label], seeds, runs[label], {b: times[b][label] for b in batches})
        for label in labels
    ]


def run_folder(out: Path, label: str, seed: int) -> Path:
    """The run folder of the training of a network with a seed, in the folder of a comparison.

    >>> run_folder(Path("out"), "my_net.py:build", 1).as_posix()
    'out/my_net.py-build/seed1'
    """
    return out / re.sub(r"[^A-Za-z0-9._-]+", "-", label) / f"seed{seed}"


def _latencies(models: dict[str, nn.Module], size: tuple[int, int, int], batch: int) -> dict[str, Latency]:
    example = torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))
    return latency(models, example, runs=20, warmup=3, seconds=2.0, burst=0.02)


def _compared(
    model: str, counts: Counts, seeds: Sequence[int], runs: Sequence[RunResult], latencies: dict[int, Latency]
) -> Compared:
    return Compared(
        model=model,
        params=counts.params,
        macs=counts.macs,
        seeds=tuple(seeds),
        evaluations=tuple(e for r in runs if (e := r.best_test or r.test) is not None),
        latencies=latencies,
        seconds=tuple(sum(e["seconds"] for e in r.epochs) for r in runs),
        epochs=tuple(r.epochs for r in runs),
        models=tuple(r.model for r in runs),
    )
