"""Triton's compiler takes the kernels, down to machine code for a GPU that need not be there.

The interpreter accepts more than the compiler does. `test_triton.py` runs this file in a separate process,
which believes in a GPU and compiles where it would launch.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from globalcnn.ops import triton as backend

pytest.importorskip("triton")
import triton
from triton.backends.compiler import GPUTarget

from globalcnn.ops.triton import launch, run, run_sweeps

GPUS = [80, 90]


class Imagined:
    """A GPU as Triton asks its driver for it."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability  # what Triton keeps per device is then kept per GPU

    def get_current_stream(self, device):
        return 0


@pytest.fixture(params=GPUS, ids=lambda c: f"sm_{c}")
def compiled(request, monkeypatch):
    """What was compiled so far: names of kernels and their machine code."""
    found = []

    def compile_only(kernel, like, tile, *arguments, per_thread=4, in_plane=None, **settings):
        sides = dict(zip("PS" if len(tile) == 2 else "PXY", tile, strict=True))
        warps = launch.warps_for(tile, per_thread)
        made = kernel.warmup(*arguments, **settings, **sides, num_warps=warps, grid=(1,))
        found.append((kernel.__name__, made.asm["cubin"]))

    for module in (launch, run, run_sweeps):
        monkeypatch.setattr(module, "launch", compile_only)
    triton.runtime.driver.set_active(Imagined(request.param))
    return found


def names(compiled):
    assert all(code for _, code in compiled)
    return [name for name, _ in compiled]


def state(shape, dtype, memory_format=torch.contiguous_format):
    return [torch.empty(shape, dtype=dtype).contiguous(memory_format=memory_format) for _ in range(8)]


def test_the_solve(compiled):
    grad, *c = state((2, 16, 32, 32), torch.bfloat16)
    numbers = itertools.product((1, 3), (0, 2))
    for steps, boundary in numbers:
        backend.solve(*c, 0.0, 0.0, steps, 0.2, 1, 1, boundary, 0, 0, False)
    assert names(compiled) == ["step"] * 2 + ["solve_planes"] * 2
    compiled.clear()
    backend.solve_backward(grad, *c, 0.0, 0.0, 2, 0.2, 1, 2, 1, 0, 0, False)
    assert names(compiled) == ["step", "backward_step", "backward_step"]


def test_constant_diffusion_in_double_precision_with_channels_last(compiled):
    grad, h, h_old, f, u, v, *_ = state((2, 6, 9, 5), torch.float64, torch.channels_last)
    plain = (None, None, 0.5, 1.0, 2, 0.2, 3, 1, 0, 0, 0, False)
    backend.solve(h, h_old, None, u, v, *plain)
    backend.solve_backward(grad, h, h_old, f, u, v, *plain)
    assert names(compiled) == ["solve_planes", "step", "backward_step", "backward_step"]


@pytest.mark.parametrize(
    ("shape", "fields", "k", "act", "product", "kernels"),
    [
        ((2, 16, 32, 32), 4, 3, 1, False, ["layer_planes"]),
        ((2, 5, 7, 64), 2, 5, 4, True, ["layer_planes"]),
        ((1, 1, 1, 64), 2, 1, 3, False, ["layer_planes"]),
        ((2, 24, 80, 80), 4, 3, 3, True, ["fields", "step"]),
    ],
)
def test_the_layer(compiled, shape, fields, k, act, product, kernels):
    h, f, *_ = state(shape, torch.float16)
    C = shape[1]
    weight, bias, scale, shift = (torch.empty(s) for s in ((fields, C, k, k), (fields, C), C, C))
    numbers = (0.5, 1.0, 1, 0.2, 1, 1, 0, 0, 0, False)
    backend.layer(h, f, weight, bias, scale, shift, *numbers, act, product, False, False, True, True)
    assert names(compiled) == kernels


def test_the_sweeps(compiled):
    grad, *c = state((2, 16, 32, 32), torch.bfloat16)
    for gate in range(3):
        backend.solve(*c, 0.0, 0.0, 1, 0.2, 1, 1, 1, 1, gate, False)
    assert names(compiled) == ["solve_planes"] * 3
    compiled.clear()
    backend.solve_backward(grad, *c, 0.0, 0.0, 1, 0.2, 1, 1, 1, 1, 0, False)
    assert names(compiled) == ["sweep"] * 4 + ["sweep_adjoint"] * 4


def test_the_sweeps_around_a_ring_in_double_precision(compiled):
    grad, *c = state((2, 3, 9, 5), torch.float64)
    backend.solve_backward(grad, *c, 0.0, 0.0, 1, 0.2, 2, 1, 0, 1, 1, True)
    assert names(compiled) == ["sweep"] * 4 + ["sweep_adjoint"] * 4


@pytest.mark.parametrize(
    ("side", "kernels"), [(32, ["layer_planes"]), (80, ["fields", "sweep", "sweep", "sweep", "sweep"])]
)
def test_the_layer_with_sweeps(compiled, side, kernels):
    h, f, *_ = state((2, 6, side, side), torch.bfloat16, torch.channels_last)
    weight, bias, scale, shift = (torch.empty(s) for s in ((4, 6, 3, 3), (4, 6), 6, 6))
    numbers = (0.0, 0.0, 1, 0.2, 1, 1, 2, 1, 1, True)
    backend.layer(h, f, weight, bias, scale, shift, *numbers, 1, False, False, False, True, True)
    assert names(compiled) == kernels
