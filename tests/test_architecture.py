"""Imports point one way; importing the library does nothing; public names are documented.

The rooms and their order are those of ARCHITECTURE.md.
"""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import globalcnn

PACKAGE = Path(globalcnn.__file__).parent

# room: the rooms that it may import from, besides itself and what is free for all
MAY_IMPORT = {
    "ops": set(),
    "nn": {"ops"},
    "graph": {"ops", "nn"},
    "models": {"ops", "nn", "graph"},
    "measure": {"ops", "nn", "graph", "models"},
    "data": set(),
    "engines": {"ops", "nn", "graph", "models"},
    "condense": {"ops", "nn", "graph", "models", "measure", "data", "train"},
    "optimize": {"ops", "nn", "graph", "models", "measure", "engines"},
    "viz": {"ops", "nn", "graph", "models", "measure"},
    "train": {"ops", "nn", "graph", "models", "measure", "data"},
    "reproduce": {"ops", "nn", "graph", "models", "measure", "data", "train"},
    "export": {"ops", "nn", "graph", "models", "measure", "engines", "data", "train"},
    "cli": {
        "ops",
        "nn",
        "graph",
        "models",
        "measure",
        "engines",
        "condense",
        "optimize",
        "data",
        "viz",
        "train",
        "reproduce",
        "export",
    },
}
FREE_FOR_ALL = {"errors", "files", "_torchvision"}


def imported(source, module):
    """(line, dotted name below `globalcnn`) of every import of the library in `source`, at any depth.

    module: dotted name below `globalcnn` of the package that the file is in, to resolve relative imports.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "globalcnn":
                    yield node.lineno, alias.name.removeprefix("globalcnn").removeprefix(".")
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parts = module.split(".") if module else []
                base = parts[: len(parts) - (node.level - 1)]
                path = [*base, *(node.module.split(".") if node.module else [])]
            elif node.module and node.module.split(".")[0] == "globalcnn":
                path = node.module.split(".")[1:]
            else:
                continue
            # `from .. import ops` names rooms, `from ..ops import PDE` does not
            for alias in node.names:
                yield node.lineno, ".".join(path or [alias.name])


def back_edges(source, file):
    """Complaints about the imports of one file, a path relative to the package."""
    parts = Path(file).parts
    package = ".".join(parts[:-1])
    room = parts[0].removesuffix(".py")
    for line, name in imported(source, package):
        target = name.split(".")[0]
        if target == room or target in FREE_FOR_ALL or target == "__version__":
            continue
        if room in FREE_FOR_ALL:
            allowed = set()
        elif len(parts) == 1:  # the face of the library and `python -m globalcnn`
            allowed = {"cli"} if room == "__main__" else set(MAY_IMPORT) - {"cli"}
        else:
            allowed = MAY_IMPORT[room]
        if target not in allowed:
            yield f"{file}:{line} imports {name or 'globalcnn'}; {room} may import {sorted(allowed)}"


FILES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))


def test_no_import_points_back():
    found = [
        edge for file in FILES for edge in back_edges((PACKAGE / file).read_text(encoding="utf-8"), file)
    ]
    assert not found, "\n".join(found)


def test_every_room_has_its_place():
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert rooms == set(MAY_IMPORT)
    assert len(FILES) > 20


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("ops/eager.py", "from ..nn import GlobalLayer"),
        ("ops/eager.py", "from globalcnn.models.registry import create_model"),
        ("ops/eager.py", "import globalcnn.nn.global_layer"),
        ("ops/eager.py", "from .. import models"),
        ("ops/eager.py", "from globalcnn import create_model"),
        ("ops/eager.py", "def late():\n    from ..cli import main"),
        ("ops/__init__.py", "from ..nn import GlobalLayer"),
        ("nn/global_layer.py", "if TYPE_CHECKING:\n    from ..models.base import ImageClassifier"),
        ("models/resnet.py", "from ..measure import count"),
        ("models/resnet.py", "from ..train.recipe import Recipe"),
        ("measure/counts.py", "from ..data import load_data"),
        ("measure/counts.py", "from ..reproduce import published_rows"),
        ("models/registry.py", "from ..reproduce.rows import published_rows"),
        ("train/run.py", "from ..reproduce import find_recipe"),
        ("reproduce/recipes/cifar.py", "from ...cli import options"),
        ("errors.py", "from .ops import PDE"),
        ("engines/program.py", "from ..export import export"),
        ("train/evaluate.py", "from ..export import export"),
        ("files.py", "from globalcnn.cli import main"),
        ("__init__.py", "from .cli.main import main"),
    ],
)
def test_a_back_edge_is_caught(file, source):
    """The test of the test."""
    assert len(list(back_edges(source, file))) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("ops/eager.py", "from .pde import PDE\nfrom ..errors import UserError\nimport torch"),
        ("nn/global_layer.py", "from ..ops import PDE\nfrom globalcnn.errors import UserError"),
        ("models/resnet.py", "from ..nn import GlobalLayer\nfrom .. import _torchvision"),
        ("reproduce/recipes/cifar.py", "from ...train import Recipe\nfrom ...data import load_data"),
        ("cli/main.py", "from ..train import run\nfrom . import options"),
        ("files.py", "from .errors import UserError"),
        ("__main__.py", "from .cli.main import main"),
    ],
)
def test_a_forward_edge_is_not(file, source):
    assert list(back_edges(source, file)) == []


def python(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )


def test_importing_does_nothing():
    """No word, no seed, no thread count, no default dtype, no GPU, no optional package."""
    code = """
