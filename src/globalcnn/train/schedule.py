"""The learning rate of every step, a function of (recipe, seed, step) alone."""

from __future__ import annotations

from typing import Any

import torch
from timm.scheduler import create_scheduler_v2

from ..data.order import derived_generator
from .recipe import Recipe

LARGEST_NOISE = 0.67


class Schedule:
    """Sets the learning rate of an optimiser before each step.

    steps: optimiser steps of one epoch. `Recipe.lr_noise` makes the rate noisy: one draw per epoch, from
    (seed, epoch), as in timm when it steps by epochs.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe, *, steps: int, seed: int) -> None:
        self._optimizer, self._recipe, self._steps, self._seed = optimizer, recipe, steps, seed
        self._timm = _timm_schedule(optimizer, recipe, steps)

    def step_update(self, update: int) -> None:
        """Set the learning rate for the step after `update` steps of the whole training."""
        self._timm.step_update(update)
        epoch, r = update // self._steps, self._recipe
        if r.lr_noise and r.lr_noise[0] * r.epochs <= epoch < r.lr_noise[1] * r.epochs:
            factor = 1 + noise(self._seed, epoch)
            for group in self._optimizer.param_groups:
                group["lr"] *= factor


def noise(seed: int, epoch: int) -> float:
    """The noise of an epoch's learning rate: normal with deviation 1, drawn anew until below 0.67."""
    generator = derived_generator(seed, epoch, "lr noise")
    while True:
        drawn = torch.randn((), generator=generator).item()
        if abs(drawn) < LARGEST_NOISE:
            return drawn


def _timm_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Any:
    r = recipe
    kind = {"cosine": "cosine", "step": "multistep", "exponential": "step", "constant": "step"}[r.schedule]
    constant = r.schedule == "constant"
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=kind,
        num_epochs=r.epochs,
        decay_epochs=r.epochs + 1 if constant else r.decay_epochs,
        # timm lowers the rate one update before a milestone; half an update later it is at the milestone
        decay_milestones=[m + 0.5 / steps for m in r.milestones],  # type: ignore[misc]
        decay_rate=1.0 if constant else r.decay_rate,
        warmup_epochs=r.warmup_epochs,  # type: ignore[arg-type]
        warmup_lr=r.lr / 20,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return schedule
