"""`apply`: the network that a plan describes, made from the original."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..errors import UserError, UserTypeError
from ..graph import eval_mode
from ..measure.probe import checked_model
from ..models import Place, put_places, source_of
from ..models.condensed import condensed_source
from ..models.source import stamp
from .data import Plan

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """A new network: `model` with the chosen stages of `plan` condensed. `model` itself is not changed.

    Every module that stays keeps its weights, whether they require gradients, its mode and its hooks; the new
    blocks have fresh weights from the global random generator, which require gradients, and the mode, device
    and dtype of what they replace. The result knows how it was built: `save_weights` keeps base and plan on
    the file's card, and `load` rebuilds it.

    Raises `UserTypeError` where an argument is of the wrong type; `UserError` where the plan is of another
    network (it names the first module or shape that differs), or a block cannot go.

    >>> import torch, globalcnn
    >>> net = globalcnn.create_model("resnet32_cifar", num_classes=10)
    >>> small = apply(net, globalcnn.condense.plan(net, torch.randn(1, 3, 32, 32), seconds=None))
    >>> sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters()) / 2
    True
    """
    model = checked_model(model)
    if not isinstance(plan, Plan):
        raise UserTypeError(
            f"apply: plan must be a globalcnn.condense.Plan, got {type(plan).__name__}; "
            "Plan.load reads a file"
        )
    check_same_network(model, plan)
    places = plan.places()
    for place in places:
        why = why_not_removed(model, place.name)
        if why is not None:
            raise UserError(f"apply: {why}")
    network = with_places(model, places)
    _check_runs(model, network, plan)
    return network


def _check_runs(model: nn.Module, network: nn.Module, plan: Plan) -> None:
    """Raise `UserError` where the original runs on zeros of the plan's example, and the new network does not.

    A plan that was edited may take out a block that changes the shape.
    """
    if len(plan.example) != 4:
        return
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    like = tensors[0] if tensors else torch.empty(0)
    images = torch.zeros(1, *plan.example[1:], device=like.device, dtype=like.dtype)
    reason = _failure(network, images)
    if reason is not None and _failure(model, images) is None:
        raise UserError(
            f"apply: the network of this plan does not run: {reason}; every block that it removes must keep "
            f"the shape of its map ({', '.join(s.name for s in plan.chosen)[:200]})"
        )


def _failure(network: nn.Module, images: Tensor) -> str | None:
    try:
        with eval_mode(network), torch.no_grad():
            network(images)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # a network's forward may raise anything
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return None


def with_places(model: nn.Module, places: tuple[Place, ...], *, share: bool = False) -> nn.Module:
    """A copy of the network with these blocks put in. share: whether it uses the tensors of the original."""
    network = copied(model, share=share)
    source = source_of(model)
    put_places(network, places)
    return stamp(network, condensed_source(source, places)) if places else network


def copied(model: nn.Module, *, share: bool = False) -> nn.Module:
    """A copy of the network, or a `UserError` that says why there can be none."""
    tensors = [*model.parameters(), *model.buffers()] if share else []
    try:
        return copy.deepcopy(model, {id(t): t for t in tensors})
    except Exception as error:  # a network may hold anything: locks, non-leaf tensors, open files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"the network cannot be copied, so the original would not stay: {reason}") from error


def tensors_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all parameters and buffers, in the order of the network."""
    return {k: tuple(v.shape) for k, v in model.state_dict(keep_vars=True).items() if hasattr(v, "shape")}


def check_same_network(model: nn.Module, plan: Plan) -> None:
    """Raise `UserError` unless names and shapes are those of the plan's network.

    Another number of classes (the outputs of the last linear layer) or of input channels (of the first
    convolution) is the same network.
    """
    here, there = tensors_of(model), dict(plan.tensors)
    free = _heads(model, here)
    for name in (*there, *here):
        a, b = here.get(name), there.get(name)
        if a == b or (a is not None and b is not None and name in free and _differ_in(a, b) == {free[name]}):
            continue
        raise UserError(
            f"the plan is of another network ({plan.network}): {name} "
            + (
                "is not in this one"
                if a is None
                else f"is {a} here, and not in the plan"
                if b is None
                else f"is {a} here and {b} in the plan"
            )
            + "; make a plan of this network with globalcnn.condense.plan"
        )


def _heads(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Tensors that may differ in one dimension, with that dimension."""
    modules = list(model.named_modules())
    linear = [n for n, m in modules if isinstance(m, nn.Linear)]
    first = next((n for n, m in modules if isinstance(m, nn.Conv2d) and m.groups == 1), None)
    free = {}
    if linear:
        free = {f"{linear[-1]}.weight": 0, f"{linear[-1]}.bias": 0}
    if first is not None:
        free[f"{first}.weight"] = 1
    return {k: v for k, v in free.items() if k in shapes}


def _differ_in(a: tuple[int, ...], b: tuple[int, ...]) -> set[int]:
    if len(a) != len(b):
        return {-1}
    return {i for i, (n, m) in enumerate(zip(a, b, strict=True)) if n != m}


def why_not_removed(model: nn.Module, name: str) -> str | None:
    """Why the module of that name cannot go; None if it can."""
    found = dict(model.named_modules(remove_duplicate=False)).get(name)
    if found is None:
        return f"the network has no module {name!r}"
    for inner, module in found.named_modules():
        if any(_own_hooks(module)):
            where = f"{name}.{inner}" if inner else name
            return f"{where} has hooks, which would be lost with it: remove them first"
        if "forward" in vars(module):
            return f"the forward of {name} was replaced on the instance, so what it does cannot be seen"
    return None


def _own_hooks(module: nn.Module) -> Iterable[bool]:
    """Of every hook, whether it is the user's; those of torch.nn.utils go with their module."""
    for kind in _HOOKS:
        for hook in (getattr(module, kind, None) or {}).values():
            owner = getattr(hook, "__module__", None) or type(hook).__module__
            yield not str(owner).startswith("torch.nn.utils")
