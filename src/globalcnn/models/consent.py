"""Which sources a weights file may build without the user's consent.

A file may come from a stranger. It may name a network of this library or of timm with known settings of
moderate size, and a class of modules (or a function annotated to return one) of an installed package. For
anything else the user consents by `model=`, which names the network again, or by `trust_source=True`.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import site
import sys
import sysconfig
import typing
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlparse

from torch import nn

from ..errors import UserError, near_names
from . import registry
from .condensed import CondensedSource
from .factories import importable
from .source import FactorySource, FileSource, NamedSource, Source

# settings of timm's constructors that shape a network and touch nothing else
_TIMM_SETTINGS = """
    act_layer aa_layer attn_drop_rate attn_layer avg_down base_width block_args_global cardinality
    class_token conv_mlp depth depths dims down_sample drop_block_rate drop_path_rate drop_rate
    dynamic_img_pad dynamic_img_size embed_dim embed_dims fc_norm fix_stem global_pool growth_rate
    head_init_scale img_size in_features init_values kernel_size kernel_sizes layer_scale layers
    ls_init_value memory_efficient mlp_ratio mlp_ratios no_embed_class norm_eps norm_layer num_features
    num_heads output_stride pad_type patch_drop_rate patch_size pos_drop_rate pos_embed pre_norm
    proj_drop_rate qk_norm qkv_bias reg_tokens replace_stem_pool round_chs_fn se_from_exp
    stem_kernel_size stem_size stem_type stem_width strict_img_size use_abs_pos use_rel_pos width_factor
    window_size zero_init_last
"""
TIMM_SETTINGS: Final = frozenset(_TIMM_SETTINGS.split())
# never taken from a file, trusted or not: they make a constructor read other files or use the network
_REFUSED = """
    pretrained pretrained_cfg pretrained_cfg_overlay pretrained_model_args checkpoint_path cache_dir
    weights weights_backbone pretrained_backbone state_dict url file hf_hub_id features_only scriptable
    exportable no_jit num_classes in_chans
"""
REFUSED: Final = frozenset(_REFUSED.split())
REACHING_OUT: Final = frozenset(
    ("pretrained", "weights", "checkpoint", "ckpt", "url", "hub", "cache", "file")
)
# packages whose functions do more than build networks
_FOREIGN = """
    PIL _pytest accelerate docutils fsspec huggingface_hub hypothesis jinja2 matplotlib numpy onnx
    onnxruntime openvino packaging pip pkg_resources psutil pytest requests rich safetensors scipy
    setuptools shtab sympy tensorboard timm torch torchdeq torchdiffeq torchgen triton tyro urllib3
    webdataset wheel yaml
