"""The training state is checked over all its bytes, and by kind, before anything is taken from it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from globalcnn import UserError
from globalcnn.train.state import check_state, load_state, save_state


def figures(epoch: int, **changes: Any) -> dict[str, Any]:
    """What metrics.jsonl says of an epoch."""
    usual = {"epoch": epoch, "lr": 0.1, "train_loss": 1.0, "train_accuracy": 0.5, "seconds": 1.0}
    return {**usual, "val_loss": None, "val_accuracy": None, **changes}


def state(**changes: Any) -> dict[str, Any]:
    """A state after two epochs."""
    return {"epoch": 2, "best_accuracy": None, "history": [figures(1), figures(2)], **changes}


def test_a_state_comes_back(tmp_path: Path) -> None:
    save_state(tmp_path / "state.pt", {"epoch": 3, "tensors": {"a": torch.arange(3)}})
    again = load_state(tmp_path / "state.pt")
    assert again["epoch"] == 3
    assert torch.equal(again["tensors"]["a"], torch.arange(3))


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"epoch": 3, "tensors": {"a": torch.arange(300.0)}})
    whole = path.read_bytes()
    drawn = random.Random(0)
    places = [*range(64), *(drawn.randrange(len(whole)) for _ in range(200)), len(whole) - 1]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << drawn.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            load_state(path)


@pytest.mark.parametrize("keep", [0, 10, 40, 100, -1])
def test_a_state_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"epoch": 3})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged"):
        load_state(path)


def test_a_state_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the training state"):
        load_state(tmp_path / "none.pt")


def test_a_state_that_fits_is_taken(tmp_path: Path) -> None:
    check_state(state(), epochs=2, path=tmp_path)
    check_state({"epoch": 0, "best_accuracy": None, "history": []}, epochs=2, path=tmp_path)
    history = [figures(1, val_loss=1.0, val_accuracy=0.2), figures(2, train_accuracy=None)]
    check_state(state(best_accuracy=0.2, history=history), epochs=8, path=tmp_path)


@dataclass(frozen=True)
class Wrong:
    """A state with changed entries, and what the message says of it."""

    name: str
    changes: dict[str, Any]
    says: str


WRONG = (
    Wrong("epoch is text", {"epoch": "2"}, "epoch is '2'"),
    Wrong("epoch is nothing", {"epoch": None}, "epoch is None"),
    Wrong("epoch is true", {"epoch": True}, "epoch is True"),
    Wrong("epoch is negative", {"epoch": -1}, "from 0 to 8"),
    Wrong("epoch beyond the recipe", {"epoch": 100}, "from 0 to 8"),
    Wrong("empty history", {"history": []}, "history is of 0 epochs, and 2 are finished"),
    Wrong("history is a number", {"history": 5}, "history is of 5"),
    Wrong("history of numbers", {"history": [1, 2]}, "entry 1 of its history is 1"),
    Wrong("history without keys", {"history": [figures(1), {"epoch": 2}]}, "epoch 2 of its history lacks lr"),
    Wrong("history out of order", {"history": [figures(2), figures(1)]}, "calls itself 2"),
    Wrong("loss is text", {"history": [figures(1), figures(2, train_loss="x")]}, "train_loss of epoch 2"),
    Wrong("rate is nothing", {"history": [figures(1), figures(2, lr=None)]}, "lr of epoch 2"),
    Wrong("best accuracy is text", {"best_accuracy": "0.5"}, "best accuracy is '0.5'"),
    Wrong("best accuracy is not a number", {"best_accuracy": float("nan")}, "best accuracy is nan"),
)


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.name)
def test_entries_of_wrong_kinds_are_named(tmp_path: Path, case: Wrong) -> None:
    with pytest.raises(UserError, match=case.says):
        check_state(state(**case.changes), epochs=8, path=tmp_path)
