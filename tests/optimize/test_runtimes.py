"""Networks in ONNX Runtime and OpenVINO: the same function, wherever and however they are called."""

from __future__ import annotations

import copy
import os
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from globalcnn import UserError, optimize_for_inference
from globalcnn.engines import RUNTIMES, checked_runtimes
from globalcnn.engines.own_operator import operator_library
from globalcnn.errors import MissingExtra, UserTypeError
from globalcnn.optimize import OptimizedModel, Variant
from globalcnn.optimize.choices import CHOICES
from globalcnn.optimize.variant import prepare

from .conftest import search, times

ENGINES = [c for c in CHOICES if c.name == "engines"]
OWN = Variant(fused=True, engine="onnxruntime")  # Global layers by this library's kernels


@pytest.fixture(params=RUNTIMES)
def runtime(request):
    return request.param


@pytest.fixture(params=[Variant(engine=name) for name in RUNTIMES] + [OWN], ids=str)
def variant(request):
    if request.param == OWN and operator_library() is None:
        pytest.skip("there are no native kernels here")
    return request.param


@pytest.fixture
def fast(variant, tiny, images):
    return OptimizedModel(prepare(tiny, variant)[0].requires_grad_(False), variant, images)


def counted(fast, images):
    """How often the engine ran, as a list that grows."""
    fast(images)
    made, calls = fast.__dict__["_compiled"], []
    run = made.call
    object.__setattr__(made, "call", lambda x: calls.append(len(x)) or run(x))
    return calls


@torch.no_grad()
def test_the_engine_runs_the_shape_of_the_example_and_pytorch_the_others(fast, tiny, images):
    calls = counted(fast, images)
    for x in (images + 1, images.contiguous(memory_format=torch.channels_last)):
        assert torch.allclose(fast(x), tiny(x), atol=1e-5)
    assert calls == [4, 4]
    for x in (images[:1], images[:3], torch.randn(4, 3, 20, 12), torch.randn(9, 3, 16, 16), images[:0]):
        assert torch.allclose(fast(x), tiny(x), atol=1e-5)
    assert calls == [4, 4]
    with torch.inference_mode():
        assert torch.allclose(fast(images.clone()), tiny(images), atol=1e-5)
    assert torch.allclose(fast(images.clone().requires_grad_()), tiny(images), atol=1e-5)
    assert calls == [4, 4, 4, 4]


@torch.no_grad()
@pytest.mark.parametrize(
    "how", ["in place", "loaded", "replaced", "layer", "parametrised", "hook", "hook on all", "converted"]
)
def test_changed_weights_are_never_stale(how, fast, images):
    calls, handles = counted(fast, images), []
    convolution = next(m for m in fast.model.modules() if isinstance(m, nn.Conv2d))
    if how == "in place":
        convolution.weight.mul_(0.5)
    elif how == "loaded":
        fast.load_state_dict({k: v * 0.5 if v.ndim else v for k, v in fast.state_dict().items()})
    elif how == "replaced":
        convolution.weight = nn.Parameter(convolution.weight * 0.5, requires_grad=False)
    elif how == "layer":
        fast.model.fc = nn.Linear(fast.model.fc.in_features, 7).requires_grad_(False)
    elif how == "parametrised":
        parametrize.register_parametrization(convolution, "weight", nn.Tanh())
    elif how == "hook":
        convolution.register_forward_hook(lambda module, inputs, output: output * 2)
    elif how == "hook on all":
        handles.append(register_module_forward_hook(lambda module, inputs, output: output * 1.5))
    else:
        fast.double()
        images = images.double()
    try:
        found, wanted = fast(images), fast.model(images)
    finally:
        for handle in handles:
            handle.remove()
    assert torch.equal(found, wanted * 1.5 if handles else wanted)
    assert calls == []


@torch.no_grad()
def test_what_is_put_back_is_the_same_network_again(fast, tiny, images):
    calls = counted(fast, images)
    weights = {k: v * 0.5 if v.ndim else v for k, v in fast.model.state_dict().items()}
    assert torch.equal(
        torch.func.functional_call(fast, {f"model.{k}": v for k, v in weights.items()}, images),
        torch.func.functional_call(fast.model, weights, images),
    )
    assert calls == []
    handle = fast.model.register_forward_hook(lambda module, inputs, output: output * 2)
    assert torch.allclose(fast(images), 2 * tiny(images), atol=1e-5)
    handle.remove()
    assert calls == []
    assert torch.allclose(fast(images), tiny(images), atol=1e-5)
    assert calls == [4]


@torch.no_grad()
def test_hooks_on_the_optimised_network_itself(fast, tiny, images):
    fast(images)
    fast.register_forward_hook(lambda module, inputs, output: output * 2)
    assert torch.allclose(fast(images), 2 * tiny(images), atol=1e-5)
    assert torch.allclose(fast(x=images), 2 * tiny(images), atol=1e-5)


@torch.no_grad()
def test_where_operations_are_recorded_the_network_is(fast, images):
    fast(images)
    for graph in (make_fx(fast)(images), torch.export.export(fast, (images,)).module()):
        assert torch.allclose(graph(images + 1), fast.model(images + 1), atol=1e-5)
    traced = torch.jit.trace(fast, images, check_trace=False)
    assert torch.allclose(traced(images + 1), fast.model(images + 1), atol=1e-5)
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(images + 1), fast.model(images + 1), atol=1e-5)


