"""`optimize_for_inference`: greedy search over variants of a network that are faster and give the same
output."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..engines import checked_runtimes
from ..errors import UserError, UserTypeError
from ..graph import trace_shapes
from ..measure import Latency, latency
from ..measure.agreement import TOLERANCES, Agreement, compare_outputs, tensors_in
from ..measure.probe import checked_model, run_once
from .choices import CHOICES, Choice, Setting, l2_cache_bytes
from .engine import onnx_bytes
from .model import OptimizedModel
from .report import OptimizationReport, Row
from .variant import Variant, prepare

GAIN = 0.98  # a variant must take less than this share of the time: a smaller gain is noise
SHARE = 0.2  # of the time left that the measurement of one choice may take
RUNS = 50
BURST = 0.01  # seconds of a candidate in each round
SETTLE = 0.2  # seconds of calls before them, beside engines: threads of the one before spin for a while

Timer = Callable[..., dict[str, Latency]]


def optimize_for_inference(
    model: nn.Module,
    example: Tensor,
    *,
    seconds: float = 60,
    compile: bool = True,
    engines: Iterable[str] | None = None,
    tolerance: float | None = None,
) -> OptimizedModel:
    """The fastest variant of `model` for inference on this machine: the same output for batches as `example`.

    Tried one after the other, each against the best so far: BatchNorms folded into convolutions, Global
    layers as one operator, the other memory format, one thread (for a single image), the batch in pieces that
    stay in the cache, compiling (torch.compile, the weights as constants), and the network in ONNX Runtime
    and OpenVINO where they are installed (float32 on a CPU alone); in ONNX Runtime also with this library's
    kernels for the Global layers. A variant is kept if it is at least 2 %
    faster, in the median of alternating calls, and its output on `example` is that of `model`: no
    value differs by more than `tolerance` of the largest one, and the same class is the highest wherever it
    leads by more than a tenth of that. `model` itself is not changed; threads and settings of torch are
    restored.

    Parameters
    ----------
    model: any network for images; it is optimised in eval mode.
    example: a batch (N, C, H, W) as it will come: its size, dtype, device and memory format matter.
    seconds: no new variant is begun after that; 60. Compiling, once begun, is finished: that can take minutes
        for a deep network.
    compile: whether to try it; True.
    engines: which runtimes to try: ("onnxruntime", "openvino"), one of them, or () for none; by default
        those that are installed. They get as many threads as PyTorch has, or one.
    tolerance: default 1e-4 in float32, 1e-10 in float64, 0.01 in float16, 0.05 in bfloat16.

    Returns a module that is called like `model`, without gradients; its `report` lists what was tried, with
    the results. Other batch and image sizes work too, but uncompiled and in PyTorch. It can be saved, and
    exported or traced: then as plain PyTorch, without the engine.
    Raises `UserError` or `UserTypeError` where an argument does not fit or the model does not run on it, and
    `MissingExtra` for an engine that is named and not installed.

    >>> import globalcnn
    >>> model = globalcnn.create_model("resnet_global_tiny_cifar")
    >>> images = torch.randn(2, 3, 32, 32)
    >>> fast = optimize_for_inference(model, images, compile=False, engines=(), seconds=1)
    >>> torch.allclose(fast(images), model.eval()(images), atol=1e-4)
    True
    """
    model = checked_model(model)
    _check(model, example, seconds, tolerance)
    allowed = TOLERANCES.get(example.dtype, 1e-4) if tolerance is None else tolerance
    runtimes = checked_runtimes(engines, feature="optimize_for_inference with this engine")
    search = Search(
        _frozen_copy(model),
        example,
        seconds=seconds,
        tolerance=allowed,
        compile=compile,
        engines=runtimes,
    )
    return search.run()


@dataclass
class _Tried:
    """A variant, the module that runs it, and how its output agrees."""

    variant: Variant
    run: OptimizedModel
    deviation: float = 0.0


class Search:
    """The greedy search: the best variant so far, and the rows of the report.

    model: in eval mode, the search's own; choices, prepare, timer: what is tried, how a variant is made, and
    how long candidates take (as `measure.latency`).
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        *,
        seconds: float,
        tolerance: float,
        compile: bool,
        engines: tuple[str, ...] = (),
        choices: Sequence[Choice] = CHOICES,
        prepare: Callable[..., tuple[nn.Module, list[str]]] = prepare,
        timer: Timer = latency,
    ) -> None:
        self.model = model
        self.example = example.detach()
        self.tolerance = tolerance
        self.choices, self.prepare, self.timer = choices, prepare, timer
        self.started = time.perf_counter()
        self.seconds = seconds
        self.compiling = 0.0  # seconds of the previous time that code was compiled or an engine made
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.modules: dict[tuple[object, ...], nn.Module] = {Variant().weights: model}
        self.as_is = self.best = _Tried(Variant(), OptimizedModel(model, Variant(), example))
        map_bytes = self._first_run()
        self.setting = Setting(
            model, self.example, map_bytes, torch.get_num_threads(), compile, l2_cache_bytes(), engines
        )
        self.files: dict[tuple[object, ...], Callable[[], bytes]] = {}  # ONNX models, each made once

    def run(self) -> OptimizedModel:
        """Try one choice after the other; the best variant, with its report."""
        for choice in self.choices:
            self.try_choice(choice)
        return self.finish()

    def _first_run(self) -> int:
        """Measure the original: its output, the time of a call, bytes of the largest map of one image."""
        run_once(self.as_is.run, self.example)
        calls = trace_shapes(self.model, self.example).calls
        start = time.perf_counter()
        self.wanted = self.as_is.run(self.example)
        self.call_seconds = time.perf_counter() - start
        if not all(bool(leaf.isfinite().all()) for leaf in tensors_in(self.wanted)):
            raise UserError(
                "optimize_for_inference: the model's output on the example is not finite, so that "
                "nothing can be compared with it; give another example, or check the weights"
            )
        return max((t.bytes for call in calls for t in call.outputs), default=0) // len(self.example)

    def left(self) -> float:
        """Seconds of the time limit that are left."""
        return self.seconds - (time.perf_counter() - self.started)

    def try_choice(self, choice: Choice) -> None:
        """Try the options of one choice and keep the fastest if it is faster than the best so far."""
        before = self.best.variant
        rows = {variant: self._verified(variant) for variant in choice.options(before, self.setting)}
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
                name = candidate.variant.beyond(before)
                rows[candidate.variant] = Row(name, outcome, best, spent, candidate.deviation)
            self.call_seconds = min(best, *times)
        self.rows += [row for row in rows.values() if isinstance(row, Row)]
        self.modules = {key: m for key, m in self.modules.items() if m in (self.model, self.best.run.model)}

    def _verified(self, variant: Variant) -> _Tried | Row:
        """The variant, built and its output compared; or a row of the report that says why it is rejected."""
        name = variant.beyond(self.best.variant)
        needed = 3 * self.call_seconds  # one call to compare, two to measure
        made = variant.compiled or variant.engine is not None
        if self.left() < max(needed, self.compiling if made else 0.0):
            return Row(name, "not tried: the time was up")
        began = time.perf_counter()
        try:
            onnx = None if variant.engine is None else self._file(variant)
            run = OptimizedModel(self._module(variant), variant, self.example, onnx=onnx)
            found = self._compared(run)
            trouble = None if found else f"dropped: {found.disagreement}"
        except Exception as error:  # a variant that fails on this machine is not a reason to stop
            found = Agreement(None)
            trouble = "failed: " + (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        if made:
            self.compiling = time.perf_counter() - began
        if trouble is not None or found.deviation is None:
            return Row(name, trouble or "failed", deviation=found.deviation)
        return _Tried(variant, run, found.deviation)

    def _compared(self, run: OptimizedModel) -> Agreement:
        """Its output on the example beside the original's; of an engine, on noise of that shape as well."""
        with torch.inference_mode():
            found = compare_outputs(run(self.example), self.wanted, tolerance=self.tolerance)
            if not found or run.variant.engine is None:
                return found
            noise = torch.randn(self.example.shape, generator=torch.Generator().manual_seed(0))
            other = compare_outputs(run(noise), self.as_is.run(noise), tolerance=self.tolerance)
        return max(found, other, key=lambda a: (not a, a.deviation or 0.0))

    def _module(self, variant: Variant) -> nn.Module:
        if variant.weights not in self.modules:
            module, notes = self.prepare(self.model, variant, self.example)
            self.notes += [note for note in notes if note not in self.notes]
            self.modules[variant.weights] = module
        return self.modules[variant.weights]

    def _file(self, variant: Variant) -> Callable[[], bytes]:
        """The ONNX model for an engine: one for all that compute the Global layers too, another with those
        layers as operators of this library.
        """
        own = variant.fused
        key = variant.weights if own else ()
        if key not in self.files:
            model = self._module(variant) if own else self.model
            self.files[key] = cache(partial(onnx_bytes, model, self.example, own_operators=own))
        return self.files[key]

    def _race(self, tried: Sequence[_Tried]) -> list[float]:
        """Median seconds of each, in alternating rounds."""
        share = max(SHARE * self.left(), 0.02 * self.seconds)
        candidates = {str(i): t.run.forward for i, t in enumerate(tried)}
        warmup = 2 if 4 * len(tried) * self.call_seconds < share else 0
        settle = SETTLE if any(t.variant.engine for t in tried) else 0.0
        times = self.timer(
            candidates,
            self.example,
            runs=RUNS,
            warmup=warmup,
            seconds=share,
            burst=BURST,
            settle=settle,
        )
        return [times[name].median for name in candidates]

    def finish(self) -> OptimizedModel:
        """The best variant, measured once more against the original model."""
        candidates = [self.as_is] if self.best is self.as_is else [self.as_is, self.best]
        before, *rest = self._race(candidates)
        seconds = rest[0] if rest else before
        if self.best is self.as_is or seconds >= before:
            if self.best is not self.as_is:
                self.notes.append(f"{self.best.variant}: in the end not faster than as is")
            self.best, seconds = self.as_is, before
        best = self.best.run
        if best.variant.compiled:
            self.notes.append("compiled for this batch and image size; others run uncompiled")
        if best.variant.engine is not None:
            self.notes.append("the engine is for this batch and image size; others run in PyTorch, as is")
        if best.engine_note is not None:
            self.notes.append(best.engine_note)
        best.report = OptimizationReport(
            chosen=str(best.variant),
            before=before,
            seconds=seconds,
            deviation=self.best.deviation,
            tolerance=self.tolerance,
            setting=_in_words(self.setting),
            rows=tuple(self.rows),
            notes=tuple(self.notes),
            spent=time.perf_counter() - self.started,
        )
        return best


def _in_words(setting: Setting) -> str:
    x = setting.example
    threads = f", {setting.threads} threads" if x.device.type == "cpu" else ""
    return f"{'x'.join(map(str, x.shape))}, {str(x.dtype).removeprefix('torch.')}, {x.device}{threads}"


def _frozen_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters require no gradients."""
    try:
        return copy.deepcopy(model).eval().requires_grad_(False)
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