"""
FOREIGN: Final = frozenset(_FOREIGN.split())
MOST_CLASSES: Final = 1_000_000
MOST_CHANNELS: Final = 4096


def require_safe(source: Source, where: str, *, folder: Path | None = None, trusted: bool = False) -> None:
    """Raise `UserError` unless `source`, read from `where`, may be built without further consent.

    folder: that the file lies in; nothing is imported from there. trusted: the user vouches for the source
    (`trust_source=True`); a file of Python code and arguments that name weights are refused all the same.
    """
    if isinstance(source, CondensedSource):  # its blocks are of a list, with bounded settings
        require_safe(source.base, where, folder=folder, trusted=trusted)
    elif isinstance(source, NamedSource):
        _check_settings(source, where, trusted=trusted)
    elif isinstance(source, FileSource):
        raise UserError(
            f"{where} was trained with the function {source.function!r} of a Python file ({source.path}). "
            "Weights never run a file: name it again, "
            f"--model {Path(source.path).name}:{source.function} or model='PATH.py:{source.function}'"
        )
    elif isinstance(source, FactorySource):
        check_arguments(source.arguments, source.label, where)
        if not trusted:
            _check_factory(source, where, folder)


def check_arguments(arguments: Mapping[str, Any], label: str, where: str) -> None:
    """None of the arguments that a file gives a factory names other files or addresses."""
    for name, value in arguments.items():
        if reaches_out(name) and value not in (None, False, ""):
            raise UserError(f"{where} gives {label} the argument {name!r}, which no file may set")


def reaches_out(name: str) -> bool:
    """Whether an argument of that name makes a constructor read files or use the network."""
    return name in ("path", "state_dict") or bool(REACHING_OUT & set(name.lower().split("_")))


def check_numbers(num_classes: Any, in_chans: Any, where: str) -> None:
    """Classes and channels that a file asks for are whole numbers within bounds."""
    for name, value, most in (
        ("num_classes", num_classes, MOST_CLASSES),
        ("in_chans", in_chans, MOST_CHANNELS),
    ):
        lowest = 0 if name == "num_classes" else 1
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= most:
            raise UserError(
                f"{where}: {name}={str(value)[:60]} must be a whole number from {lowest} to {most:,}"
            )


def _check_settings(source: NamedSource, where: str, *, trusted: bool) -> None:
    registry.check_model_name(source.name)
    own = registry.settings_of(source.name)
    known = TIMM_SETTINGS if own is None else frozenset(own)
    for name in source.settings:
        if name in REFUSED:
            raise UserError(f"{where} gives {source.name!r} the setting {name!r}, which no file may set")
        if name not in known and not trusted:
            near = near_names(name, known)
            raise UserError(
                f"{where} gives {source.name!r} the unknown setting {name[:80]!r}"
                + (f" (near: {', '.join(near)})" if near else "")
                + "; if the file is yours, load it with trust_source=True (--trust-source)"
            )


def _check_factory(source: FactorySource, where: str, folder: Path | None) -> None:
    name, _, function = source.factory.partition(":")
    why = _why_not_module(name, folder)
    if why is None:
        why = _why_not_callable(source, name, function)
    if why is not None:
        raise UserError(
            f"{where} says that its network is built by {source.factory!r}, which is not built without your "
            f"consent: {why}. If you know it, load the weights with model={source.factory!r} (--model), pass "
            "the module itself (model=MODULE), or give trust_source=True (--trust-source)"
        )


def _why_not_module(name: str, folder: Path | None) -> str | None:
    """Why a module may not be imported; nothing is imported to find out."""
    parts = name.split(".")
    top = parts[0]
    if any(p.startswith("_") for p in parts):
        return f"{name!r} is private"
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return f"{top!r} belongs to Python's standard library"
    if top == "torchvision":
        return None if parts[1:2] == ["models"] else "of torchvision, only torchvision.models builds networks"
    if top == "globalcnn":
        return (
            None
            if parts[1:2] == ["models"]
            else "of globalcnn, only the classes of globalcnn.models are built"
        )
    if top in FOREIGN:
        return f"{top!r} is a library that globalcnn depends on; its functions do more than build networks"
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return f"there is no package {top!r} here"
    if not spec.origin or not spec.has_location:
        return f"{top!r} is no ordinary package"
    origin = Path(os.path.realpath(spec.origin))
    sites = _site_folders()
    if any(origin.is_relative_to(place) for place in sites):
        return None
    if any(_is_of_project(origin, project, folder) for project in _editable_projects(top, sites)):
        return None
    return f"{top!r} is not an installed package (it would be imported from {str(origin.parent)!r})"


def _site_folders() -> list[Path]:
    """Where packages are installed."""
    found = {*site.getsitepackages(), site.getusersitepackages()}
    found |= {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    return [Path(os.path.realpath(p)) for p in found]


def _editable_projects(top: str, sites: list[Path]) -> list[Path]:
    """The folders of projects that are installed in editable mode and provide the package `top`."""
    projects = []
    for distribution in metadata.distributions(path=[str(p) for p in sites]):
        text = distribution.read_text("direct_url.json")
        if not text or '"editable"' not in text:
            continue
        told = json.loads(text)
        listed = (distribution.read_text("top_level.txt") or "").split()
        if told.get("dir_info", {}).get("editable") and (top in listed or top == distribution.name):
            projects.append(Path(os.path.realpath(unquote(urlparse(told["url"]).path))))
    return projects


def _is_of_project(origin: Path, project: Path, folder: Path | None) -> bool:
    """Whether a module is part of a project, and not of a run folder (or the current folder) inside it."""
    if not origin.is_relative_to(project):
        return False
    inner = [Path(os.path.realpath(f)) for f in (folder, Path.cwd()) if f is not None]
    return not any(f != project and f.is_relative_to(project) and origin.is_relative_to(f) for f in inner)


def _why_not_callable(source: FactorySource, module: str, function: str) -> str | None:
    """Why what the name means is not plainly a builder of networks; its module is imported."""
    found = importable(source.factory)
    out = _default_that_reaches_out(found, source.arguments)
    if out is not None:
        return f"without other arguments {function!r} loads weights ({out})"
    defined = getattr(found, "__module__", None) or ""
    if defined != module and not defined.startswith(f"{module}."):
        return f"{function!r} is not defined in {module!r} but in {defined!r}"
    if module.split(".")[0] == "torchvision" and "._" in defined:
        return f"{function!r} builds any network by its name; a card names that network itself"
    if isinstance(found, type):
        return None if issubclass(found, nn.Module) else f"{function!r} is no class of modules"
    if module.split(".")[0] == "globalcnn":
        return "of globalcnn, only the classes of globalcnn.models are built"
    if not inspect.isfunction(found):
        return f"{function!r} is neither a function nor a class of modules"
    try:
        told = typing.get_type_hints(found).get("return")
    except Exception:  # an annotation that cannot be evaluated counts as none
        told = None
    if isinstance(told, type) and issubclass(told, nn.Module):
        return None
    return f"the function {function!r} is not annotated to return a torch.nn.Module (`-> nn.Module`)"


def _default_that_reaches_out(factory: Any, arguments: Mapping[str, Any]) -> str | None:
    """The parameter, with its default, by which a factory loads weights by default."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return None
    for p in parameters:
        if reaches_out(p.name) and p.name not in arguments and p.default not in (None, False, "", p.empty):
            return f"{p.name}={str(p.default)[:60]}"
    return None
