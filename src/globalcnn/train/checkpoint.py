"""Checkpoints: weights as safetensors with a description inside."""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..errors import UserError
from ..files import written_aside
from ..models import create_model

FORMAT = "globalcnn-weights-1"


@dataclass(frozen=True)
class Description:
    """What a weights file says of itself: enough to build the network and to feed it.

    model: registered name; num_classes, in_chans, image_size (H, W): what it was trained for; classes: their
    names; mean, std: of the normalised input; settings: further constructor arguments.
    """

    model: str
    num_classes: int
    in_chans: int
    image_size: tuple[int, int]
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The network, with fresh weights."""
        return create_model(self.model, num_classes=self.num_classes, in_chans=self.in_chans, **self.settings)

    def misfits(self, num_classes: int, in_chans: int) -> list[str]:
        """In words, where this does not fit data of `num_classes` and `in_chans`."""
        words = []
        if self.num_classes != num_classes:
            words.append(f"it has {self.num_classes} classes and the data {num_classes}")
        if self.in_chans != in_chans:
            words.append(f"it reads {self.in_chans} channels and the data has {in_chans}")
        return words


def save_weights(path: Path, weights: dict[str, Tensor], description: Description) -> None:
    """Write weights and description to a safetensors file, atomically."""
    tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in weights.items()}
    content = save(tensors, {"format": FORMAT, "description": json.dumps(asdict(description))})
    with written_aside(path) as part:
        part.write_bytes(content)


def load_weights(path: Path) -> tuple[dict[str, Tensor], Description | None]:
    """Read a safetensors file; the description is None if another program wrote it.

    Raises `UserError` for a file that is missing, truncated, or of another format. Nothing in it is executed.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(_not_weights(path, error)) from error
    if metadata.get("format") != FORMAT:
        return weights, None
    try:
        values = json.loads(metadata["description"])
        tuples = ("image_size", "classes", "mean", "std")
        fields: dict[str, Any] = {k: tuple(v) if k in tuples else v for k, v in values.items()}
        return weights, Description(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the description inside {str(path)!r} is damaged: {error}") from error


def _not_weights(path: Path, error: Exception) -> str:
    with path.open("rb") as opened:
        start = opened.read(16)
    if zipfile.is_zipfile(path) or start[:1] == b"\x80":
        return (
            f"{str(path)!r} is a pickle file, which can run code when it is opened, so it is not loaded; "
            "weights here are safetensors files (see `globalcnn train`)"
        )
    return f"{str(path)!r} is not a whole safetensors file (truncated, damaged or of another format): {error}"


def find_weights(path: Path) -> Path:
    """The weights that `path` means: a file itself; of a run folder, its best weights, else its last."""
    if not path.is_dir():
        return path
    for name in ("best.safetensors", "last.safetensors"):
        if (path / name).is_file():
            return path / name
    raise UserError(f"the folder {str(path)!r} holds no best.safetensors and no last.safetensors")


def load_model(path: Path, *, model: str | None = None) -> tuple[nn.Module, Description]:
    """Build the network that a checkpoint (file or run folder) describes and load its weights, in eval mode.

    model: the name that it must be; for a file without description it says what to build.
    """
    file = find_weights(path)
    weights, description = load_weights(file)
    if description is None:
        raise UserError(
            f"{str(file)!r} does not say which model it holds (it was not written by this library)"
        )
    if model is not None and model != description.model:
        raise UserError(f"{str(file)!r} holds weights of {description.model!r}, not of {model!r}")
    network = description.build()
    load_into(network, weights, file)
    return network.eval(), description


def load_into(network: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    """`load_state_dict`, with one clear error if the entries do not fit; the network is untouched then."""
    own = network.state_dict()
    wrong = [f"{k} is missing" for k in own if k not in weights]
    wrong += [f"{k} is not part of the network" for k in weights if k not in own]
    wrong += [
        f"{k} has shape {tuple(v.shape)}, not {tuple(own[k].shape)}"
        for k, v in weights.items()
        if k in own and own[k].shape != v.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"the weights in {str(file)!r} do not fit the network: {'; '.join(wrong[:5])}{more}")
    network.load_state_dict(weights)


def load_without_code(path: Path) -> Any:
    """What `torch.save` wrote to a file, as long as it is plain data; nothing in it is executed."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{str(path)!r} holds more than tensors and plain values (code, or objects of other programs), "
            "so it is not loaded"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{str(path)!r} is missing, damaged or not such a file: {first}") from error
