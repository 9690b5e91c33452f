"""Weights in files: safetensors with a card that says how the network is built and how to feed it.

A file is checked over all of its bytes before it is believed, and nothing in it is run. The card's source is
built by itself only within the limits of `consent.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import UserError, UserTypeError
from ..files import atomic_write
from .card import FORMAT, Card, card_in, card_of, make_card
from .condensed import CondensedSource, is_network_of
from .consent import check_arguments, check_numbers, require_safe
from .factories import call_factory
from .lazy import with_shapes
from .shipped import shipped_file, shipped_names
from .source import NamedSource, Source, parse_source
from .state_dicts import StateDict, fitted, load_into, state_dict_in

BEST, LAST = "best.safetensors", "last.safetensors"  # in a run folder
IN_FOLDER: Final = (BEST, LAST, "model.safetensors", "pytorch_model.bin")  # the last two as timm writes them

Model = str | Source | nn.Module | Callable[..., nn.Module]


def save_weights(path: str | Path, weights: Mapping[str, Tensor], card: Card) -> None:
    """Write weights and card to a safetensors file, atomically, with a checksum over both."""
    tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in weights.items()}
    text = json.dumps(card.to_json())
    card_of(json.loads(text), f"the card for {str(path)!r}")  # what could not be read is not written
    metadata = {"format": FORMAT, "card": text, "checksum": checksum(tensors, text)}
    content = save_tensors(tensors, metadata)
    with atomic_write(path) as part:
        part.write_bytes(content)


def checksum(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """sha256 over names, dtypes, shapes and bytes of all tensors in the order of their names, and `text`."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name}\n{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(
    path: str | Path, *, allow_nonfinite: bool = False, ema: bool | None = None
) -> tuple[StateDict, Card | None]:
    """The weights in a file, and its card: None if another program wrote it.

    A safetensors file, or a file of `torch.save` with a state dict, also under "state_dict", "model" or as a
    moving average (see `state_dicts`). ema: of both, the average. Raises `UserError` for a file that is
    missing, truncated, damaged, of another format, holds code, or has weights that are not finite numbers
    unless `allow_nonfinite`.
    """
    path = find_weights(path)
    where = repr(str(path))
    if _is_pickle(path):
        weights, card = state_dict_in(load_without_code(path), where, ema=ema), None
    else:
        weights, card = _read_safetensors(path, where)
        if ema is not None and card is not None and ema:
            raise UserError(f"{where} holds plain weights, no moving average")
    _check_plain(weights, where)
    if not allow_nonfinite:
        _check_finite(weights, where)
    return weights, card


def read_card(path: str | Path) -> Card:
    """The card of a weights file or run folder. Only the header is read, so the checksum is not checked."""
    path = find_weights(path)
    where = repr(str(path))
    with _opened(path, where) as opened:
        metadata = opened.metadata() or {}
    card = card_in(metadata, where)
    if card is None:
        raise UserError(f"{where} has no card: it does not say which network it holds")
    return card


