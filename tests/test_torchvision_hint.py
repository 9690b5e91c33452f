"""A torchvision that was built for another torch is recognised, and the message says what to do."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from pathlib import Path

import pytest

import globalcnn
from globalcnn import _torchvision
from globalcnn.errors import UserError

SOURCES = Path(globalcnn.__file__).parent.parent
HINT = r"built for another torch.*pip install torch torchvision timm"
SCRIPT = (
    "import sys; from globalcnn.cli.main import main; sys.exit(main())"  # what an installed `globalcnn` runs
)


@pytest.fixture
def failing_import(monkeypatch):
    """A function that makes `import torchvision` raise an error."""
    real = builtins.__import__
    _torchvision._reason.cache_clear()

    def fail(error: Exception) -> None:
        def fake(name, *rest, **more):
            if name == "torchvision":
                raise error
            return real(name, *rest, **more)

        monkeypatch.setattr(builtins, "__import__", fake)

    yield fail
    _torchvision._reason.cache_clear()


def test_the_mismatch_is_explained(failing_import):
    failing_import(RuntimeError("operator torchvision::nms does not exist"))
    for _ in range(2):
        with pytest.raises(ImportError, match=HINT) as caught:
            _torchvision.check()
    assert isinstance(caught.value, UserError)


def test_other_errors_are_left_alone(failing_import):
    failing_import(RuntimeError("disk on fire"))
    with pytest.raises(RuntimeError, match="disk on fire"):
        _torchvision.check()


@pytest.fixture
def python(tmp_path):
    """Runs Python where torchvision is a broken one."""
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")\n')

    def python(*words):
        path = os.pathsep.join([str(tmp_path), str(SOURCES)])
        return subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )

    return python


@pytest.mark.parametrize("command", [("-m", "globalcnn"), ("-c", SCRIPT)], ids=["module", "script"])
def test_the_command_line_says_it_in_one_line(python, command):
    done = python(*command, "list")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("globalcnn: error: the installed torchvision was built for another torch")
    assert done.stderr.count("\n") == 1
    assert python(*command, "--version").stdout == f"globalcnn {globalcnn.__version__}\n"


def test_debug_shows_where_it_happened(python):
    done = python("-m", "globalcnn", "list", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "BrokenTorchvision" in done.stderr


def test_in_python_what_needs_it_raises(python):
    code = """
import globalcnn
from globalcnn import GlobalLayer, create_model, solve
GlobalLayer(4)
def train():
    import globalcnn.train
for ask in (create_model, globalcnn.list_models, globalcnn.optimize_for_inference, train):
    try:
        ask()
    except ImportError as error:
        assert "pip install torch torchvision timm" in str(error), error
    else:
        raise AssertionError(ask)
"""
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