import random, sys, warnings
warnings.filterwarnings("ignore", module="(?!globalcnn)")
import numpy, torch, timm
def state():
    return (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist(),
            torch.initial_seed(), torch.get_num_threads(), torch.get_num_interop_threads(),
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.cuda.is_initialized())
before, loaded = state(), set(sys.modules)
import globalcnn, globalcnn.measure, globalcnn.data, globalcnn.train, globalcnn.models
import globalcnn.export  # finds the package; the name is the function
globalcnn.GlobalLayer  # a name is there
assert state() == before
late = {"matplotlib", "mlxtend", "onnx", "onnxruntime", "onnxscript", "openvino", "tensorboard",
        "torchdiffeq", "triton", "tyro", "rich"}
started = {name.split(".")[0] for name in set(sys.modules) - loaded} & late
assert not started, started
"""
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_constructor_prints_nothing(capfd):
    for name in ("resnet_global_tiny_cifar", "digits_global", "global_mnist"):
        globalcnn.create_model(name)
    assert capfd.readouterr() == ("", "")


def test_public_names_are_a_dozen_at_most_and_exist():
    assert len(globalcnn.__all__) <= 12
    assert len(set(globalcnn.__all__)) == len(globalcnn.__all__)
    for name in globalcnn.__all__:
        assert hasattr(globalcnn, name)


def documented(value, name):
    """Complaints about a public class or function and the public methods that the class itself defines."""
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return
    text = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    # a dataclass without words gets its signature as docstring
    if not text or text.startswith(f"{value.__name__}("):
        yield name
    if inspect.isclass(value):
        for key, member in vars(value).items():
            if key.startswith(("_", "forward")):
                continue
            member = member.fget if isinstance(member, property) else member
            method = (
                inspect.isfunction(member) and member.__name__ == key
            )  # not a lambda as default of a field
            if method and not inspect.getdoc(getattr(value, key)):
                yield f"{name}.{key}"


def test_public_names_have_a_docstring():
    missing = []
    rooms = [globalcnn, globalcnn.ops, globalcnn.nn, globalcnn.models]
    for room in rooms:
        assert room.__doc__, room
        for name in room.__all__:
            missing += documented(getattr(room, name), f"{room.__name__}.{name}")
    assert not missing


def test_every_module_says_what_it_is():
    silent = []
    for file in FILES:
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        if tree.body and not ast.get_docstring(tree):
            silent.append(file)
    assert not silent


def test_a_missing_docstring_is_caught():
    class Silent:
        def method(self):
            pass

    assert list(documented(Silent, "Silent")) == ["Silent", "Silent.method"]


def test_library_code_does_not_print():
    """`cli` prints, through rich; everything else returns objects."""
    calls = []
    for file in FILES:
        if file.startswith("cli/"):
            continue
        for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                calls.append(f"{file}:{node.lineno}")
    assert not calls