def find_weights(path: str | Path) -> Path:
    """The weights that `path` means: a file itself; of a run folder, its best weights, else its last.

    Where there is neither, those that come with the library under that name ("network-data").
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserTypeError(f"path={path!r} must name a weights file or a run folder")
    path = Path(path)
    try:
        if path.is_dir():
            for name in IN_FOLDER:
                if (path / name).is_file():
                    return path / name
            raise UserError(f"the folder {str(path)!r} holds no {BEST} and no {LAST}")
        if path.is_file():
            with path.open("rb"):
                return path
    except OSError as error:
        raise UserError(f"cannot read {str(path)[:200]!r}: {error.strerror or error}") from error
    except ValueError as error:  # a null character
        raise UserError(f"cannot read {str(path)[:200]!r}: {error}") from error
    shipped = shipped_file(str(path))
    if shipped is not None:
        return shipped
    raise UserError(
        f"there is no checkpoint {str(path)[:200]!r}: it is no file or run folder, and the weights that come "
        f"with the library are {', '.join(shipped_names()) or 'none here'}"
    )


def load(path: str | Path, *, model: Model | None = None, trust_source: bool = False) -> nn.Module:
    """The network in a weights file or run folder, in eval mode.

    path: also the name of weights that come with the library, such as "resnet32_cifar-cifar10".
    model: what builds it, where the file does not say or is not to be believed: a module (loaded into and
        returned), a function that builds one, a name, "package.module:function" or "my_net.py:build". For a
        condensed network also its base, which is then condensed (a module in place).
    trust_source: build also what a stranger's file may not name, such as a function of any module.

    Raises `UserError` for a file that is damaged, does not fit, or names what is not built without consent.

    >>> import tempfile, globalcnn
    >>> net = globalcnn.create_model("digits_global").eval()
    >>> with tempfile.TemporaryDirectory() as d:
    ...     save_weights(f"{d}/w.safetensors", net.state_dict(), make_card(net, image_size=(28, 28)))
    ...     again = globalcnn.load(f"{d}/w.safetensors")
    >>> x = torch.randn(2, 1, 28, 28)
    >>> torch.equal(again(x), net(x))
    True
    """
    return load_with_card(path, model=model, trust_source=trust_source)[0]


def load_with_card(
    path: str | Path,
    *,
    model: Model | None = None,
    trust_source: bool = False,
    allow_nonfinite: bool = False,
    ema: bool | None = None,
) -> tuple[nn.Module, Card]:
    """As `load`, with the card. A file without one needs `model`; its card is then read off the network.

    allow_nonfinite: load weights that are NaN or infinite too; ema: see `read_weights`.
    """
    file = find_weights(path)
    where = repr(str(file))
    weights, card = read_weights(file, allow_nonfinite=allow_nonfinite, ema=ema)
    if isinstance(model, nn.Module):
        network = model if card is None else _condensed(model, card, weights)
    elif model is not None:
        network = _build_as_asked(model, card, weights, where, ema=ema)
    elif card is None:
        raise UserError(
            f"{where} does not say which model it holds (it was not written by this library): give model="
        )
    else:
        require_safe(card.source, where, folder=file.parent, trusted=trust_source)
        network = build_bounded(card, weights, where)
    if card is not None:
        with_shapes(network, card.in_chans, card.image_size)
    load_into(network, weights, where, ema=ema)
    if card is None:
        config = getattr(network, "pretrained_cfg", None) or {}
        size = tuple(config.get("input_size", (3, 224, 224))[1:])
        card = make_card(network, image_size=size, mean=config.get("mean", ()), std=config.get("std", ()))
    return network.eval(), card


def _build_as_asked(
    model: str | Source | Callable[..., nn.Module],
    card: Card | None,
    weights: StateDict,
    where: str,
    *,
    ema: bool | None,
) -> nn.Module:
    """The network that the user names, with the numbers and settings of the card where there is one."""
    if card is not None and isinstance(card.source, CondensedSource):
        base = replace(card, source=card.source.base)
        return _condensed(_build_as_asked(model, base, weights, where, ema=ema), card, weights)
    numbers: dict[str, Any] = (
        {} if card is None else {"num_classes": card.num_classes, "in_chans": card.in_chans}
    )
    if not isinstance(model, (str, Source)):
        if not callable(model):
            raise UserTypeError(f"model={model!r} must be a module, a function that builds one, or a name")
        return call_factory(model, getattr(model, "__qualname__", repr(model)), **numbers)
    source = parse_source(model) if isinstance(model, str) else model
    if card is None:
        return _build_by_shapes(source, weights, where, ema=ema)
    if not isinstance(model, str):
        return source.build(**numbers)
    told = card.source
    if isinstance(source, NamedSource):
        return NamedSource(source.name, settings_on_card(card, source.name, where)).build(**numbers)
    arguments = getattr(told, "arguments", None) if told.label == source.label else None
    if arguments:
        check_arguments(arguments, told.label, where)
        source = parse_source(model, settings=arguments)
    return source.build(**numbers)


def _condensed(network: nn.Module, card: Card, weights: StateDict) -> nn.Module:
    """`network` with the blocks of the card's condensed source in place, unless it has them already."""
    if not isinstance(card.source, CondensedSource) or is_network_of(network, weights):
        return network
    return card.source.applied_to(network)


def _build_by_shapes(source: Source, weights: StateDict, where: str, *, ema: bool | None) -> nn.Module:
    """The network of a source with as many classes and channels as weights without a card have."""
    network = source.build()
    own = network.state_dict()
    found = fitted(weights, own, where, ema=ema)
    config = getattr(network, "pretrained_cfg", None) or {}
    head, first = (f"{config.get(k)}.weight" for k in ("classifier", "first_conv"))
    numbers = {}
    if head in found and head in own and found[head].shape[:1] != own[head].shape[:1]:
        numbers["num_classes"] = found[head].shape[0]
    if first in found and first in own and found[first].shape[1:2] != own[first].shape[1:2]:
        numbers["in_chans"] = found[first].shape[1]
    return source.build(**numbers) if numbers else network


def build_bounded(card: Card, weights: Mapping[str, Tensor], where: str) -> nn.Module:
    """The network of a card, as long as it stays within a few times the size of its weights.

    What goes wrong inside a constructor (settings of the wrong kind) is a `UserError` too.
    """
    check_numbers(card.num_classes, card.in_chans, where)
    with _Budget(weights, where):
        base = card.source.base if isinstance(card.source, CondensedSource) else card.source
        given = getattr(base, "settings", None) or getattr(base, "arguments", None) or base is not card.source
        if given or card.num_classes * card.in_chans > 10_000:
            try:
                with torch.device("meta"):  # first without memory
                    card.build()
            except Exception as error:
                # a constructor that looks at values cannot run without them; it is counted below
                if isinstance(error, UserError) or "meta" not in str(error):
                    raise _not_built(card, where, error) from error
        try:
            return card.build()
        except Exception as error:
            raise _not_built(card, where, error) from error


