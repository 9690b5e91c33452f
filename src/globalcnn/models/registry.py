"""Models by name: `create_model`, `list_models`, and the same names in timm's registry.

Capabilities are data: each name has a `ModelInfo` that can be listed.
"""

from __future__ import annotations

import fnmatch
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import timm
import timm.models
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import nn

from ..errors import UserError, near_names, unknown_name
from .differences import alike, warn_of_differences
from .schemes import alternate_axes, check_scheme, set_scheme
from .shipped import shipped_weights


@dataclass(frozen=True)
class ModelInfo:
    """Properties of a registered model that are known before it is built.

    family: file it lives in; about: one line; dataset: what it was published on; input_size: (C, H, W) there;
    num_classes: default; mean, std: of its normalised input; reconstruction: no public configuration exists,
    built to fit the printed figures; cannot: capabilities that the model does not have ("compile", "export"),
    with the reason.
    """

    name: str
    family: str
    about: str
    dataset: str
    input_size: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reconstruction: bool = False
    cannot: tuple[tuple[str, str], ...] = ()


RECONSTRUCTION = "(reconstruction)"

# the attribute of a network that stores how it was built; not part of the state dict
STAMP: Final = "globalcnn_source"
# arguments of timm's that say where weights come from or how a network is wrapped, not how it is built
NOT_SETTINGS: Final = (
    "num_classes",
    "in_chans",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_model_args",
    "checkpoint_path",
    "cache_dir",
)
# what timm takes for each model: how it is wrapped and its layers are made
OF_TIMM: Final = ("features_only", "out_indices", "feature_cls", "scriptable", "exportable", "no_jit")
# what every network with Global layers takes, see schemes.py
SCHEME: Final = "scheme"
HEAD_SETTINGS: Final = ("global_pool", "drop_rate")

_INFOS: dict[str, ModelInfo] = {}
_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


@dataclass(frozen=True)
class BuiltByName:
    """The name and settings stored on a network that was built by name."""

    name: str
    settings: Mapping[str, Any]


def register(
    name: str,
    build: Callable[..., nn.Module],
    *,
    family: str,
    about: str,
    dataset: str,
    input_size: tuple[int, int, int],
    num_classes: int,
    first_conv: str,
    classifier: str,
    feature_cls: str = "list",
    features: int = 4,
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465),
    std: tuple[float, ...] = (0.2023, 0.1994, 0.2010),
    reconstruction: bool = False,
    cannot: tuple[tuple[str, str], ...] = (),
) -> None:
    """Register `build(num_classes=, in_chans=, ...)` here and in timm's registry under `name`.

    first_conv, classifier: names of these modules; feature_cls, features: how timm wraps the model for
    `features_only` and over how many entries of `feature_info`.
    """
    if name in _INFOS:
        raise ValueError(f"model {name!r} is registered twice")
    cfg = {
        "url": "",
        "num_classes": num_classes,
        "input_size": input_size,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": mean,
        "std": std,
        "first_conv": first_conv,
        "classifier": classifier,
    }

    module = sys.modules[f"globalcnn.models.{family}"]
    cfgs: dict[str, Any] = {name: cfg}
    for data, path in shipped_weights(name).items():  # as timm.create_model("name.data", pretrained=True)
        cfgs[f"{name}.{data}"] = {**cfg, "file": str(path)}
    module.__dict__.setdefault("default_cfgs", {}).update(generate_default_cfgs(cfgs))  # read by timm

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        given: Mapping[str, Any] = {k: v for k, v in kwargs.items() if k in (settings_of(name) or ())}
        trained_with = None
        if pretrained:
            kwargs, trained_with = pretrained_from_file(name, kwargs)
        settings = dict(kwargs)
        scheme = kwargs.pop(SCHEME, None)
        if scheme is not None:
            check_scheme(name, settings)
        model = build_model_with_cfg(
            build,
            name,
            pretrained,
            feature_cfg={"feature_cls": feature_cls, "out_indices": tuple(range(features))},
            **kwargs,
        )
        if pretrained:
            config: dict[str, Any] = vars(model)["pretrained_cfg"]
            config.pop("state_dict", None)  # the weights are in the network now
        if scheme is not None:
            set_scheme(model, scheme)
        elif settings.get("pde") is not None or "pde" in getattr(build, "keywords", {}):
            alternate_axes(model)
        if trained_with is not None and not kwargs.get("features_only") and not alike(given, trained_with):
            warn_of_differences(model, fresh(name, trained_with), f"pretrained {name!r}")
        return stamped(model, name, settings)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__ = module.__name__
    entrypoint.__doc__ = about + (f" {RECONSTRUCTION}" if reconstruction else "")
    register_model(entrypoint)
    _BUILDERS[name] = build
    _INFOS[name] = ModelInfo(
        name=name,
        family=family,
        about=about,
        dataset=dataset,
        input_size=input_size,
        num_classes=num_classes,
        mean=mean,
        std=std,
        reconstruction=reconstruction,
        cannot=cannot,
    )


