"""Derivatives of the operators themselves: first and second gradients against differences, forward mode."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.autograd import forward_ad

from globalcnn.errors import UserError
from globalcnn.ops import BACKENDS, spec
from globalcnn.ops.torch_ops import decomposition
from tests.ops.drawn_arguments import CASES, Case, arguments

FORWARD = ("solve", "layer", "evolve")
BACKENDS["native"].unavailable()  # loads the kernels where they are built; where not, plain PyTorch is tested


def as_function(operator: str, case: Case):
    """The operator's differentiable first result as a function of its tensors, and those."""
    given = arguments(operator, case)
    names = [n for n, value in given.items() if isinstance(value, torch.Tensor)]

    def function(*tensors):
        values = {**given, **dict(zip(names, tensors, strict=True))}
        result = getattr(torch.ops.globalcnn, operator)(*values.values())
        return result if isinstance(result, torch.Tensor) else result[0]

    return function, [given[n].requires_grad_() for n in names]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("operator", FORWARD)
def test_first_and_second_derivatives_are_those_of_differences(operator, case):
    function, tensors = as_function(operator, case)
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("operator", FORWARD)
def test_third_derivatives_follow_from_the_decomposition(operator):
    """Along one line, where differences of the second derivative give the third."""
    function, tensors = as_function(operator, CASES[0])
    h, others = tensors[0].detach(), [t.detach() for t in tensors[1:]]
    direction = torch.randn(h.shape, generator=torch.Generator().manual_seed(1), dtype=h.dtype)

    def derivative(t: torch.Tensor, order: int) -> torch.Tensor:
        value = function(h + t * direction, *others).square().square().sum()
        for _ in range(order):
            (value,) = torch.autograd.grad(value, t, create_graph=True)
        return value

    at = torch.zeros((), dtype=torch.float64, requires_grad=True)
    step = torch.tensor(1e-4, dtype=torch.float64)
    second = [derivative(s.clone().requires_grad_(), 2) for s in (step, -step)]
    torch.testing.assert_close(
        derivative(at, 3), (second[0] - second[1]) / (2 * step), rtol=1e-5, atol=1e-5, check_dtype=False
    )


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("operator", FORWARD)
def test_forward_mode_is_right(operator, case):
    function, tensors = as_function(operator, case)
    tensors = [t.detach() for t in tensors]
    g = torch.Generator().manual_seed(2)
    tangents = [torch.randn(t.shape, generator=g, dtype=t.dtype) for t in tensors]
    step = 1e-6
    ahead, behind = (
        function(*(t + s * d for t, d in zip(tensors, tangents, strict=True))) for s in (step, -step)
    )
    expected = (ahead - behind) / (2 * step)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip(tensors, tangents, strict=True)]
        tangent = forward_ad.unpack_dual(function(*duals)).tangent
    torch.testing.assert_close(tangent, expected, rtol=1e-5, atol=1e-6)
    _, by_func = torch.func.jvp(function, tuple(tensors), tuple(tangents))
    torch.testing.assert_close(by_func, tangent)


@pytest.mark.parametrize("operator", FORWARD)
def test_the_transforms_of_torch_func_give_the_same_gradient(operator):
    function, tensors = as_function(operator, CASES[0])
    found = torch.func.grad(lambda h: function(h, *(t.detach() for t in tensors[1:])).square().sum())(
        tensors[0].detach()
    )
    (expected,) = torch.autograd.grad(function(*tensors).square().sum(), tensors[0])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("operator", ["solve_backward", "evolve_backward"])
def test_backward_operators_refuse_forward_mode_by_name(operator):
    given = arguments(operator, CASES[0])
    with forward_ad.dual_level():
        given["h"] = forward_ad.make_dual(given["h"], torch.ones_like(given["h"]))
        with pytest.raises(UserError, match=rf"{operator}: not differentiable in forward"):
            getattr(torch.ops.globalcnn, operator)(*given.values())


def test_the_statistics_of_evolve_have_no_gradient_and_say_so():
    given = arguments("evolve", CASES[0])
    given["h"].requires_grad_()
    out, mean, var = torch.ops.globalcnn.evolve(*given.values())
    assert out.requires_grad
    assert not mean.requires_grad
    assert not var.requires_grad
    given = arguments("evolve_backward", CASES[0])
    given["mean"].requires_grad_()
    result = torch.ops.globalcnn.evolve_backward(*given.values())
    with pytest.raises(UserError, match="evolve_backward: mean has no derivative"):
        result[0].sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_the_layer_have_the_dtypes_of_its_tensors(dtype):
    given = arguments("layer", CASES[0], dtype=dtype)
    tensors = [t.requires_grad_() for t in given.values() if isinstance(t, torch.Tensor)]
    torch.ops.globalcnn.layer(*given.values()).sum().backward()
    assert all(t.grad is not None and t.grad.dtype == t.dtype for t in tensors)


@pytest.mark.parametrize("operator", list(spec.OPERATORS))
def test_mapping_is_one_call_for_each_entry(operator):
    given = arguments(operator, CASES[0])
    many = torch.stack([given["h"], given["h"] * 2, given["h"] - 1])

    def function(h):
        return getattr(torch.ops.globalcnn, operator)(*{**given, "h": h}.values())

    mapped = torch.vmap(function)(many)
    alone = [function(h) for h in many]
    if isinstance(mapped, torch.Tensor):
        mapped, alone = (mapped,), [(one,) for one in alone]
    for i, result in enumerate(mapped):
        torch.testing.assert_close(result, torch.stack([one[i] for one in alone]))


@pytest.mark.parametrize("operator", list(spec.OPERATORS))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_decomposition_and_the_operator_agree(operator, case):
    given = arguments(operator, case)
    found = getattr(torch.ops.globalcnn, operator)(*given.values())
    expected = getattr(decomposition, operator)(*given.values())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
