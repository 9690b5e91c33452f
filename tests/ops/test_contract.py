"""One contract: C++, Triton and plain PyTorch follow `ops/spec.py`, and refuse what it does not allow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import globalcnn
from globalcnn import PDE, GlobalLayer
from globalcnn.errors import UserError
from globalcnn.ops import BACKENDS, spec
from globalcnn.ops.native import contract
from globalcnn.ops.torch_ops import decomposition
from tests.ops.drawn_arguments import CASES, arguments

ROOT = Path(__file__).parents[2]
CSRC = Path(globalcnn.__file__).parent / "ops" / "native" / "csrc"


def test_the_headers_are_those_of_the_contract():
    assert contract.main(CSRC, check=True) == 0, "run python -m globalcnn.ops.native.contract"


def test_headers_that_differ_are_found_and_written(tmp_path):
    assert contract.main(tmp_path, check=True) == 1
    assert contract.main(tmp_path, check=False) == 0
    assert contract.main(tmp_path, check=True) == 0
    (tmp_path / "arguments.h").write_text("enum class Boundary : int { dirichlet, periodic };\n")
    assert contract.main(tmp_path, check=True) == 1


def test_triton_knows_boundaries_and_activations_by_the_same_numbers():
    parts = pytest.importorskip("globalcnn.ops.triton.parts")
    assert [getattr(parts, name.upper()).value for name in spec.BOUNDARY.names] == [0, 1, 2]
    assert [getattr(parts, name.upper()).value for name in spec.ACTIVATIONS] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", list(spec.OPERATORS))
def test_packing_is_the_inverse_of_unpacking_in_the_order_of_the_schema(name):
    operator = spec.OPERATORS[name]
    values = tuple(arguments(name, CASES[0]).values())
    assert all(a is b for a, b in zip(operator.pack(operator.unpack(values)), values, strict=True))
    schema = getattr(torch.ops.globalcnn, name).default._schema
    assert [a.name for a in schema.arguments] == [a.name for a in operator.arguments]
    assert len(schema.returns) == len(operator.returns)


@pytest.mark.parametrize("which", ["native", "decomposition"])
def test_hundreds_of_wrong_argument_lists_are_errors(which):
    if which == "native" and BACKENDS["native"].unavailable() is not None:
        pytest.skip("the native kernels are not built")
    words = [sys.executable, "-m", "tests.ops.wrong_arguments", "--count", "20"]
    done = subprocess.run(
        [*words, *(["--decomposition"] if which == "decomposition" else [])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.mark.parametrize(
    ("operator", "changes", "words"),
    [
        ("evolve", {"weight": torch.ones(4, 2, 9, 9)}, "weight is of shape (4, 2, 9, 9); it must be"),
        ("layer", {"weight": torch.ones(4, 1, 3, 3)}, "weight is of shape (4, 1, 3, 3); it must be"),
        ("layer", {"scale": torch.ones(0)}, "scale is of shape (0"),
        ("solve", {"dx": -1}, "dx is -1; it must be from 1 to 256"),
        ("solve", {"dy": 2**62}, "dy is 4611686018427387904; it must be from 1 to 256"),
        ("solve", {"steps": 10**9}, "steps is 1000000000; it must be from 0 to 10000"),
        ("solve", {"boundary": 3}, "boundary is 3; it must be one of 0 (periodic)"),
        ("solve", {"scheme": 2}, "scheme is 2; it must be one of 0 (du_fort_frankel), 1 (gated_sweeps)"),
        ("solve", {"Dy": None}, "Dy is None; it must be a tensor where Dx is one, or Dx None too"),
        ("solve", {"dt": float("nan")}, "dt is nan; it must be finite and > 0"),
        ("solve", {"u": torch.ones(2, 2, 3, 4, dtype=torch.float64)}, "u is of "),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_an_error_names_operator_argument_value_and_what_is_allowed(operator, changes, words):
    values = {**arguments(operator, CASES[0], dtype=torch.float32), **changes}
    calls = [getattr(decomposition, operator)]
    if BACKENDS["native"].unavailable() is None:
        calls.append(getattr(torch.ops.globalcnn, operator))
    for call in calls:
        with pytest.raises((UserError, RuntimeError)) as caught:
            call(*values.values())
        assert f"globalcnn::{operator}: " in str(caught.value)
        assert words in str(caught.value)


def test_a_layer_refuses_what_would_never_end():
    with pytest.raises(UserError, match="from 1 to 256"):
        GlobalLayer(8, PDE(spacing=2**62))
    with pytest.raises(UserError, match="from 0 to 10000"):
        GlobalLayer(8, PDE(steps=10**9))


@pytest.mark.parametrize("name", list(spec.OPERATORS))
def test_an_empty_batch_gives_an_empty_result(name):
    values = arguments(name, CASES[0], shape=(0, 2, 3, 4), dtype=torch.float32)
    found = getattr(torch.ops.globalcnn, name)(*values.values())
    first, *others = [found] if isinstance(found, torch.Tensor) else found
    assert first.shape == (0, 2, 3, 4)
    assert all((other == 0).all() for other in others)  # statistics, gradients of parameters


@pytest.mark.skipif(BACKENDS["native"].unavailable() is not None, reason="native kernels are not there")
@pytest.mark.parametrize("name", ["h", "u", "Dx"])
def test_a_tensor_whose_storage_was_freed_is_refused(name):
    given = arguments("solve", CASES[0])
    given[name].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=f"{name} is without memory"):
        torch.ops.globalcnn.solve(*given.values())
