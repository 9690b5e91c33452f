"""A full disk ends in one line and status 2, whichever file was being written, and the run can be resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from globalcnn.models.weights import read_weights
from tests.full_disk import no_file_above


def one_line(done: Any, part: str) -> None:
    assert done.status == 2
    assert len(done.err.splitlines()) == 1, done.err
    assert part in done.err


@pytest.mark.parametrize("size", [0, 40, 200, 2500, 4000, 5500, 9000, 20_000])
def test_a_training(run: Any, blobs: Path, trained: Path, tmp_path: Path, size: int) -> None:
    """The sizes end in run.json, log.txt, TensorBoard's events, weights, the state, and the picture."""
    words = ["train", "digits_conv", "--data", f"npz:{blobs}", "--epochs", "2", "--batch-size", "10"]
    words += ["--device", "cpu", "--out", str(tmp_path / "run")]
    with no_file_above(size):
        one_line(run(*words), "cannot write")
    going_on = (tmp_path / "run" / "run.json").is_file()
    assert run(*words, *(["--resume"] if going_on else [])).status == 0
    one, other = (read_weights(folder / "last.safetensors")[0] for folder in (trained, tmp_path / "run"))
    assert all((one[k] == other[k]).all() for k in one)
    assert not [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]


def test_results_that_were_there_stay(run: Any, trained: Path, tmp_path: Path) -> None:
    words = ("eval", trained, "--device", "cpu", "--json", tmp_path / "e.json", "--overwrite")
    assert run(*words).status == 0
    before = json.loads((tmp_path / "e.json").read_text())
    with no_file_above(100):
        one_line(run(*words), "e.json")
    assert json.loads((tmp_path / "e.json").read_text()) == before


def test_a_comparison(run: Any, blobs: Path, tmp_path: Path) -> None:
    words = ["compare", "digits_conv", "--data", f"npz:{blobs}", "--epochs", "1", "--batch-size", "10"]
    words += ["--seeds", "0", "--device", "cpu", "--out", str(tmp_path / "c")]
    with no_file_above(4000):
        one_line(run(*words), "cannot write")
    assert run(*words, "--resume").status == 0