def pretrained_from_file(
    name: str, arguments: dict[str, Any]
) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """timm's arguments of a network with `pretrained=True`, the weights read from the file that they name.

    And the settings that the weights were trained with; None if they came as tensors.

    The file comes by `pretrained_cfg_overlay=dict(file=...)` or from "local-dir:"; it is checked as by
    `globalcnn.load`. Raises `UserError` where no file is named, since none are published.
    """
    from .weights import weights_for_timm

    overlay = dict(arguments.get("pretrained_cfg_overlay") or {})
    config = resolve_pretrained_cfg(name, arguments.get("pretrained_cfg"), overlay)
    if config.state_dict:
        return arguments, None
    if not config.file:
        raise UserError(
            f"there are no trained weights of {name!r} yet; create it with pretrained=False, name a file "
            f"(pretrained=PATH), or train it: globalcnn train {name}"
        )
    found, settings = weights_for_timm(name, config.file)
    overlay = {**found, **overlay}
    overlay.update(source="", file=None)
    return {**settings, **arguments, "pretrained_cfg_overlay": overlay}, settings


def register_cifar(
    name: str, build: Callable[..., nn.Module], about: str, *, dataset: str = "CIFAR-10", **more: Any
) -> None:
    """Register a network for colour images of 32 x 32 and ten classes; `more` as in `register`."""
    register(name, build, about=about, dataset=dataset, input_size=(3, 32, 32), num_classes=10, **more)


def model_info(name: str) -> ModelInfo:
    """What is known of a model of this library by name, without building it."""
    if name not in _INFOS:
        raise unknown_name("model", name, _INFOS, way_out="`globalcnn list` shows all.")
    return _INFOS[name]


def is_reconstruction(name: str) -> bool:
    """Whether the model is one of this library that was built to fit printed figures; False for timm's."""
    return name in _INFOS and _INFOS[name].reconstruction


def shown_name(name: str) -> str:
    """The name of a model as tables, pictures and lines show it: a reconstruction says that it is one.

    >>> shown_name("neupde_mnist"), shown_name("resnet18")
    ('neupde_mnist (reconstruction)', 'resnet18')
    """
    return f"{name} {RECONSTRUCTION}" if is_reconstruction(name) else name


def check_model_name(name: str) -> None:
    """A `UserError` with near names unless `name` is a model of this library or of timm."""
    if not isinstance(name, str) or (name not in _INFOS and not timm.models.is_model(name)):
        known = [*_INFOS, *timm.list_models()]
        raise unknown_name("model", str(name), known, way_out="`globalcnn list` shows all.")


