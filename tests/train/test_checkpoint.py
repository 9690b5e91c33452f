"""Checkpoints say what they hold; whatever else lies at their place ends in one clear error."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from globalcnn import UserError, create_model
from globalcnn.train.checkpoint import (
    Description,
    load_into,
    load_model,
    load_weights,
    save_weights,
)
from globalcnn.train.state import load_state, save_state

ABOUT = Description("digits_conv", 10, 1, (28, 28), classes=tuple("0123456789"), mean=(0.1,), std=(0.3,))


class Bomb:
    """Would run code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.safetensors"
    save_weights(path, ABOUT.build().state_dict(), ABOUT)
    return path


def test_round_trip(tmp_path):
    model = ABOUT.build().eval()
    save_weights(tmp_path / "w.safetensors", model.state_dict(), ABOUT)
    again, about = load_model(tmp_path / "w.safetensors")
    assert about == ABOUT
    assert not again.training
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(again(x), model(x))


def test_missing(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_model(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match=r"holds no best.safetensors and no last.safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_model(saved)


def test_code_is_not_run(tmp_path):
    for name, write in {
        "a.pt": lambda p: torch.save({"weight": Bomb()}, p),
        "b.pkl": lambda p: p.write_bytes(pickle.dumps(Bomb())),
    }.items():
        write(tmp_path / name)
        with pytest.raises(UserError, match="pickle file, which can run code"):
            load_model(tmp_path / name)
    with pytest.raises(UserError, match="not a training state"):
        load_state(tmp_path / "a.pt")
    save_state(tmp_path / "c.pt", {"weight": Bomb()})
    with pytest.raises(UserError, match="code, or objects of other programs"):
        load_state(tmp_path / "c.pt")


def test_another_model(saved):
    with pytest.raises(UserError, match="weights of 'digits_conv', not of 'digits_global'"):
        load_model(saved, model="digits_global")


def test_of_another_program(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="does not say which model"):
        load_model(tmp_path / "x.safetensors")


def test_a_damaged_description(tmp_path):
    save_file(
        {"x": torch.ones(2)},
        tmp_path / "x.safetensors",
        {"format": "globalcnn-weights-1", "description": "{"},
    )
    with pytest.raises(UserError, match=r"description inside .* is damaged"):
        load_weights(tmp_path / "x.safetensors")


def test_entries_that_do_not_fit_are_listed_and_nothing_is_loaded(tmp_path):
    model = create_model("digits_conv")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    wrong = {**before, "fc.weight": torch.ones(3, 3), "more": torch.ones(1)}
    del wrong["fc.bias"]
    with pytest.raises(UserError) as caught:
        load_into(model, wrong, tmp_path / "w")
    for part in ("fc.bias is missing", "more is not part", "fc.weight has shape (3, 3), not (10, 49)"):
        assert part in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
