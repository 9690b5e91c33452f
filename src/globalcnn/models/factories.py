"""User-defined networks: finding the function that builds one, calling it, inspecting the result.

User code runs here: `consent.py` decides beforehand what a file may name.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, near_names
from ..graph import eval_mode


def importable(factory: str) -> Callable[..., Any]:
    """The function or class that "package.module:function" names; its module is imported."""
    name, _, function = factory.partition(":")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"{factory!r}: there is no module {error.name!r}; install its package, or put its folder on "
                "PYTHONPATH; a file is named by its path, my_net.py:build"
            ) from error
        raise UserError(f"{factory!r}: its module could not be imported: {_where(error)}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{factory!r}: its module could not be imported: {_where(error)}") from error
    return _callable_in(module, function, factory)


@contextmanager
def function_in_file(path: Path, function: str) -> Iterator[Callable[..., Any]]:
    """Run the Python file and yield the function of that name; modules in its folder can be imported
    inside."""
    path = path.absolute()
    # files of the same name in two folders are two modules
    name = f"globalcnn_user_file_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"there is no Python file {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    folder = str(path.parent)
    before = set(sys.modules)
    sys.path.insert(0, folder)  # as for a script
    try:
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise UserError(f"{path.name} could not be run: {_where(error, path)}") from error
        yield _callable_in(module, function, f"{path.name}:{function}")
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
        for other in set(sys.modules) - before - {name}:
            # another folder may have modules of the same names
            if Path(getattr(sys.modules[other], "__file__", None) or "/").is_relative_to(folder):
                del sys.modules[other]


def _callable_in(module: ModuleType, function: str, label: str) -> Callable[..., Any]:
    found: Any = getattr(module, function, None)
    if found is None:
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = near_names(function, names)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UserError(f"{label!r}: its module has no {function!r}{hint}")
    if not callable(found) or isinstance(found, nn.Module):
        raise UserError(
            f"{label!r} is a {type(found).__name__}, not a function or class that builds a network"
        )
    builder: Callable[..., Any] = found
    return builder


def call_factory(
    factory: Callable[..., Any],
    label: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
) -> nn.Module:
    """The network that `factory` builds, given num_classes and in_chans if its signature takes them.

    Through `**kwargs` they are offered too, and taken back if the function refuses them by name. Raises
    `UserError` where the factory raises, or returns something else than a module.
    """
    given = dict(arguments or {})
    offered = {
        k: v
        for k, v in (("num_classes", num_classes), ("in_chans", in_chans))
        if v is not None and k not in given
    }
    named, rest = _parameters(factory)
    offered = {k: v for k, v in offered.items() if k in named or rest}
    while True:
        try:
            made = factory(**given, **offered)
            break
        except TypeError as error:
            refused = [k for k in offered if k not in named and f"keyword argument '{k}'" in str(error)]
            if not refused:
                raise UserError(f"{label} could not be built: {_where(error)}") from error
            del offered[refused[0]]
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"{label} could not be built: {_where(error)}") from error
    if not isinstance(made, nn.Module):
        raise UserError(f"{label} must return a torch.nn.Module; it returned a {type(made).__name__}")
    return made


def _parameters(factory: Callable[..., Any]) -> tuple[set[str], bool]:
    """(names that can be given by keyword, whether there is a **kwargs)."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return set(), False
    by_name = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return by_name, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _where(error: BaseException, path: Path | None = None) -> str:
    """The error in one line, with the last place of the user's own code that it went through."""
    words = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if isinstance(error, SyntaxError):
        return f"{words} (line {error.lineno})"
    here = Path(__file__).name
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name != here]
    own = [f for f in frames if path is not None and Path(f.filename) == path]
    own = own or [f for f in frames if "site-packages" not in f.filename and "<frozen" not in f.filename]
    if not (own or frames):
        return words
    frame = (own or frames)[-1]
    return f"{words} ({Path(frame.filename).name}, line {frame.lineno})"


def own_num_classes(model: nn.Module, in_chans: int, image_size: tuple[int, int]) -> int:
    """How many classes a network has: its attribute `num_classes`, else the length of its output."""
    told = getattr(model, "num_classes", None)
    if isinstance(told, int) and not isinstance(told, bool) and told > 0:
        return told
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    try:
        with torch.no_grad(), eval_mode(model):
            images = torch.zeros(1, in_chans, *image_size, device=like.device, dtype=like.dtype)
            logits = model(images)
    except Exception as error:
        raise UserError(
            f"{type(model).__name__} failed on an image of {in_chans} x {image_size[0]} x {image_size[1]}: "
            f"{_where(error)}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"{type(model).__name__} gives {shape} for one image; a classifier gives logits (N, classes)"
        )
    return logits.shape[1]


def own_in_chans(model: nn.Module) -> int | None:
    """How many channels a network reads: its attribute `in_chans`, else those of its first convolution."""
    told = getattr(model, "in_chans", None)
    if isinstance(told, int) and not isinstance(told, bool) and told > 0:
        return told
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), None)