def settings_for_size(name: str, height: int, width: int) -> dict[str, Any]:
    """What `create_model` needs for images of that size: some of timm's models are built for one size.

    Empty for all others, and at the model's default size.

    >>> settings_for_size("vit_tiny_patch16_224", 64, 96), settings_for_size("resnet18", 64, 96)
    ({'img_size': (64, 96)}, {})
    """
    check_model_name(name)
    cfg = None if name in _INFOS else timm.get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is None or not cfg.fixed_input_size or tuple(cfg.input_size[1:]) == (height, width):
        return {}
    return {"img_size": (height, width)}


def list_models(pattern: str = "*", *, family: str | None = None, include_timm: bool = False) -> list[str]:
    """Names of the registered models, sorted.

    pattern: shell-style, such as "*global*"; a plain part of a name is found too.
    family: only one family ("resnet", "mnist", "digits", ...).
    include_timm: timm's own models as well (they build, count and train here too).

    >>> list_models("digits_*")
    ['digits_conv', 'digits_global', 'digits_residual']
    """
    families = {info.family for info in _INFOS.values()}
    if family is not None and family not in families:
        raise unknown_name("family", family, families)
    names = [n for n, info in _INFOS.items() if family in (None, info.family)]
    if include_timm:
        names += [n for n in timm.list_models() if n not in _INFOS]
    if not any(letter in pattern for letter in "*?["):
        pattern = f"*{pattern}*"
    return sorted(fnmatch.filter(names, pattern))


def build_named(
    name: str,
    settings: Mapping[str, Any] | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
) -> nn.Module:
    """The network of that name, here or in timm, with `settings` for its constructor and fresh weights.

    Raises `UserError` for an unknown name (with near ones) or a setting that the model does not take.
    """
    check_model_name(name)
    given = dict(settings or {})
    _check_taken(name, given)
    chosen = {k: v for k, v in (("num_classes", num_classes), ("in_chans", in_chans)) if v is not None}
    try:
        model = timm.create_model(name, **{**given, **chosen})
    except TypeError as error:
        if not any(words in str(error) for words in ("unexpected keyword argument", "multiple values for")):
            raise
        raise UserError(
            f"model {name!r} does not take one of the settings {sorted({**given, **chosen})}: {error}"
        ) from error
    return stamped(model, name, given)


def fresh(
    name: str,
    settings: Mapping[str, Any],
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
) -> nn.Module:
    """As `build_named`, without an effect on PyTorch's random numbers."""
    with torch.random.fork_rng(devices=[]):
        return build_named(name, settings, num_classes=num_classes, in_chans=in_chans)


def _check_taken(name: str, settings: Mapping[str, Any]) -> None:
    """A `UserError` for a setting that a network of this library does not take, with those that it does."""
    own = settings_of(name)
    if own is None:
        if SCHEME in settings:
            raise UserError(f"model {name!r} has no Global layers, so it takes no scheme")
        return
    for setting in settings:
        if setting in own or setting in NOT_SETTINGS or setting in OF_TIMM:
            continue
        near = near_names(setting, own)
        raise UserError(
            f"model {name!r} does not take the setting {setting!r}"
            + (f" (near: {', '.join(near)})" if near else "")
            + f"; it takes {', '.join(sorted(own))}"
        )


def stamped(model: nn.Module, name: str, settings: Mapping[str, Any]) -> nn.Module:
    """`model`, which now knows by which name and settings it was built (see `source.source_of`)."""
    own = {k: v for k, v in settings.items() if k not in NOT_SETTINGS}
    setattr(model, STAMP, BuiltByName(name, own))
    return model


def settings_of(name: str) -> tuple[str, ...] | None:
    """The settings that a network of this library takes besides num_classes and in_chans; None for timm's."""
    if name not in _INFOS:
        return None
    build = _BUILDERS[name]
    parameters = inspect.signature(build).parameters.values()
    bound = set(build.keywords) if isinstance(build, partial) else set()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in NOT_SETTINGS]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        names += [n for n in HEAD_SETTINGS if n not in names]
    names.append(SCHEME)
    return tuple(n for n in names if n not in bound or n in ("pde", "diffusivity", "bias"))
