"""`optimize_for_inference`: tries forms of a network choice by choice, keeps what is faster and equal."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure

from ..errors import UserError, UserTypeError
from ..measure import latency
from ..measure.probe import checked_model, run_once
from .choices import CHOICES, Choice, Setting
from .form import Form, OptimizedModel, prepared
from .report import OptimizationReport, Row

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
GAIN = 0.98  # a form must need less than this share of the time: a smaller gain is noise
SHARE = 0.2  # of the time left that the measurement of one choice may take
RUNS = 50
BURST = 0.01  # seconds of a turn


def optimize_for_inference(
    model: nn.Module,
    example: Tensor,
    *,
    seconds: float = 60,
    compile: bool = True,
    tolerance: float | None = None,
) -> OptimizedModel:
    """The fastest form of `model` for inference on this machine: the same output at batches like `example`.

    Tried one after the other, each against the best so far: BatchNorms folded into convolutions, Global
    layers as one operator, the other memory format, one thread (for a single image), the batch in pieces that
    stay in the cache, and compiling (torch.compile, the weights as constants). A form is kept if it is at
    least 2 % faster, the median of calls in turn, and its output on `example` is that of `model`: no value
    differs by more than `tolerance` of the largest one, and the same class is the highest wherever it leads
    by more than a tenth of that. `model` itself is left as it is, and so are threads and settings of torch.

    Parameters
    ----------
    model: any network for images; it is optimised in eval mode.
    example: a batch (N, C, H, W) as it will come: its size, dtype, device and memory format matter.
    seconds: no new form is begun after that; 60. Compiling, once begun, is finished: that can take minutes
        for a deep network.
    compile: whether to try it; True.
    tolerance: default 1e-4 in float32, 1e-10 in float64, 0.01 in float16, 0.05 in bfloat16.

    Returns a module that is called like `model`, without gradients; its `report` says what was tried and what
    came of it. Other batch and image sizes work too, though not compiled.
    Raises `UserError` or `UserTypeError` where an argument does not fit or the model does not run on it.

    >>> import globalcnn
    >>> model = globalcnn.create_model("resnet_global_tiny_cifar")
    >>> images = torch.randn(2, 3, 32, 32)
    >>> fast = optimize_for_inference(model, images, compile=False, seconds=1)
    >>> torch.allclose(fast(images), model.eval()(images), atol=1e-4)
    True
    """
    model = checked_model(model)
    _check(model, example, seconds, tolerance)
    allowed = TOLERANCES.get(example.dtype, 1e-4) if tolerance is None else tolerance
    search = _Search(_resting_copy(model), example, seconds=seconds, tolerance=allowed, compile=compile)
    for choice in CHOICES:
        search.try_choice(choice)
    return search.finish()


@dataclass
class _Tried:
    """A form, the module that runs it, and by how much its output deviates."""

    form: Form
    run: OptimizedModel
    deviation: float = 0.0


class _Search:
    """The greedy search: the best form so far, and the rows of the report."""

    def __init__(
        self, model: nn.Module, example: Tensor, *, seconds: float, tolerance: float, compile: bool
    ) -> None:
        self.model = model
        self.example = example.detach()
        self.tolerance = tolerance
        self.started = time.perf_counter()
        self.seconds = seconds
        self.compiling = 0.0  # how long it took the last time
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.modules: dict[tuple[object, ...], nn.Module] = {Form().weights: model}
        self.as_is = self.best = _Tried(Form(), OptimizedModel(model, Form(), example))
        map_bytes = self._first_run()
        self.setting = Setting(model, self.example, map_bytes, torch.get_num_threads(), compile)

    def _first_run(self) -> int:
        """Keep the original's output; how long a call takes; bytes of the largest map of one image."""
        sizes = [0]

        def watch(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                sizes.append(output.numel() * output.element_size())

        handles = [m.register_forward_hook(watch) for m in self.model.modules()]
        try:
            run_once(self.as_is.run, self.example)
        finally:
            for handle in handles:
                handle.remove()
        start = time.perf_counter()
        self.wanted = self.as_is.run(self.example)
        self.call_seconds = time.perf_counter() - start
        if not all(bool(leaf.isfinite().all()) for leaf in _tensors(self.wanted)):
            raise UserError(
                "optimize_for_inference: the model's output on the example is not finite, so that "
                "nothing can be compared with it; give another example, or check the weights"
            )
        return max(sizes) // len(self.example)

    def left(self) -> float:
        """Seconds of the time limit that are left."""
        return self.seconds - (time.perf_counter() - self.started)

    def try_choice(self, choice: Choice) -> None:
        """Try the options of one choice and keep the fastest if it is faster than the best so far."""
        before = self.best.form
        rows = {form: self._verified(form) for form in choice.options(before, self.setting)}
        tried = [row for row in rows.values() if isinstance(row, _Tried)]
        if tried:
            best, *times = self._race([self.best, *tried])
            limit = GAIN * best
            for candidate, spent in zip(tried, times, strict=True):
                if spent < limit and spent == min(times):
                    outcome, self.best = "chosen", candidate
                elif spent > best:
                    outcome = "slower"
                else:
                    outcome = "another is faster" if min(times) < limit else "no gain"
                name = candidate.form.beyond(before)
                rows[candidate.form] = Row(name, outcome, best, spent, candidate.deviation)
            self.call_seconds = min(best, *times)
        self.rows += [row for row in rows.values() if isinstance(row, Row)]
        self.modules = {key: m for key, m in self.modules.items() if m in (self.model, self.best.run.model)}

    def _verified(self, form: Form) -> _Tried | Row:
        """The form built and its output compared; a row that says why where it does not do."""
        name = form.beyond(self.best.form)
        needed = 3 * self.call_seconds  # one call to compare, two to measure
        if self.left() < max(needed, self.compiling if form.compiled else 0.0):
            return Row(name, "not tried: the time was up")
        deviation, began = None, time.perf_counter()
        try:
            run = OptimizedModel(self._module(form), form, self.example)
            with torch.inference_mode():
                got = run(self.example)
            deviation, trouble = compare(got, self.wanted, self.tolerance)
        except Exception as error:  # a form that fails on this machine is not a reason to stop
            trouble = "failed: " + (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        if form.compiled:
            self.compiling = time.perf_counter() - began
        if trouble is not None or deviation is None:
            return Row(name, trouble or "failed", deviation=deviation)
        return _Tried(form, run, deviation)

    def _module(self, form: Form) -> nn.Module:
        if form.weights not in self.modules:
            module, notes = prepared(self.model, form)
            self.notes += [note for note in notes if note not in self.notes]
            self.modules[form.weights] = module
        return self.modules[form.weights]

    def _race(self, tried: Sequence[_Tried]) -> list[float]:
        """Median seconds of each, called in turn."""
        share = max(SHARE * self.left(), 0.02 * self.seconds)
        candidates = {str(i): t.run.forward for i, t in enumerate(tried)}
        warmup = 2 if 4 * len(tried) * self.call_seconds < share else 0
        times = latency(candidates, self.example, runs=RUNS, warmup=warmup, seconds=share, burst=BURST)
        return [times[name].median for name in candidates]

    def finish(self) -> OptimizedModel:
        """The best form, measured once more against the model as it is."""
        candidates = [self.as_is] if self.best is self.as_is else [self.as_is, self.best]
        before, *rest = self._race(candidates)
        seconds = rest[0] if rest else before
        if self.best is self.as_is or seconds >= before:
            if self.best is not self.as_is:
                self.notes.append(f"{self.best.form}: in the end not faster than as is")
            self.best, seconds = self.as_is, before
        if self.best.form.compiled:
            self.notes.append("compiled for this batch and image size; others run uncompiled")
        x = self.example
        shape = "x".join(map(str, x.shape))
        dtype = str(x.dtype).removeprefix("torch.")
        threads = f", {self.setting.threads} threads" if x.device.type == "cpu" else ""
        self.best.run.report = OptimizationReport(
            chosen=str(self.best.form),
            before=before,
            seconds=seconds,
            deviation=self.best.deviation,
            tolerance=self.tolerance,
            setting=f"{shape}, {dtype}, {x.device}{threads}",
            rows=tuple(self.rows),
            notes=tuple(self.notes),
            spent=time.perf_counter() - self.started,
        )
        return self.best.run


def compare(got: Any, wanted: Any, tolerance: float) -> tuple[float | None, str | None]:
    """The deviation of an output from the wanted one as a share of its largest value, and what is wrong."""
    if tree_structure(got) != tree_structure(wanted):
        return None, "dropped: the output has another structure"
    worst = 0.0
    for a, b in zip(_tensors(got), _tensors(wanted), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return None, f"dropped: the output is {tuple(a.shape)} {a.dtype}"
        if b.numel() == 0:
            continue
        a, b = a.double(), b.double()
        largest = b.abs().max().item() or 1.0
        deviation = (a - b).abs().max().item() / largest
        if not deviation <= tolerance:
            return deviation, f"dropped: deviates by {deviation:.1e} of the largest value"
        if b.ndim == 2 and b.shape[1] > 1:
            lead = b.topk(2).values
            clear = lead[:, 0] - lead[:, 1] > 0.1 * tolerance * largest
            others = int((clear & (a.argmax(1) != b.argmax(1))).sum())
            if others:
                return deviation, f"dropped: another class wins for {others} of {len(b)} images"
        worst = max(worst, deviation)
    return worst, None


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _resting_copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).eval()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"optimize_for_inference: the model cannot be copied: {reason}") from error


def _check(model: nn.Module, example: Any, seconds: Any, tolerance: Any) -> None:
    where = "optimize_for_inference"
    if not isinstance(example, Tensor):
        raise UserTypeError(f"{where}: example must be a tensor (N, C, H, W), got {type(example).__name__}")
    if example.ndim != 4 or example.numel() == 0:
        raise UserError(
            f"{where}: example has shape {tuple(example.shape)}; it must be a batch (N, C, H, W) of one "
            "image or more, such as torch.randn(1, 3, 224, 224)"
        )
    for name, value in {"seconds": seconds, "tolerance": tolerance}.items():
        if value is None and name == "tolerance":
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and value > 0):
            raise UserError(f"{where}: {name}={value!r} must be a number > 0")
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is not None and weight.device != example.device:
        raise UserError(
            f"{where}: example is on {example.device} but the model on {weight.device}; "
            f"give example.to({str(weight.device)!r}), or move the model"
        )
