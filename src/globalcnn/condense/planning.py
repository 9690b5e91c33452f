"""`plan`: finds what a network repeats, and proposes what takes its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import UserError, UserTypeError
from ..graph import ShapeTrace, eval_mode
from ..measure.probe import checked_model
from ..models import source_of
from ..models.placeable import placeable
from .applying import tensors_of, why_not_removed, with_places
from .arguments import check_options, checked_arguments, traced
from .budget import Budget, choose, saved_by
from .costs import cost_of
from .data import DEFAULT_BLOCK, Cost, Plan, Stage, Untouched
from .links import Runner
from .repetitions import Repetition, Search
from .timing import stage_times

SECONDS: Final = 5.0


def plan(
    model: nn.Module,
    example_input: Tensor | Sequence[Any],
    *,
    max_params: int | None = None,
    max_macs: int | None = None,
    speedup: float | None = None,
    block: str = DEFAULT_BLOCK,
    settings: Mapping[str, Any] | None = None,
    keep: int = 1,
    seconds: float | None = SECONDS,
) -> Plan:
    """What `model` repeats, and a proposal of what takes its place.

    The network runs on the example a few times, in eval mode; it is not changed. A repetition is a run of
    blocks that keep the shape of their map and are alike. The block before it that changes the shape stays,
    or else its first block; `block` takes the place of the rest. A densely connected stage goes as a whole,
    for a 1x1 convolution and the block. Nothing is known of class names, and nothing is traced
    symbolically: what counts are the shapes and the tensors that modules are called with.

    Parameters
    ----------
    model: any CNN in Python, with its weights or on the meta device (then no times are measured).
    example_input: a batch (N, C, H, W) as it will come, or the sequence of the forward's arguments.
    max_params, max_macs, speedup: a budget: at most so many parameters, multiply-adds per image, and at least
        so many times as fast on this machine. As few stages are condensed as it needs. None: all stages.
    block: what comes: "depthwise" (the default: a residual depthwise 7x7, the best at equal latency in our
        comparison), "global" (Global layer), "sweeps", "norm-act", "none", see `BLOCKS`.
    settings: of the block, such as {"kernel_size": 5}; those that are not given suit the network: where maps
        have negative values, the block is added to them (residual).
    keep: blocks of each run that stay, 1 or more.
    seconds: about how long times are measured, 5; None for not at all.

    Raises `UserError` where the model does not run on the example, where it repeats nothing, and where no
    plan meets the budget (with the nearest); `UserTypeError` for an argument of the wrong type.

    >>> import globalcnn
    >>> net = globalcnn.create_model("resnet32_cifar", num_classes=10)
    >>> found = plan(net, torch.randn(1, 3, 32, 32), seconds=None)
    >>> [(s.name, s.keep, len(s.remove), s.block) for s in found.stages]
    [('layer1', ('layer1.0',), 4, 'depthwise'), ('layer2', ('layer2.0',), 4, 'depthwise'),
     ('layer3', ('layer3.0',), 4, 'depthwise')]
    """
    if isinstance(model, Tensor) and isinstance(example_input, nn.Module):
        raise UserTypeError("plan: give the model first, then the example input")
    model = checked_model(model)
    budget = Budget(max_params, max_macs, speedup)
    arguments = checked_arguments(model, example_input)
    check_options(block, settings, keep, seconds)
    trace = traced(model, arguments)
    runner = Runner(model, arguments, trace)
    if not runner.has_values:
        seconds = None
    if speedup is not None and seconds is None:
        raise UserError(
            f"plan: speedup={speedup:g} needs measured times: give seconds=, and a model that is not on the "
            "meta device"
        )
    free = block in ("none", "zeros")
    found, passed = Search(trace, runner, keep=keep, any_shape=free).run()
    if free:
        passed += [Untouched(r.first.name, "only a block can take its place") for r in found if r.in_channels]
        found = [r for r in found if r.in_channels is None]
    signs = _signed(runner, found)
    stages = [
        _stage(r, name, block, {**_alternating(block, i), **(settings or {})}, signed)
        for i, (r, name, signed) in enumerate(zip(found, _names(found), signs, strict=True))
    ]
    stages, refused = _possible(model, stages)
    stages, failed, condensed = _that_run(model, stages, arguments, trace)
    passed = [*passed, *refused, *failed]
    if not stages:
        raise UserError(_nothing_repeats(model, passed))
    whole, stages = _with_costs(model, condensed, trace, stages, arguments, seconds)
    try:
        chosen = choose(stages, whole, budget)
    except UserError as error:
        raise UserError(f"{error}{_came_near(passed, 'Not touched')}") from None
    result = Plan(
        network=_label(model),
        example=tuple(trace.calls[0].inputs[0].shape),
        stages=chosen,
        untouched=tuple(passed),
        before=whole,
        after=None,
        tensors=tensors_of(model),
    )
    return _with_total(model, result, budget, arguments, seconds)


def _label(model: nn.Module) -> str:
    return source_of(model).label


def _signed(runner: Runner, found: Sequence[Repetition]) -> list[bool]:
    """Of each repetition, whether the map that comes in has negative values."""
    if not runner.has_values or not found:
        return [False] * len(found)
    maps = runner.inputs_of([r.first.head for r in found])
    return [x is not None and x.is_floating_point() and bool((x < 0).any()) for x in maps]


def _names(found: Sequence[Repetition]) -> list[str]:
    """Each named by the module that holds it, where it is the only one in there; else by its blocks."""
    parents = []
    for r in found:
        heads = {block.names[0].rpartition(".")[0] for block in r.removable}
        parents.append(heads.pop() if len(heads) == 1 else "")
    times = Counter(parents)
    names = []
    for r, parent in zip(found, parents, strict=True):
        first, last = r.removable[0].names[0], r.removable[-1].names[0]
        if r.in_channels is not None:
            names.append(first)
        elif parent and times[parent] == 1:
            names.append(parent)
        else:
            names.append(first if first == last else f"{first} to {last}")
    return names


def _alternating(block: str, i: int) -> dict[str, Any]:
    """The axis that the sweeps of the i-th block begin with: x, y, x, ... so that none is preferred."""
    return {"first": "xy"[i % 2]} if "first" in placeable(block).settings else {}


def _stage(r: Repetition, name: str, block: str, settings: Mapping[str, Any], signed: bool) -> Stage:
    added = r.removable[0].added
    own = {"residual": True} if signed and not added and r.in_channels is None else {}
    own = {k: v for k, v in own.items() if k in placeable(block).settings}
    return Stage(
        name=name,
        shape=r.shape,
        keep=r.kept,
        remove=tuple(b.names for b in r.removable),
        block=block,
        settings={**own, **settings},
        added=added,
        in_channels=r.in_channels,
        extra=r.first.extra,
        copies=tuple(name for b in r.removable for name in b.written),
        notes=r.notes,
    )


def _possible(model: nn.Module, stages: Sequence[Stage]) -> tuple[list[Stage], list[Untouched]]:
    """The stages whose modules may go, and the others."""
    good, refused = [], []
    for stage in stages:
        names = [n for block in stage.remove for n in block]
        why = next((w for w in (why_not_removed(model, n) for n in names) if w is not None), None)
        if why is None:
            good.append(stage)
        else:
            refused.append(Untouched(stage.name, why))
    return good, refused


def _that_run(
    model: nn.Module, stages: Sequence[Stage], arguments: tuple[Any, ...], trace: ShapeTrace
) -> tuple[list[Stage], list[Untouched], nn.Module]:
    """The stages with which the network runs and returns what it did in shape; the others; the network."""
    network, why = _tried(model, stages, arguments, trace)
    if why is None:
        return list(stages), [], network
    good: list[Stage] = []
    failed = []
    for stage in stages:
        _, why = _tried(model, [*good, stage], arguments, trace)
        if why is not None and not stage.copies:
            stage = replace(stage, copies=tuple(names[-1] for names in stage.remove))
            _, still = _tried(model, [*good, stage], arguments, trace)
            why = why if still is not None else None
        if why is None:
            good.append(stage)
        else:
            failed.append(Untouched(stage.name, why))
    return good, failed, _condensed(model, good)


def _tried(
    model: nn.Module, stages: Sequence[Stage], arguments: tuple[Any, ...], trace: ShapeTrace
) -> tuple[nn.Module, str | None]:
    """The condensed network, and why it does not run forward and backward; None if it does."""
    try:
        network = _condensed(model, stages)
    except UserError as error:
        return model, str(error)
    try:
        with eval_mode(network), torch.enable_grad():
            output = network(*arguments)
            outputs = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
            losses = [t.abs().sum() for t in outputs if t.requires_grad]
            weights = [p for p in network.parameters() if p.requires_grad]
            if losses and weights:  # a forward that writes into a map may make that impossible
                torch.autograd.grad(losses, weights, allow_unused=True)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # as in `_traced`
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        return network, f"without it the network does not run: {reason}"
    shapes = [tuple(t.shape) for t in outputs]
    if shapes != [t.shape for t in trace.calls[0].outputs]:
        return network, f"without it the network's output is {shapes}"
    return network, None


def _condensed(model: nn.Module, stages: Sequence[Stage]) -> nn.Module:
    """The network with the stages condensed, to be run: it shares all tensors with the original."""
    with torch.random.fork_rng(devices=[]):
        return with_places(model, tuple(p for s in stages for p in s.places()), share=True)


def _with_costs(
    model: nn.Module,
    condensed: nn.Module,
    trace: ShapeTrace,
    stages: Sequence[Stage],
    arguments: tuple[Any, ...],
    seconds: float | None,
) -> tuple[Cost, list[Stage]]:
    """The cost of the whole network, and the stages with what goes and what comes."""
    after = traced(condensed, arguments)
    times: dict[str, tuple[float, float]] = {}
    whole: tuple[float | None, float | None] = (None, None)
    if seconds is not None:
        times, whole = stage_times(model, condensed, stages, arguments, seconds=seconds)
    made = []
    for stage in stages:
        names = [n for block in stage.remove for n in block]
        t = times.get(stage.name, (None, None))
        was, now = cost_of(model, trace, names), cost_of(condensed, after, names)
        made.append(replace(stage, before=replace(was, seconds=t[0]), after=replace(now, seconds=t[1])))
    return replace(cost_of(model, trace, [""]), seconds=whole[0]), made


def _with_total(
    model: nn.Module, result: Plan, budget: Budget, arguments: tuple[Any, ...], seconds: float | None
) -> Plan:
    """The plan with the cost of the network that it makes, its time measured.

    A speedup that the sum of the stages promised and the network does not reach takes further stages.
    """
    stages = list(result.stages)
    while True:
        network = _condensed(model, [s for s in stages if s.condense])
        before, after = result.before, cost_of(network, traced(network, arguments), [""])
        if seconds is not None:
            _, (was, now) = stage_times(model, network, [], arguments, seconds=seconds / 2)
            before, after = replace(before, seconds=was), replace(after, seconds=now)
        if "seconds" not in budget.missing(after, before):
            return replace(result, stages=tuple(stages), before=before, after=after)
        left = [s for s in stages if not s.condense and (saved_by(s).seconds or 0) > 0]
        if not left:
            reached = (before.seconds or 0.0) / max(after.seconds or 0.0, 1e-12)
            raise UserError(
                f"no plan meets the budget speedup={budget.speedup:g}: the nearest is {reached:.3g}, "
                "measured with every stage condensed that saves time; choose a cheaper block, a wider "
                "budget, or a smaller network"
            )
        more = max(left, key=lambda s: saved_by(s).seconds or 0)
        stages = [replace(s, condense=True) if s is more else s for s in stages]


def _nothing_repeats(model: nn.Module, passed: Sequence[Untouched]) -> str:
    words = (
        f"{_label(model)} repeats nothing that could be condensed: there is no run of alike blocks that "
        "keep the shape of their map"
    )
    return words + _came_near(passed, "What came near")


def _came_near(passed: Sequence[Untouched], words: str) -> str:
    """A sentence on what was passed over; empty for nothing."""
    more = f"; and {len(passed) - 4} more" if len(passed) > 4 else ""
    told = "; ".join(f"{u.name}: {u.reason}" for u in passed[:4])
    return f". {words}: {told}{more}" if passed else ""
