"""The solve inside compiled and exported programs: the same numbers, and no operator that others lack."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from globalcnn import PDE, solve

NAMES = ("h", "h_old", "f", "u", "v", "Dx", "Dy")


class Solve(nn.Module):
    """The operator as a module, for `torch.export`."""

    def __init__(self, pde, *, constant=False, source=True):
        super().__init__()
        self.pde, self.constant, self.source = pde, constant, source

    def forward(self, h, h_old, f, u, v, Dx, Dy):
        D = (1.0, 0.5) if self.constant else (Dx, Dy)
        return solve(h, h_old, f if self.source else None, u, v, *D, self.pde)


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    """The compiler counts recompilations of one forward over all tests, and gives up after a few."""
    torch._dynamo.reset()


@pytest.fixture(params=["next pixel, learned D", "far, constant D, no source"])
def module(request, boundary):
    if request.param.startswith("next"):
        return Solve(PDE(steps=3, boundary=boundary))
    return Solve(PDE(steps=3, spacing=(3, 9), boundary=boundary), constant=True, source=False)


@pytest.fixture(scope="module")
def tensors(draw):
    return tuple(draw((2, 3, 6, 5), dtype=torch.float32)[n] for n in NAMES)


def test_compiled_in_one_graph(module, tensors):
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), module(*tensors))


def test_compiled_gradients(boundary, tensors):
    module = Solve(PDE(steps=2, boundary=boundary))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    leaves = [A.clone().requires_grad_() for A in tensors]
    expected = torch.autograd.grad(module(*leaves).square().sum(), leaves)
    found = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="needs a C++ compiler")
def test_compiled_to_machine_code(tensors):
    module = Solve(PDE(steps=2))
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), module(*tensors), rtol=1e-5, atol=1e-5)


def operators(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def test_exported_with_plain_operators_only(module, tensors):
    """The same numbers from slices, concatenation, padding with zeros and arithmetic.

    No roll, no circular pad, no gather: converters to other formats lack those, or do them slowly.
    """
    allowed = {
        *("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "rsub.Scalar", "neg.default"),
        *("reciprocal.default", "cat.default", "flip.default", "pad.default", "zeros_like.default"),
        *("slice.Tensor", "narrow.default"),
    }
    program = torch.export.export(module, tensors)
    torch.testing.assert_close(program.module()(*tensors), module(*tensors))
    names = {name.removeprefix("aten.") for name in operators(program)}
    assert names <= allowed, names - allowed
    for node in program.graph.nodes:
        if str(node.target) == "aten.pad.default":
            assert len(node.args) < 3 or node.args[2] == "constant"


def test_the_core_operators_read_no_index_lists(boundary, tensors):
    program = torch.export.export(Solve(PDE(steps=2, spacing=2, boundary=boundary)), tensors)
    core = operators(program.run_decompositions())
    assert not [name for name in core if "roll" in name or "index" in name or "gather" in name], core


def test_exported_with_a_free_batch_size(boundary, tensors):
    module = Solve(PDE(steps=2, boundary=boundary))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, tensors, dynamic_shapes=({0: batch},) * len(tensors))
    larger = tuple(torch.cat([A, A, A]) for A in tensors)
    torch.testing.assert_close(program.module()(*larger), module(*larger))


def test_the_roll_would_be_seen():
    """The test of the test."""

    class Rolled(nn.Module):
        def forward(self, h):
            return h.roll(1, 2)

    program = torch.export.export(Rolled(), (torch.zeros(1, 1, 3, 3),))
    assert "aten.roll.default" in operators(program)
