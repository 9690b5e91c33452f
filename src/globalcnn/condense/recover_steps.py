"""The steps of a recovery, each of which does what is not done yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from ..data import DataSource
from ..errors import UserError
from ..measure import count, latency
from ..measure.probe import probe_input
from ..models import Card, ModuleSource, Source, source_of
from ..train import (
    Distillation,
    FeatureError,
    Objective,
    Recipe,
    Reporter,
    RunResult,
    StagewiseMatching,
    Teacher,
    evaluate,
)
from ..train.initial import classifier_names
from ..train.objectives_distill import loss_for
from ..train.objectives_features import before_pooling
from ..train.run import train
from ..train.setting_up import make_accelerator
from ..train.teacher import why_live
from .applying import apply
from .budget import Budget, saved_by
from .data import Plan, Stage
from .recover_folder import END_TO_END, MODEL, PLAN, REPAIR, REPAIRED, STARTED, CondenseFolder
from .recover_report import report_of
from .recover_settings import Recovery
from .recover_stages import chosen_by_error, pairs_of, remaining_errors, renew_norms

EVALUATED = 256  # images per step
SECONDS_OF_TIMING = 3.0

Reporters = Callable[[str, Path], AbstractContextManager[Reporter]]


@final
@dataclass(frozen=True)
class Recovered:
    """model: the condensed network with its last weights, on the CPU in eval mode; plan: what was condensed;
    report: accuracies, costs and times, as report.json holds them; folder: where all is kept.
    """

    model: nn.Module
    plan: Plan
    report: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True)
class Steps:
    """One condensing; its methods are the steps."""

    original: nn.Module
    data: DataSource
    recipe: Recipe
    recovery: Recovery
    card: Card
    folder: CondenseFolder
    seed: int
    device: str
    tell: Callable[[str], None]
    reporters: Reporters

    def all_steps(
        self, plan: Plan | Callable[[], Plan], budget: Budget | None, example: torch.Tensor, about: Any
    ) -> Recovered:
        """Do what is not done yet, and report."""
        self.folder.step("original", lambda: self._evaluated(self.original))
        made = self.folder.plan(lambda: _that_condenses(plan if isinstance(plan, Plan) else plan()))
        speedup = None if budget is None else budget.speedup
        by_error = speedup is not None and self.recovery.repair_epochs > 0
        wide = _with_stages(made, _candidates(made) if by_error else [s.name for s in made.chosen])
        self.folder.step("started", lambda: self._start(wide))
        repaired, goal = self._repair(wide)
        self.folder.step(
            "repaired",
            lambda: self._choose(made, wide, repaired, goal, budget if by_error else None, example),
        )
        chosen = _with_stages(made, self.folder.results()["repaired"]["condensed"])
        result = self._end_to_end(chosen)
        self.folder.step("ended", lambda: self._evaluated(result.model))
        self.folder.save(MODEL, result.model.state_dict(), result.card)
        self.folder.step("costs", lambda: self._costs(result.model, example))
        chosen.save(self.folder.path / PLAN)
        report = report_of(
            self.folder, chosen, about, repair_epochs=self.recovery.repair_epochs, by_error=by_error
        )
        self.folder.remove(STARTED, REPAIRED)
        return Recovered(result.model.cpu().eval(), chosen, report, self.folder.path)

    def _loader(self, split: str, *, shuffle: bool = False) -> Any:
        return self.data.loader(
            split,
            EVALUATED,
            shuffle=shuffle,
            seed=self.seed,
            device=self._device(),
            channels_last=self.recipe.channels_last,
        )

    def _device(self) -> torch.device:
        found: torch.device = make_accelerator(self.device, "no").device
        return found

    def _evaluated(self, model: nn.Module) -> dict[str, Any]:
        """Accuracies on the test and held-out images."""
        model.to(self._device())
        found: dict[str, Any] = {}
        for split in ("test", "val"):
            found[split] = None
            if self.data.size(split):
                found[split] = evaluate(model, self._loader(split), self.card.num_classes).accuracy
        return found

    def _applied(self, plan: Plan) -> nn.Module:
        """The condensed network, its new blocks from the seed."""
        self.original.cpu()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return apply(self.original, plan)

    def _source(self, student: nn.Module) -> Source:
        """How the student is built; one of a module that was passed as an object cannot be built again."""
        base = source_of(self.original)
        return base if isinstance(base, ModuleSource) else source_of(student)

    def _kept(self, name: str, student: nn.Module) -> None:
        self.folder.save(name, student.state_dict(), replace(self.card, source=self._source(student)))

    def _start(self, wide: Plan) -> dict[str, Any]:
        student = self._applied(wide)
        self._renew(student)
        found = self._evaluated(student)
        self._kept(STARTED, student)
        self.tell(f"condensed, norms anew: {_said(found)}")
        return found

    def _renew(self, student: nn.Module) -> None:
        student.to(self._device())
        renew_norms(student, self._loader("train", shuffle=True))

    def _repair(self, wide: Plan) -> tuple[nn.Module, StagewiseMatching | None]:
        """The network whose new stages have learned the original's features; what they learned by."""
        student, pairs = self._applied(wide), pairs_of(wide.chosen)
        done = "repaired" in self.folder.results()
        if done or not (self.recovery.repair_epochs and pairs):
            if not done:
                student.load_state_dict(self.folder.weights(STARTED))
            return student, None
        student.load_state_dict(self.folder.weights(STARTED))
        goal = StagewiseMatching(Teacher(self.original), list(pairs.values()))
        flags = {p: p.requires_grad for p in student.parameters()}
        new = {p for pair in pairs.values() for p in student.get_submodule(pair.new).parameters()}
        for p, flag in flags.items():
            p.requires_grad_(flag and p in new)
        self._trained(student, self._repair_recipe(), goal, REPAIR)
        for p, flag in flags.items():
            p.requires_grad_(flag)
        return student, goal

    def _repair_recipe(self) -> Recipe:
        return self.recipe.replace(
            name="repair",
            epochs=self.recovery.repair_epochs,
            optimizer="adamw",
            optimizer_eps=None,
            lr=self.recovery.repair_lr,
            weight_decay=0.01,
            schedule="cosine",
            warmup_epochs=0.25,
            lr_noise=(),
            mixup=0.0,
            cutmix=0.0,
            ema_decay=0.0,
            drop_path_rate=0.0,
            drop_rate=0.0,
        )

    def _trained(self, student: nn.Module, recipe: Recipe, goal: Objective, name: str) -> RunResult:
        path, begun = self.folder.run(name)
        with self.reporters(name, path) as reporter:
            return train(
                student,
                self.data,
                recipe,
                objective=goal,
                out=path,
                seed=self.seed,
                source=self._source(student),
                device=self.device,
                resume=begun,
                reporter=reporter,
            )

    def _choose(
        self,
        plan: Plan,
        wide: Plan,
        repaired: nn.Module,
        goal: StagewiseMatching | None,
        budget: Budget | None,
        example: torch.Tensor,
    ) -> dict[str, Any]:
        """The stages to condense, and the network with these alone, their repaired weights and new norms."""
        pairs = pairs_of(wide.chosen)
        errors: dict[str, float] = {}
        if goal is not None:
            device = self._device()
            goal.setup(repaired.to(device), device=device)
            split = "val" if self.data.size("val") else "train"
            by_module = remaining_errors(goal, repaired, self._loader(split))
            errors = {name: by_module[pair.new] for name, pair in pairs.items()}
        final = wide
        if budget is not None:
            final = self._fast_enough(chosen_by_error(plan, errors, budget), errors, budget, example)
        student = self._applied(final)
        weights, learned = student.state_dict(), repaired.cpu().state_dict()
        prefixes = tuple(f"{pairs[s.name].new}." for s in final.chosen if s.name in pairs)
        student.load_state_dict({k: learned[k] if k.startswith(prefixes) else v for k, v in weights.items()})
        self._renew(student)
        found = self._evaluated(student)
        self._kept(REPAIRED, student)
        self.tell(f"repaired: {_said(found)}")
        return {**found, "errors": errors, "condensed": [s.name for s in final.chosen]}

    def _fast_enough(
        self, plan: Plan, errors: Mapping[str, float], budget: Budget, example: torch.Tensor
    ) -> Plan:
        """The plan, with further stages where the network it makes is slower than the sum of its stages."""
        while True:
            times = self._times(self._applied(plan), example)
            reached = times["original"] / times["condensed"]
            left = [
                s
                for s in plan.stages
                if not s.condense and (saved_by(s).seconds or 0.0) > 0 and s.name in errors
            ]
            if reached >= (budget.speedup or 1.0) or not left:
                self.tell(
                    f"chosen by error and time: {', '.join(s.name for s in plan.chosen)}; {reached:.2f}x"
                )
                return plan
            more = min(left, key=lambda s: errors[s.name] / (saved_by(s).seconds or 1.0))
            plan = _with_stages(plan, [s.name for s in plan.stages if s.condense or s is more])

    def _times(self, student: nn.Module, example: torch.Tensor) -> dict[str, float]:
        """Median seconds of the example's batch, of the original and of a student."""
        device = self._device()
        both = {"original": self.original.to(device), "condensed": student.to(device)}
        found = latency(both, example.to(device), seconds=SECONDS_OF_TIMING, least=3)
        return {name: times.median for name, times in found.items()}

    def _end_to_end(self, plan: Plan) -> RunResult:
        student = self._applied(plan)
        if "ended" not in self.folder.results():
            student.load_state_dict(self.folder.weights(REPAIRED))
        few = self.data.size("train") < self.recovery.few_images * len(self.data.classes)
        if few:
            self.tell(
                f"note: fewer than {self.recovery.few_images} training images per class: the classifier "
                "stays, and features alone are learned"
            )
            for name in classifier_names(student):
                student.get_submodule(name).requires_grad_(False)
        return self._trained(student, self.recipe, self._goal(student, few), END_TO_END)

    def _goal(self, student: nn.Module, few: bool) -> Distillation:
        r, recipe = self.recovery, self.recipe
        image = probe_input(student, (self.data.in_chans, *self.data.image_size))
        features = None
        if few or r.feature_weight:
            epochs = None if few else max(1.0, round(r.feature_share * recipe.epochs))
            try:
                name = before_pooling(self.original.cpu(), student, image)
                features = FeatureError(name, weight=r.feature_weight or 1.0, epochs=epochs)
            except UserError as error:
                if few:
                    raise
                self.tell(f"note: without a feature error: {error}")
        reason = why_live(self.data, recipe)
        if reason and r.views and not few:
            self.tell(f"note: the original runs in every step: {reason}, so its logits cannot be kept")
        return Distillation(
            Teacher(self.original),
            loss=loss_for(len(self.data.classes)) if r.loss is None else r.loss,
            temperature=r.temperature,
            weight=r.weight,
            views=0 if reason else r.views,
            label_smoothing=recipe.label_smoothing,
            features=features,
            only_features=few,
        )

    def _costs(self, student: nn.Module, example: torch.Tensor) -> dict[str, Any]:
        """Parameters, multiply-adds and the median seconds of the example's batch, of both networks."""
        size = (self.data.in_chans, *self.data.image_size)
        both = {"original": self.original.cpu(), "condensed": student.cpu()}
        counts = {name: count(model, size) for name, model in both.items()}
        times = self._times(student, example)
        return {
            "batch": len(example),
            **{
                name: {"params": c.params, "macs": c.macs, "seconds": times[name]}
                for name, c in counts.items()
            },
        }


def _candidates(plan: Plan) -> list[str]:
    """The stages that could be condensed to save time, and those that the plan condenses."""

    def saves(stage: Stage) -> bool:
        return (saved_by(stage).seconds or 0.0) > 0

    return [s.name for s in plan.stages if s.condense or saves(s)]


def _that_condenses(plan: Plan) -> Plan:
    if not plan.chosen:
        raise UserError("the plan condenses no stage: set condense to true for one of them")
    return plan


def _with_stages(plan: Plan, names: Sequence[str]) -> Plan:
    """The plan with these stages condensed, and no others."""
    same = [s.name for s in plan.chosen] == list(names)
    stages = tuple(replace(s, condense=s.name in names) for s in plan.stages)
    return replace(plan, stages=stages, after=plan.after if same else None)


def _said(found: Mapping[str, Any]) -> str:
    words = [
        f"{100 * found[k]:.2f} % {name}"
        for k, name in (("test", "test"), ("val", "held out"))
        if found[k] is not None
    ]
    return ", ".join(words) or "no images to evaluate on"