def _not_built(card: Card, where: str, error: Exception) -> UserError:
    words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {str(error)[:200]}"
    return UserError(
        f"the network that the card in {where} describes, {card.label!r}, cannot be built: {words}"
    )


class _Budget:
    """While it is entered, modules may register only so many parameters; else `UserError`."""

    def __init__(self, weights: Mapping[str, Tensor], where: str) -> None:
        self.where = where
        # heads that are replaced, and the same network built twice
        self.numbers = 8 * sum(v.numel() for v in weights.values()) + 10**7
        self.tensors = 8 * len(weights) + 1000

    def __enter__(self) -> None:
        register = nn.modules.module.register_module_parameter_registration_hook
        self.handle = register(self._count)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _count(self, module: nn.Module, name: str, parameter: Tensor | None) -> None:
        self.tensors -= 1
        self.numbers -= 0 if parameter is None or is_lazy(parameter) else parameter.numel()
        if self.tensors < 0 or self.numbers < 0:
            raise UserError(
                f"{self.where}: the network that its card describes is many times larger than its weights, "
                "so it is not built"
            )


def weights_for_timm(name: str, path: str | Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """(entries of timm's pretrained_cfg that load a file into the network called `name`, its settings)."""
    where = repr(str(path))
    weights, card = read_weights(path)
    if card is None:
        own = NamedSource(name).build().state_dict()
        return {"state_dict": fitted(weights, own, where)}, {}
    settings = settings_on_card(card, name, where)
    entries = {
        "state_dict": weights,
        "num_classes": card.num_classes,
        "input_size": (card.in_chans, *card.image_size),
    }
    return entries, settings


def settings_on_card(card: Card, name: str, where: str) -> Mapping[str, Any]:
    """The settings of the network called `name` on a card; a `UserError` if it is a card of another one."""
    told = card.source
    if not isinstance(told, NamedSource) or told.name != name:
        raise UserError(f"{where} holds weights of {told.label!r}, not of {name!r}")
    require_safe(told, where)
    check_numbers(card.num_classes, card.in_chans, where)
    return told.settings


def _read_safetensors(path: Path, where: str) -> tuple[StateDict, Card | None]:
    with _opened(path, where) as opened:
        metadata = opened.metadata() or {}
        try:
            weights = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
            raise UserError(_not_safetensors(where, error)) from error
    card = card_in(metadata, where)
    sealed = card is not None and metadata["format"] == FORMAT
    if sealed and metadata.get("checksum") != checksum(weights, metadata["card"]):
        raise UserError(f"{where} is damaged: its content is not what was written (the checksum differs)")
    return weights, card


def _opened(path: Path, where: str) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise UserError(_not_safetensors(where, error)) from error


def _not_safetensors(where: str, error: BaseException) -> str:
    return (
        f"{where} is not a whole safetensors file (truncated, damaged or of another format): "
        f"{str(error)[:200]}"
    )


def _check_plain(weights: Mapping[str, Tensor], where: str) -> None:
    """Tensors are dense numbers in memory, as a state dict has them."""
    for name, value in weights.items():
        plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
        if not plain or value.is_quantized or value.device.type != "cpu":
            kind = f"{type(value).__name__}, {value.layout}, on {value.device.type}"
            raise UserError(f"{where}: {name} is no dense tensor ({kind}), so it is not loaded")


def _check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    wrong = [k for k, v in weights.items() if not _is_finite(v)]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"{where} holds weights that are not finite numbers (NaN or infinity), in {', '.join(wrong[:5])}"
            f"{more}: a training that diverged; allow_nonfinite=True of load_with_card reads them anyway"
        )


def _is_finite(value: Tensor) -> bool:
    if not (value.is_floating_point() or value.is_complex()):
        return True
    wide = value.float() if value.is_floating_point() and value.itemsize < 4 else value
    return bool(wide.isfinite().all())


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as opened:
        start = opened.read(24)
    if start == b"globalcnn-training-state":
        raise UserError(f"{str(path)!r} is a training state of globalcnn, not a file of weights")
    # safetensors begin with the length of a header in 8 bytes, then "{"
    return start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:9] != b"{")


def load_without_code(path: str | os.PathLike[str] | Any) -> Any:
    """What `torch.save` wrote to a file (or a file object), as long as it is plain data; nothing is run."""
    name = repr(str(path)) if isinstance(path, (str, os.PathLike)) else "the file"
    try:
        if not isinstance(path, (str, os.PathLike)):
            return torch.load(path, map_location="cpu", weights_only=True)
        with open(path, "rb") as opened:  # by a name torch.load would choose a reader by the suffix
            return torch.load(opened, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{name} is a pickle file that holds more than tensors and plain values (code, or objects of "
            "other programs), so it is not loaded"
        ) from error
    except Exception as error:  # a damaged pickle ends in almost any of them
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{name} is missing, damaged or not such a file: {first[:200]}") from error
