"""A run folder belongs to one training at a time, survives kills and full disks, and is found again."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from globalcnn import UserError
from globalcnn.data import DataSource
from globalcnn.models.weights import read_weights
from globalcnn.train import Recipe, Silent
from globalcnn.train.folder import OURS
from globalcnn.train.lock import LOCK, FolderLock
from tests.full_disk import no_file_above

from .conftest import train_net

MODEL = "digits_conv"
QUICK = Recipe(epochs=2, batch_size=24, crop_padding=0, validation=0.25)


class Killed(Exception):
    """Simulates a kill."""


class KilledAtTheStart(Silent):
    """Kills the training between run.json and the first state."""

    def started(self, about: dict[str, Any], resumed_at: int) -> None:
        raise Killed


def go(data: DataSource, out: Path, recipe: Recipe = QUICK, **how: Any) -> Any:
    """A training in `out`."""
    return train_net(MODEL, data, recipe, out=out, seed=1, device="cpu", **how)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_weights(run / "last.safetensors")[0]


def same(a: Path, b: Path) -> bool:
    return all(torch.equal(v, weights(b)[k]) for k, v in weights(a).items())


@pytest.fixture(scope="module")
def whole(stripes: DataSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    go(stripes, folder)
    return folder


@pytest.mark.parametrize(
    "how", [{"resume": True}, {}, {"overwrite": True}], ids=["resume", "fresh", "overwrite"]
)
def test_killed_before_the_first_state(
    stripes: DataSource, whole: Path, tmp_path: Path, how: dict[str, bool]
) -> None:
    with pytest.raises(Killed):
        go(stripes, tmp_path / "run", reporter=KilledAtTheStart())
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["run.json"]
    go(stripes, tmp_path / "run", **how)
    assert same(tmp_path / "run", whole)


def test_killed_before_the_first_state_with_other_settings(stripes: DataSource, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        go(stripes, tmp_path / "run", reporter=KilledAtTheStart())
    with pytest.raises(UserError, match=r"lr was 0\.03 and is now 0\.2"):
        go(stripes, tmp_path / "run", QUICK.replace(lr=0.2), resume=True)


def test_resume_needs_a_run(stripes: DataSource, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no run folder .*none.* without --resume"):
        go(stripes, tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is empty: there is no run to resume; without --resume"):
        go(stripes, tmp_path / "empty", resume=True)


def test_one_training_at_a_time(stripes: DataSource, tmp_path: Path) -> None:
    said = []

    class Second(Silent):
        def stepped(self, progress: Any) -> None:
            with pytest.raises(UserError) as caught:
                go(stripes, tmp_path / "run", resume=True)
            said.append(str(caught.value))

    go(stripes, tmp_path / "run", QUICK.replace(epochs=1), reporter=Second())
    assert said
    assert all(f"process {os.getpid()} on" in text for text in said)
    assert not (tmp_path / "run" / LOCK).exists()
    go(stripes, tmp_path / "run", QUICK.replace(epochs=1), resume=True)


def test_a_lock_left_by_a_kill_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("process 1 on elsewhere")
    with FolderLock(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()}"):
        FolderLock(tmp_path)
    FolderLock(tmp_path).release()


def test_files_left_aside_are_removed_by_the_next_start(
    stripes: DataSource, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    left = [".state.ab12cd_x.pt", ".last.00000000.safetensors", ".curves.xxxxxxxx.png", ".run.yyyyyyyy.json"]
    others = [".state.pt", ".notes.ab12cd_x.pt", "last.ab12cd_x.safetensors", ".state.ab12.pt"]
    for name in (*left, *others):
        (run / name).write_text("half")
    go(stripes, run, resume=True)
    assert not [name for name in left if (run / name).exists()]
    assert [name for name in others if (run / name).exists()] == others


def test_a_folder_with_left_files_alone_is_new(stripes: DataSource, tmp_path: Path) -> None:
    (tmp_path / ".state.ab12cd_x.pt").write_text("half")
    (tmp_path / LOCK).write_text("")
    go(stripes, tmp_path, QUICK.replace(epochs=1))
    assert {p.name for p in tmp_path.iterdir()} <= set(OURS)


@pytest.mark.parametrize("size", [0, 100, 1500, 3000, 4000, 6000])
def test_a_full_disk_at_the_start(stripes: DataSource, whole: Path, tmp_path: Path, size: int) -> None:
    """One error; with space again the run continues to the same weights."""
    assert (whole / "state.pt").stat().st_size > 6000
    run = tmp_path / "run"
    with no_file_above(size), pytest.raises(UserError, match="cannot write"):
        go(stripes, run)
    assert not [p.name for p in run.iterdir() if p.name.startswith(".")]
    if (run / "run.json").is_file():
        json.loads((run / "run.json").read_text())
        go(stripes, run, resume=True)
    else:
        go(stripes, run)
    assert same(run, whole)


class FullAfter(Silent):
    """Fills the disk when an epoch begins."""

    def stepped(self, progress: Any) -> None:
        if progress.epoch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_disk_that_becomes_full(stripes: DataSource, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with no_file_above(10**9), pytest.raises(UserError, match="cannot write"):
        go(stripes, run, reporter=FullAfter())
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    go(stripes, run, resume=True)
    assert same(run, whole)


@pytest.mark.parametrize("schedule", ["constant", "exponential", "step"])
def test_more_epochs_where_the_schedule_permits(stripes: DataSource, tmp_path: Path, schedule: str) -> None:
    recipe = QUICK.replace(schedule=schedule, milestones=(1,) if schedule == "step" else (), epochs=1)
    go(stripes, tmp_path / "grown", recipe)
    go(stripes, tmp_path / "grown", recipe.replace(epochs=3), resume=True)
    go(stripes, tmp_path / "straight", recipe.replace(epochs=3))
    assert same(tmp_path / "grown", tmp_path / "straight")
    assert json.loads((tmp_path / "grown" / "run.json").read_text())["recipe"]["epochs"] == 3


def test_more_epochs_where_every_rate_depends_on_them(stripes: DataSource, whole: Path) -> None:
    with pytest.raises(UserError, match=r"epochs was 2 and is now 3, and what happens .*--init RUN"):
        go(stripes, whole, QUICK.replace(epochs=3), resume=True)


def test_a_run_of_a_version_without_a_field_of_the_recipe_goes_on(
    stripes: DataSource, whole: Path, tmp_path: Path
) -> None:
    """Then the field had no effect, which is its default."""
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    about = json.loads(path.read_text())
    del about["recipe"]["first_image_size"]
    path.write_text(json.dumps(about))
    go(stripes, tmp_path / "run", resume=True)
    assert same(tmp_path / "run", whole)


def test_a_run_json_of_something_else(stripes: DataSource, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for text, word in (
        ("[1, 2]", "does not describe a run"),
        ("{", "not a JSON file"),
        ("[" * 100_000, "not a JSON"),
    ):
        (tmp_path / "run" / "run.json").write_text(text)
        with pytest.raises(UserError, match=word):
            go(stripes, tmp_path / "run", resume=True)


def test_a_damaged_state_is_refused(stripes: DataSource, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    state = tmp_path / "run" / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 4
    state.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        go(stripes, tmp_path / "run", resume=True)


def test_too_long_a_name(stripes: DataSource, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="File name too long"):
        go(stripes, tmp_path / ("x" * 300))
