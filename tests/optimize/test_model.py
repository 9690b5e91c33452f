"""The optimised module: any input that fits gives what the network gives, any other a clear error."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from globalcnn import UserError, create_model, optimize_for_inference
from globalcnn.errors import UserTypeError
from globalcnn.optimize import OptimizedModel, Variant
from globalcnn.optimize.variant import prepare

from .conftest import search


def test_other_batches_and_sizes(tiny, images):
    fast = OptimizedModel(copy.deepcopy(tiny), Variant(piece=2), images)
    with torch.no_grad():
        for other in (images[:1], images[:3], torch.randn(7, 3, 16, 16), torch.randn(5, 3, 9, 13)):
            assert torch.allclose(fast(other), tiny(other), atol=1e-6)


def test_pieces_of_every_output(images):
    class Two(nn.Module):
        def forward(self, x):
            return {"sum": x.sum(1), "both": [x, x.mean((1, 2, 3))]}

    out = OptimizedModel(Two(), Variant(piece=3), images)(images)
    assert torch.equal(out["sum"], images.sum(1))
    assert torch.equal(out["both"][0], images)
    assert out["both"][1].shape == (4,)


def test_one_thread_only_inside(images):
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return x

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        OptimizedModel(Watch(), Variant(one_thread=True), images)(images)
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(threads)


def test_only_eval_mode_and_no_parameter_wants_a_gradient(tiny, images):
    fast = optimize_for_inference(tiny, images.clone().requires_grad_(), compile=False, seconds=0.2)
    assert not any(m.training for m in fast.modules())
    assert not any(p.requires_grad for p in fast.parameters())
    assert fast.eval() is fast
    with pytest.raises(UserError, match="for inference only"):
        fast.train()


@dataclass(frozen=True)
class Refused:
    """A call that must not give numbers, and the words that say why."""

    name: str
    call: object
    words: str


def forward_mode(fast, x):
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        return fast(torch.autograd.forward_ad.make_dual(x, x))


REFUSED = [
    Refused("a gradient", lambda fast, x: x + fast(x.clone().requires_grad_()), "its input requires one"),
    Refused("behind a layer", lambda fast, x: fast(nn.Conv2d(3, 3, 1)(x)), "with x.detach"),
    Refused("forward mode", forward_mode, "its input requires one"),
    Refused("torch.func", lambda fast, x: torch.func.grad(lambda y: fast(y).sum())(x), "torch.func"),
    Refused("vmap", lambda fast, x: torch.func.vmap(fast)(x[:, None]), "torch.func"),
    Refused("fewer channels", lambda fast, x: fast(x[:, :2]), r"\(4, 2, 16, 16\); .* \(N, 3, H, W\)"),
    Refused("one image", lambda fast, x: fast(x[0]), r"shape \(3, 16, 16\)"),
    Refused("float16", lambda fast, x: fast(x.half()), "input is torch.float16 .* for torch.float32"),
    Refused("float64", lambda fast, x: fast(x.double()), r"give x.to\(torch.float32\)"),
    Refused("integers", lambda fast, x: fast(x.to(torch.uint8)), "torch.uint8"),
    Refused("another device", lambda fast, x: fast(x.to("meta")), "on meta and the optimised network on cpu"),
]


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)
@pytest.mark.parametrize("fused", [False, True], ids=["modules", "fused"])
def test_what_does_not_fit_is_refused_by_name(refused, fused, tiny, images):
    fast = OptimizedModel(prepare(tiny, Variant(fused=fused))[0], Variant(fused=fused), images)
    with pytest.raises(UserError, match=refused.words):
        refused.call(fast, images)


def test_what_is_no_tensor_is_refused_by_name(tiny, images):
    with pytest.raises(UserTypeError, match=r"takes a tensor \(N, 3, H, W\), got list"):
        OptimizedModel(tiny, Variant(), images)([images])


def test_an_input_that_wants_a_gradient_is_taken_where_gradients_are_off(tiny, images):
    fast = OptimizedModel(tiny, Variant(), images)
    with torch.no_grad():
        assert torch.equal(fast(images.clone().requires_grad_()), tiny(images))
    assert not fast(images).requires_grad
    with torch.inference_mode():
        assert torch.allclose(fast(images.clone()), tiny(images), atol=1e-6)


def test_autocast_is_that_of_the_call(tiny, images):
    fast = OptimizedModel(tiny, Variant(), images)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = tiny(images)
        assert torch.equal(fast(images), wanted)
        assert fast(images.bfloat16()).dtype == wanted.dtype


def test_converted_it_takes_what_it_was_converted_to(tiny, images):
    fast = OptimizedModel(copy.deepcopy(tiny), Variant(compiled=True), images)
    assert fast.to("cpu")._compiled_for is not None
    assert fast.double()._compiled_for is None
    with torch.no_grad():
        assert torch.allclose(fast(images.double()), tiny.double()(images.double()))
    with pytest.raises(UserError, match=r"input is torch\.float32 .* for torch\.float64"):
        fast(images)


def saved(fast):
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "torch.save": saved,
    "pickle": lambda fast: pickle.loads(pickle.dumps(fast)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("memory_format", [None, "channels_last", "contiguous"])
def test_it_can_be_copied_and_saved(way, memory_format, tiny, images):
    variant = Variant(folded=True, fused=True, memory_format=memory_format, piece=3, compiled=True)
    fast = OptimizedModel(prepare(tiny, variant)[0], variant, images)
    again = COPIES[way](fast)
    assert again.variant == variant
    assert again._compiled_for == fast._compiled_for
    assert list(again.state_dict()) == list(fast.state_dict())
    other = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        assert torch.equal(again(other), fast(other))
    again.load_state_dict(fast.state_dict())


def test_it_can_be_loaded_in_another_process(tiny, images, tmp_path):
    fast = search(tiny, images)
    with torch.no_grad():
        torch.save((fast, images, fast(images)), tmp_path / "fast.pt")
    code = f"""
