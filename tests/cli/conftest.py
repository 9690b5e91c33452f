"""The command line, called in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from globalcnn.cli.main import main


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `globalcnn WORDS` and give its status and what it printed."""

    def run(*words: object) -> Done:
        capsys.readouterr()
        status = main([str(w) for w in words])
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz of 60 training and 30 test images, 10 x 10, three classes of brightness."""
    path = tmp_path_factory.mktemp("blobs") / "blobs.npz"
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 60), ("test", 30)):
        y = np.arange(count) % 3
        x = rng.integers(0, 60, (count, 10, 10)) + 90 * y[:, None, None]
        arrays |= {f"x_{split}": x.clip(0, 255).astype(np.uint8), f"y_{split}": y}
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def trained(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished training on the blobs."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ["train", "digits_conv", "--data", f"npz:{blobs}", "--epochs", "2", "--batch-size", "10"]
    assert main([*words, "--out", str(folder), "--device", "cpu"]) == 0
    return folder
