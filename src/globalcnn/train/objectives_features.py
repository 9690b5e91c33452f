"""Matching of features: a new stage, or a whole network, reproduces the features of the original one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import UserError, unknown_name
from ..graph import ShapeTrace, trace_shapes
from .objectives import Objective, Outcome
from .teacher import Teacher

SMALLEST_SPREAD, SMALLEST_SHARE = 1e-6, 1e-3  # absolute, and of the mean square


def normalised_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error of features (N, C, ...) over their spread.

    0 is exact, 1 is as good as a constant per channel. The spread is the mean squared distance of `wanted`
    from its mean per channel, but at least a thousandth of its mean square and 1e-6, so that features that
    are nearly constant do not outweigh everything else. A scalar in float32.

    >>> x = torch.tensor([[[1.0, 3.0]]])
    >>> normalised_error(torch.full_like(x, 2.0), x).item(), normalised_error(x, x).item()
    (1.0, 0.0)
    """
    found, wanted = found.float(), wanted.float()
    others = [d for d in range(wanted.ndim) if d != 1]
    spread = (wanted - wanted.mean(dim=others, keepdim=True)).square().mean()
    least = (SMALLEST_SHARE * wanted.square().mean()).clamp_min(SMALLEST_SPREAD)
    return (found - wanted).square().mean() / torch.maximum(spread, least)


@dataclass(frozen=True)
class StagePair:
    """A new stage, and what it takes the place of.

    new: name of the stage in the condensed network; first: name in the original of the module whose input it
    gets; outputs: names in the original of the modules whose outputs, summed, it is to give. It is one name,
    but for blocks whose outputs the network adds to their inputs.
    """

    new: str
    first: str
    outputs: tuple[str, ...]


@final
class StagewiseMatching(Objective):
    """Each new stage learns from the original's features at its input to give those at its output.

    original: the network with trained weights; a `Teacher`. All stages learn in one pass of it; the gradients
    of a stage stay in it, since its input is the original's. The loss is the sum of the stages' normalised
    squared errors (`normalised_error`), each of which is also a figure of the epoch under the stage's name.
    The condensed network itself is not run, so that its other weights need no gradients.
    """

    def __init__(self, original: Teacher, stages: Sequence[StagePair]) -> None:
        if not stages:
            raise UserError("stages is empty: there is nothing to match")
        self.original, self.stages = original, tuple(stages)
        for name in (n for s in self.stages for n in (s.first, *s.outputs)):
            submodule(original.model, name, "the original")

    def setup(self, model: nn.Module, *, device: torch.device) -> nn.Module | None:
        for stage in self.stages:
            submodule(model, stage.new, "the condensed network")
        self.original.to(device)
        return None

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Outcome:
        errors = self.errors(model, images)
        return Outcome(torch.stack(list(errors.values())).sum(), None, errors)

    def errors(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """The normalised squared error of each stage on a batch, by its name."""
        inputs = {s.first for s in self.stages}
        outputs = {name for s in self.stages for name in s.outputs}
        with captured(self.original.model, inputs=inputs, outputs=outputs) as (entering, leaving):
            self.original(images)
        errors = {}
        for s in self.stages:
            wanted = torch.stack([leaving[name] for name in s.outputs]).sum(dim=0)
            found = only_tensor(model.get_submodule(s.new)(entering[s.first]))
            errors[s.new] = normalised_error(found, wanted)
        return errors

    def describe(self) -> dict[str, Any]:
        return {
            "name": "stagewise_matching",
            "original": self.original.checksum(),
            "stages": [asdict(s) for s in self.stages],
        }


@dataclass(frozen=True)
class FeatureError:
    """The features before pooling as a part of an objective: normalised squared error to the teacher's.

    module: the name, in both networks, of the module whose output they are (`before_pooling` finds it);
    weight: of the error at the start; epochs: over how many it falls to 0, linearly; None keeps it.

    >>> FeatureError("layer3", weight=2.0, epochs=4).weight_at(1.0)
    1.5
    """

    module: str
    weight: float = 1.0
    epochs: float | None = None

    def __post_init__(self) -> None:
        for name in ("weight", "epochs"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and value > 0):
                raise UserError(f"{name}={value!r} of the features must be a number above 0")

    def weight_at(self, epochs: float) -> float:
        """The weight after so many epochs."""
        return self.weight if self.epochs is None else self.weight * max(0.0, 1.0 - epochs / self.epochs)


def before_pooling(original: nn.Module, student: nn.Module, image: Tensor) -> str:
    """The name of the module, in both networks, whose output are the features before pooling.

    It is the last feature map (N, C, H, W) of more than one pixel that a module of the original returns,
    where the student has a module of that name that returns a map of the same shape; of several that return
    it, the outermost. `UserError` if there is none.
    """
    maps, theirs = _maps(trace_shapes(original, image)), _maps(trace_shapes(student, image))
    shared = {name: ended for name, (ended, shape) in maps.items() if theirs.get(name, (0, ()))[1] == shape}
    if not shared:
        raise UserError(
            "the networks have no module of the same name that returns feature maps of the same shape, so "
            "features before pooling cannot be compared: leave the feature error out"
        )
    return max(shared, key=lambda name: shared[name])


def _maps(trace: ShapeTrace) -> Mapping[str, tuple[int, tuple[int, ...]]]:
    """(how late it ends, shape) of each module that is called once and returns one map of several pixels."""
    found: dict[str, tuple[int, tuple[int, ...]]] = {}
    ends = {call.index: call.index for call in trace.calls}
    for call in reversed(trace.calls):  # a call ends with the last that began inside of it
        if call.parent is not None:
            ends[call.parent] = max(ends[call.parent], ends[call.index])
    for call in trace.calls:  # an outer call comes first and keeps its place among equals in `max`
        shape = call.outputs[0].shape if len(call.outputs) == 1 else ()
        if call.name and len(shape) == 4 and shape[2] * shape[3] > 1 and len(trace.of(call.name)) == 1:
            found[call.name] = (ends[call.index], shape)
    return found


def submodule(model: nn.Module, name: str, where: str) -> nn.Module:
    """The module of that name; a `UserError` that says what is near."""
    names: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if not name or name not in names:
        raise unknown_name(f"module of {where}", name, [n for n in names if n])
    return names[name]


Features = dict[str, Tensor]


def only_tensor(value: Any) -> Tensor:
    """The feature map in what a module takes or returns: the value itself, or the first of several."""
    first = next((leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)), None)
    if first is None:
        raise UserError(f"a module whose features are to be matched gives {type(value).__name__}, no tensor")
    return first


@contextmanager
def captured(
    model: nn.Module, *, inputs: Collection[str] = (), outputs: Collection[str] = (), copied: bool = True
) -> Iterator[tuple[Features, Features]]:
    """Collect the first tensor of inputs and outputs of modules by name, of calls made inside the block.

    copied: detached copies, which in-place layers that follow do not change; else the tensors themselves,
    through which gradients flow.
    """
    entering: Features = {}
    leaving: Features = {}

    def kept(value: Any) -> Tensor:
        x = only_tensor(value)
        return x.detach().clone() if copied else x

    def enters(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entering[name] = kept((args, kwargs))

        return hook

    def leaves(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            leaving[name] = kept(output)

        return hook

    handles = [model.get_submodule(n).register_forward_pre_hook(enters(n), with_kwargs=True) for n in inputs]
    handles += [model.get_submodule(n).register_forward_hook(leaves(n)) for n in outputs]
    try:
        yield entering, leaving
    finally:
        for handle in handles:
            handle.remove()