@torch.no_grad()
def test_copies_and_pickles_make_engines_of_their_own(fast, tiny, images):
    fast(images)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert again.variant == fast.variant
        assert again.__dict__["_compiled"] is None
        assert torch.allclose(again(images), tiny(images), atol=1e-5)
        assert again.__dict__["_compiled"] is not None


@torch.no_grad()
def test_threads_of_python(fast, tiny, images):
    batches = [images + i for i in range(8)]
    wanted = [tiny(x) for x in batches]

    def many(i):
        return [fast(batches[i]) for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        for found, right in zip(pool.map(many, range(8)), wanted, strict=True):
            assert all(torch.allclose(one, right, atol=1e-5) for one in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@torch.no_grad()
def test_a_forked_process_runs_pytorch(fast, tiny, images):
    wanted = tiny(images)
    calls = counted(fast, images)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # as workers of a DataLoader do
        right = torch.allclose(fast(images), wanted, atol=1e-5)
        os._exit(0 if right and not calls else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.allclose(fast(images), wanted, atol=1e-5)
    assert calls == [4]


@torch.no_grad()
def test_nested_outputs(runtime, images):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return {"b": self.conv(x), "a": (x.mean((2, 3)), x.flatten(1).argmax(1))}

    model = Two().eval().requires_grad_(False)
    found = OptimizedModel(model, Variant(engine=runtime), images)(images)
    wanted = model(images)
    assert list(found) == ["b", "a"]
    assert isinstance(found["a"], tuple)
    assert torch.allclose(found["b"], wanted["b"], atol=1e-5)
    assert torch.allclose(found["a"][0], wanted["a"][0], atol=1e-5)
    assert torch.equal(found["a"][1], wanted["a"][1])


@pytest.mark.skipif(operator_library() is None, reason="there are no native kernels here")
@torch.no_grad()
def test_the_search_takes_the_fastest(tiny, images):
    names = tuple(RUNTIMES)

    def timer(candidates, example, **options):
        return times([1.0, 0.6, 0.4, 0.5])

    fast = search(tiny, images, choices=ENGINES, engines=names, timer=timer)
    assert fast.variant == OWN
    assert [row.name for row in fast.report.rows] == [
        "run by ONNX Runtime",
        "Global layers fused, run by ONNX Runtime",
        "run by OpenVINO",
    ]
    assert torch.allclose(fast(images), tiny(images), atol=1e-5)
    assert any("others run in PyTorch" in note for note in fast.report.notes)


def test_one_image_is_tried_with_one_thread_too(tiny, images, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    fast = search(tiny, images[:1], choices=ENGINES, engines=("openvino",))
    assert [row.name for row in fast.report.rows] == [
        "run by OpenVINO",
        "one thread, run by OpenVINO",
    ]


def test_norms_stay_folded_where_that_was_chosen(tiny, images):
    """The engine's network has fewer weights to watch, and so has the one that runs other shapes."""
    folded = [c for c in CHOICES if "folded" in c.name]
    fast = search(tiny, images, choices=[*folded, *ENGINES], engines=("openvino",))
    assert fast.variant == Variant(folded=True, engine="openvino")
    with torch.no_grad():
        for x in (images, images[:1]):
            assert torch.allclose(fast(x), tiny(x), atol=1e-5)
    assert "run by OpenVINO" in fast.report.chosen


def test_other_dtypes_are_for_pytorch(tiny, images):
    fast = search(tiny.double(), images.double(), choices=ENGINES, engines=tuple(RUNTIMES), tolerance=1e-10)
    assert fast.report.rows == ()


class NoTensor(nn.Module):
    def forward(self, x):
        return {"x": x, "note": "three"}


class Another(nn.Module):
    """Another function where it is traced."""

    def forward(self, x):
        return x * (2.0 if torch.compiler.is_exporting() else 1.0)


@pytest.mark.parametrize(
    ("model", "words"), [(NoTensor(), "failed: .*something else"), (Another(), "dropped: deviates")]
)
def test_networks_that_an_engine_cannot_run_stay_in_pytorch(model, words, images):
    fast = search(model, images, choices=ENGINES, engines=tuple(RUNTIMES))
    assert fast.variant == Variant()
    assert [bool(re.match(words, row.outcome)) for row in fast.report.rows] == [True, True]


@pytest.mark.parametrize(
    ("engines", "words", "kind"),
    [
        ("onnxruntime", "sequence of names", UserTypeError),
        (3, "engines=3 must be a sequence", UserTypeError),
        (("onnxruntim",), "unknown engine 'onnxruntim'; did you mean 'onnxruntime'", UserError),
        ((None,), "unknown engine 'None'", UserError),
    ],
)
def test_mistakes_are_named(engines, words, kind, tiny, images):
    with pytest.raises(kind, match=words):
        optimize_for_inference(tiny, images, engines=engines)


def test_an_engine_that_is_not_installed(monkeypatch, tiny, images):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"globalcnn\[openvino\]"):
        optimize_for_inference(tiny, images, engines=("openvino",))


def test_the_names():
    assert checked_runtimes(None, feature="") == ("onnxruntime", "openvino")
    assert checked_runtimes(["openvino", "openvino"], feature="") == ("openvino",)
    assert checked_runtimes((), feature="") == ()
