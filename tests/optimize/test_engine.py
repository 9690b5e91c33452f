"""Compiled engines: few networks of two layers, as compiling is dear."""

from __future__ import annotations

import pickle
import shutil

import pytest
import torch
from torch import nn

from globalcnn.optimize import OptimizedModel, Variant
from globalcnn.optimize.choices import CHOICES, Choice
from globalcnn.optimize.engine import compile_for, separately

from .conftest import search

needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval().requires_grad_(False)


@pytest.mark.slow
@needs_a_compiler
def test_a_network_with_global_layers(tiny, images):
    import torch._inductor.config as inductor

    (made,) = (choice for choice in CHOICES if choice.name == "compiled")
    compiled = Choice("compiled", lambda best, setting: made.options(best, setting)[:1])
    before = inductor.freezing
    fast = search(tiny, images, compile=True, choices=(*CHOICES[:2], compiled))
    assert fast.variant == Variant(folded=True, fused=True, compiled=True), fast.report
    assert inductor.freezing == before
    with torch.no_grad():
        assert torch.allclose(fast(images), tiny(images), atol=1e-5)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for other in (images[:3], torch.randn(1, 3, 24, 20), images.clone()):
            assert torch.allclose(fast(other), tiny(other), atol=1e-5)
        with torch.inference_mode():
            assert torch.allclose(fast(images.clone()), tiny(images), atol=1e-5)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
        fast.load_state_dict({k: v * 0.5 if v.ndim else v for k, v in fast.state_dict().items()})
        assert torch.allclose(fast(images), fast.model(images), atol=1e-5)
    assert pickle.loads(pickle.dumps(fast)).variant == fast.variant


@needs_a_compiler
def test_what_is_compiled_runs_only_what_it_was_compiled_for(images):
    model = small()
    fast = OptimizedModel(model, Variant(compiled=True), images)
    transposed = images.transpose(2, 3).contiguous().transpose(2, 3)
    with torch.no_grad():
        wanted = model(images)
        for other in (images, images.to(memory_format=torch.channels_last), transposed, images[:1]):
            assert torch.allclose(fast(other), wanted[: len(other)], atol=1e-6)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                assert fast(images).dtype == dtype
        assert fast(images).dtype == torch.float32
        assert fast.engine_note is None
        # weights and hooks that change later are seen
        bias = {"model.2.bias": model[2].bias + 1}
        assert torch.allclose(torch.func.functional_call(fast, bias, images), wanted + 1, atol=1e-6)
        handle = model[2].register_forward_hook(lambda module, inputs, output: output + 2)
        assert torch.allclose(fast(images), wanted + 2, atol=1e-6)
        handle.remove()
        model[2].bias.add_(3)
        assert torch.allclose(fast(images), wanted + 3, atol=1e-6)


def failing(*, in_cpp: bool):
    """A compiler whose result fails, or fails only where it is called from C++."""
    import torch._inductor.config as inductor

    def compiler(function, **options):
        def call(x):
            if inductor.cpp_wrapper or not in_cpp:
                raise RuntimeError("not here\nsecond line")
            return function(x)

        return call

    return compiler


def test_where_calls_from_cpp_fail_the_note_says_why(images):
    model = small()
    compiled = compile_for(model, images, compiler=failing(in_cpp=True))
    assert torch.equal(compiled.call(images), model(images))
    assert compiled.note.endswith("calls from C++ failed: not here")
    with pytest.raises(RuntimeError, match="not here"):
        compile_for(model, images, compiler=failing(in_cpp=False))


def test_functions_made_separately_have_code_of_their_own(images):
    first, second = separately(small()), separately(small())
    assert first.__code__ is not second.__code__
    model = small()
    assert torch.equal(separately(model)(images), model(images))