import torch
fast, images, wanted = torch.load({str(tmp_path / "fast.pt")!r}, weights_only=False)
with torch.no_grad():
    assert torch.allclose(fast(images), wanted, atol=1e-5)
print(fast.report.chosen)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, fast.report.chosen), done.stderr


EXPORTS = {
    "torch.export": lambda fast, x: torch.export.export(fast, (x,)).module(),
    "torch.jit.trace": lambda fast, x: torch.jit.trace(fast, x, check_trace=False),
    "torch.compile": lambda fast, x: torch.compile(fast, backend="eager", fullgraph=True),
    "torch.fx": lambda fast, x: torch.fx.symbolic_trace(fast),
}
ENGINE = Variant(
    folded=True, fused=True, memory_format="channels_last", one_thread=True, piece=1, compiled=True
)


@pytest.mark.parametrize("way", EXPORTS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_can_be_exported(way, lively, images):
    """As its network in plain PyTorch: pieces, threads and fused operators stay out of the graph."""
    fused = way != "torch.fx"  # which traces no network with Global layers
    model = lively(create_model("resnet_global_tiny_cifar" if fused else "resnet_tiny_cifar"))
    fast = OptimizedModel(
        prepare(model, ENGINE if fused else replace(ENGINE, fused=False))[0], ENGINE, images
    )
    with torch.no_grad():
        exported = EXPORTS[way](fast, images)
        assert torch.allclose(exported(images), model(images), atol=1e-5)
    graph = exported.inlined_graph if way == "torch.jit.trace" else getattr(exported, "graph", None)
    assert "globalcnn::" not in str(graph)
    if isinstance(graph, torch.fx.Graph):
        assert not any(str(node.target).startswith("globalcnn.") for node in graph.nodes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_it_can_be_exported_to_onnx(lively, images, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model = lively(create_model("resnet_global_tiny_cifar"))
    fast = OptimizedModel(prepare(model, ENGINE)[0], ENGINE, images)
    torch.onnx.export(fast, (images,), tmp_path / "fast.onnx", dynamo=False)
    session = runtime.InferenceSession(tmp_path / "fast.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(got), model(images), atol=1e-4)
