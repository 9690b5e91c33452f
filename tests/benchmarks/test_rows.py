"""Rows of weights/: which trainings count, what the card says, which file is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import rows
from benchmarks.row_cards import How
from globalcnn import UserError, create_model, data
from globalcnn.cli.verify import accuracy_of
from globalcnn.models import shipped, weights
from globalcnn.models.weights import checksum, read_weights
from globalcnn.train import Recipe, train

ROW = "digits_conv-mnist"
RECIPE = {"epochs": 1, "ema_decay": 0.0}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A repository of results and weights with one card, and a folder of runs."""
    for name in ("weights", "results", "runs"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(rows, "ROOT", tmp_path)
    monkeypatch.setattr(rows, "load_data", lambda *args, **kwargs: few_images())
    monkeypatch.setattr(rows, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    card = {"network": "digits_conv", "data": "mnist", "seeds": [0, 1], "shipped_seed": 0, "recipe": RECIPE}
    (tmp_path / "weights" / f"{ROW}.json").write_text(json.dumps(card))
    return tmp_path


def few_images():
    """Twenty images of random pixels in ten classes."""
    images = torch.randint(0, 256, (20, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    labels = torch.arange(20) % 10
    return data.from_arrays(images, labels, x_test=images, y_test=labels, layout="NCHW")


def train_seed(runs, seed, **changes):
    """A run of that seed on a few images, as `rows.work` leaves it."""
    few = few_images()
    recipe = Recipe().replace(**RECIPE, **changes)
    torch.manual_seed(seed)
    train(create_model("digits_conv"), few, recipe, out=runs / f"{ROW}-seed{seed}", seed=seed, device="cpu")


def card_of(folders):
    return json.loads((folders / "weights" / f"{ROW}.json").read_text())


def test_a_seed_whose_run_is_gone_stays_in_the_result_and_the_shipped_weights_stay(folders):
    train_seed(folders / "runs", 0)
    rows.collect(ROW, None, folders / "runs")
    assert card_of(folders)["seeds"] == [0]
    shipped = (folders / "weights" / f"{ROW}.safetensors").read_bytes()
    later = folders / "later"
    train_seed(later, 1)
    (folders / "weights" / f"{ROW}.json").write_text(json.dumps({**card_of(folders), "seeds": [0, 1]}))
    rows.collect(ROW, None, later)
    card = card_of(folders)
    assert card["seeds"] == [0, 1]
    assert list(card["test_accuracy"]) == ["0", "1"]
    assert "mean of seeds 0, 1" in card["claim"]
    assert (folders / "weights" / f"{ROW}.safetensors").read_bytes() == shipped


def test_the_claim_is_what_verify_measures_and_not_what_the_training_said(folders):
    train_seed(folders / "runs", 0)
    summary = folders / "runs" / f"{ROW}-seed0" / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "test_accuracy": 0.995}))
    rows.collect(ROW, None, folders / "runs")
    weights = folders / "weights" / f"{ROW}.safetensors"
    measured = accuracy_of(weights, few_images(), 8, device=torch.device("cpu"))
    assert card_of(folders)["test_accuracy"] == {"0": measured}
    (run,) = json.loads((folders / "results" / "rows" / f"{ROW}.json").read_text())["runs"]
    assert (run["test_accuracy"], run["test_accuracy_in_training"]) == (measured, 0.995)
    last = json.loads(summary.with_name("metrics.jsonl").read_text().splitlines()[-1])
    assert run["train_accuracy"] == last["train_accuracy"] > 0


def test_runs_of_another_recipe_do_not_count(folders):
    train_seed(folders / "runs", 0)
    rows.collect(ROW, None, folders / "runs")
    changed = {**card_of(folders), "recipe": {**RECIPE, "lr": 0.2}}
    (folders / "weights" / f"{ROW}.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="another recipe"):
        rows.collect(ROW, None, folders / "runs")
    with pytest.raises(UserError, match="has not ended"):
        rows.collect(ROW, None, folders / "elsewhere")
    result = folders / "results" / "rows" / f"{ROW}.json"
    before = result.read_bytes()
    train_seed(folders / "later", 0, lr=0.2)
    rows.collect(ROW, None, folders / "later")
    (run,) = json.loads(result.read_text())["runs"]
    assert run["recipe"]["lr"] == 0.2
    (kept,) = (folders / "results" / "rows" / "earlier").iterdir()
    assert (kept.name, kept.read_bytes()) == (f"{ROW}-1-epochs.json", before)
    (folders / "weights" / f"{ROW}.json").write_text(json.dumps({**changed, "recipe": {**RECIPE, "lr": 0.3}}))
    train_seed(folders / "latest", 0, lr=0.3)
    rows.collect(ROW, None, folders / "latest")
    names = {path.name for path in (folders / "results" / "rows" / "earlier").iterdir()}
    assert names == {f"{ROW}-1-epochs.json", f"{ROW}-1-epochs-2.json"}
    result.write_bytes(before)  # by a recipe whose results are kept already
    rows.collect(ROW, None, folders / "latest")
    assert names == {path.name for path in (folders / "results" / "rows" / "earlier").iterdir()}


def test_a_row_learns_from_the_teacher_of_its_card_and_says_so(folders):
    torch.manual_seed(5)
    train(
        create_model("digits_conv"),
        few_images(),
        Recipe().replace(**RECIPE),
        out=folders / "other",
        device="cpu",
    )
    taught = {"path": str(folders / "other"), "views": 2}
    plain = {**card_of(folders), "seeds": [0]}
    with_teacher = {**plain, "teacher": taught}
    path = folders / "weights" / f"{ROW}.json"
    path.write_text(json.dumps(with_teacher))
    runs = folders / "runs"
    assert rows.work(ROW, None, runs, until=float("inf"), device="cpu")
    assert json.loads((runs / f"{ROW}-seed0" / "run.json").read_text())["objective"]["views"] == 2
    rows.collect(ROW, None, runs)
    assert f"1 epochs, learning from {folders / 'other'}, seed 0" in card_of(folders)["claim"]
    result = folders / "results" / "rows" / f"{ROW}.json"
    (run,) = json.loads(result.read_text())["runs"]
    found = checksum(read_weights(folders / "other")[0])
    whole = {**taught, "sha256": found, "distill": "kd", "temperature": 4.0, "teacher_weight": 0.9}
    assert run["teacher"] == card_of(folders)["teacher"] == whole
    rows.collect(ROW, None, runs)  # by a card that says it all
    path.write_text(json.dumps({**with_teacher, "teacher": {**taught, "temperature": 2.0}}))
    with pytest.raises(UserError, match=r"another teacher than its card: temperature=4\.0, not 2\.0"):
        rows.collect(ROW, None, runs)
    path.write_text(json.dumps({**with_teacher, "teacher": {**taught, "path": "another"}}))
    with pytest.raises(UserError, match="another teacher than its card: path="):
        rows.collect(ROW, None, runs)
    path.write_text(json.dumps({**with_teacher, "teacher": {**taught, "sha256": "0" * 64}}))
    with pytest.raises(UserError, match="another teacher than its card: sha256="):
        rows.collect(ROW, None, runs)
    with pytest.raises(
        UserError, match=f"weights of {folders / 'other'} is {found}, not '0+': they have become"
    ):
        rows.work(ROW, None, folders / "latest", until=float("inf"))
    path.write_text(json.dumps(plain))
    with pytest.raises(UserError, match="with a teacher, and its card names none"):
        rows.collect(ROW, None, runs)
    train_seed(folders / "later", 0)
    path.write_text(json.dumps(with_teacher))
    with pytest.raises(UserError, match="without the teacher of its card"):
        rows.collect(ROW, None, folders / "later")
    path.write_text(json.dumps({**plain, "seeds": [0]}))
    rows.collect(ROW, None, folders / "later")
    (kept,) = (folders / "results" / "rows" / "earlier").iterdir()
    assert json.loads(kept.read_text())["runs"][0]["teacher"] == whole
    path.write_text(json.dumps({**plain, "teacher": {"path": "x", "view": 2}}))
    with pytest.raises(UserError, match="teacher of the card: view"):
        rows.work(ROW, None, folders / "latest", until=float("inf"))


def test_a_row_learns_from_several_teachers(folders):
    paths = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        net, paths = create_model("digits_conv"), [*paths, str(folders / f"other{seed}")]
        train(net, few_images(), Recipe().replace(**RECIPE), out=Path(paths[-1]), device="cpu")
    card = {**card_of(folders), "seeds": [0], "teacher": {"path": paths, "views": 1}}
    path = folders / "weights" / f"{ROW}.json"
    path.write_text(json.dumps(card))
    assert rows.work(ROW, None, folders / "runs", until=float("inf"), device="cpu")
    rows.collect(ROW, None, folders / "runs")
    said = card_of(folders)
    assert f"learning from {paths[0]} and {paths[1]}, seed 0" in said["claim"]
    assert said["teacher"]["path"] == paths
    found = [checksum(read_weights(one)[0]) for one in paths]
    assert said["teacher"]["sha256"] == found
    assert found[0] != found[1]
    rows.collect(ROW, None, folders / "runs")  # by a card that says it all
    assert card_of(folders) == said
    for wanted, why in (
        (found[::-1], f"weights of {paths[0]} is {found[0]}, not {found[1]!r}"),
        (found[:1], "2 in path, and 1 in sha256"),
    ):
        path.write_text(json.dumps({**said, "teacher": {**said["teacher"], "sha256": wanted}}))
        with pytest.raises(UserError, match=why):
            rows.work(ROW, None, folders / "latest", until=float("inf"), device="cpu")
        with pytest.raises(UserError, match="another teacher than its card: sha256="):
            rows.collect(ROW, None, folders / "runs")


def test_a_row_goes_on_from_the_weights_of_its_card_and_says_so(folders):
    path, result = folders / "weights" / f"{ROW}.json", folders / "results" / "rows" / f"{ROW}.json"
    train_seed(folders / "runs", 0)
    rows.collect(ROW, None, folders / "runs")
    first = read_weights(folders / "weights" / f"{ROW}.safetensors")[0]
    card = {**card_of(folders), "seeds": [1], "shipped_seed": 1}
    recipe = {**card["recipe"], "epochs": 2, "lr": 1e-9, "weight_decay": 0.0}  # next to nothing is learned
    path.write_text(json.dumps({**card, "recipe": recipe, "init": {"path": ROW}}))
    with pytest.raises(UserError, match=r"no result of digits_conv-mnist, seed 1; there are \[0\]"):
        rows.work(ROW, None, folders / "later", until=float("inf"), device="cpu")
    path.write_text(json.dumps({**card, "recipe": recipe, "init": {"path": ROW, "seed": 0}}))
    assert rows.work(ROW, None, folders / "later", until=float("inf"), device="cpu")
    last = read_weights(folders / "later" / f"{ROW}-seed1" / "last.safetensors")[0]
    assert all(torch.allclose(first[k], last[k], atol=1e-5) for k in first if k.endswith("weight"))
    rows.collect(ROW, None, folders / "later")
    said = card_of(folders)
    assert "after the last of 2 epochs from weights of 1 earlier epochs, seed 1" in said["claim"]
    (run,) = json.loads(result.read_text())["runs"]
    assert run["init"] == said["init"]
    assert run["init"]["recipe"]["epochs"] == 1
    assert run["init"]["sha256"] == checksum(first)
    rows.collect(ROW, None, folders / "later")  # by a card that says it all
    assert card_of(folders) == said
    assert rows.work(ROW, None, folders / "latest", until=float("inf"), device="cpu")  # its start is gone
    again = read_weights(folders / "latest" / f"{ROW}-seed1-before" / "last.safetensors")[0]
    assert checksum(again) == checksum(first)
    rows.collect(ROW, None, folders / "latest")
    assert card_of(folders)["init"] == {k: v for k, v in said["init"].items() if k != "test_accuracy"}
    assert not (folders / "results" / "rows" / "earlier" / f"{ROW}-2-epochs.json").exists()
    other = {**said["init"], "recipe": {**said["init"]["recipe"], "lr": 0.5}}
    path.write_text(json.dumps({**said, "init": other}))
    with pytest.raises(UserError, match="initial weights were trained by another recipe or teacher"):
        rows.collect(ROW, None, folders / "later")
    path.write_text(json.dumps({k: v for k, v in said.items() if k != "init"}))
    with pytest.raises(UserError, match="trained with initial weights, and its card names none"):
        rows.collect(ROW, None, folders / "later")


def test_initial_weights_that_are_a_teacher_too_are_trained_again_for_both(folders, monkeypatch):
    path = folders / "weights" / f"{ROW}.json"
    train_seed(folders / "runs", 0)
    rows.collect(ROW, None, folders / "runs")
    first = folders / "weights" / f"{ROW}.safetensors"
    monkeypatch.setattr(shipped, "weights_folder", lambda: folders / "weights")
    monkeypatch.setattr(shipped, "shipped_file", lambda name: first if name == ROW else None)
    monkeypatch.setattr(weights, "shipped_file", lambda name: first if name == ROW else None)
    digest = checksum(read_weights(first)[0])
    card = {**card_of(folders), "seeds": [1], "shipped_seed": 1}
    card |= {"init": {"path": ROW, "seed": 0}, "teacher": {"path": [ROW, ROW], "views": 1}}
    path.write_text(json.dumps(card))
    assert rows.work(ROW, None, folders / "later", until=float("inf"), device="cpu")
    rows.collect(ROW, None, folders / "later")
    said = card_of(folders)
    assert (said["teacher"]["path"], said["teacher"]["sha256"]) == ([ROW, ROW], [digest, digest])
    assert checksum(read_weights(first)[0]) != digest
    assert rows.work(ROW, None, folders / "latest", until=float("inf"), device="cpu")
    a, b = (
        read_weights(folders / name / f"{ROW}-seed1" / "last.safetensors")[0] for name in ("later", "latest")
    )
    assert checksum(a) == checksum(b)
    rows.collect(ROW, None, folders / "latest")
    assert card_of(folders)["teacher"] == said["teacher"]
    path.write_text(json.dumps({**said, "teacher": {**said["teacher"], "sha256": ["0" * 64] * 2}}))
    with pytest.raises(UserError, match="they have become others"):
        rows.work(ROW, None, folders / "last", until=float("inf"), device="cpu")


def test_a_training_does_not_go_on_after_its_initial_weights_have_become_others(folders):
    path = folders / "weights" / f"{ROW}.json"
    train_seed(folders / "runs", 0)
    rows.collect(ROW, None, folders / "runs")
    recipe = {**card_of(folders)["recipe"], "epochs": 2}
    init = {"path": ROW, "seed": 0}
    path.write_text(json.dumps({**card_of(folders), "seeds": [1], "recipe": recipe, "init": init}))
    later = folders / "later"
    assert not rows.work(ROW, None, later, until=0.0, device="cpu")  # the time is over after an epoch
    train_seed(folders / "others", 0, lr=0.5)
    other = folders / "others" / f"{ROW}-seed0" / "last.safetensors"
    (folders / "weights" / f"{ROW}.safetensors").write_bytes(other.read_bytes())
    with pytest.raises(UserError, match=r"seed 1: it began from weights with sha256 .* means .* now: take"):
        rows.work(ROW, None, later, until=float("inf"), device="cpu")


@pytest.mark.parametrize(
    ("init", "why"),
    [
        ({}, "path=None is no row"),
        ({"path": "other-mnist"}, "path='other-mnist' is no row"),
        ({"path": ROW, "seed": 5}, "seed 5"),
        ({"path": ROW, "sha256": "0"}, "sha256 of the weights of digits_conv-mnist is .*, not '0'"),
    ],
)
def test_initial_weights_that_are_not_there_are_refused(folders, init, why):
    train_seed(folders / "runs", 0)
    rows.collect(ROW, None, folders / "runs")
    path = folders / "weights" / f"{ROW}.json"
    path.write_text(json.dumps({**card_of(folders), "init": init}))
    with pytest.raises(UserError, match=why):
        rows.work(ROW, None, folders / "later", until=float("inf"), device="cpu")


def test_networks_were_trained_alike_where_their_initial_weights_were_too():
    one = {"recipe": {"epochs": 3}, "init": {"path": "a-mnist", "sha256": "1", "recipe": {"epochs": 9}}}
    other = {"recipe": {"epochs": 3}, "init": {"path": "b-mnist", "sha256": "2", "recipe": {"epochs": 9}}}
    longer = {**other, "init": {**other["init"], "recipe": {"epochs": 10}}}
    assert How.of(one).alike == How.of(other).alike != How.of(longer).alike
    assert How.of(one).alike != How.of({"recipe": {"epochs": 3}}).alike


def test_a_training_says_how_far_it_is_and_goes_on_where_its_time_was_over(folders, capsys):
    path = folders / "weights" / f"{ROW}.json"
    path.write_text(json.dumps({**card_of(folders), "seeds": [0], "recipe": {**RECIPE, "epochs": 2}}))
    assert not rows.work(ROW, None, folders / "runs", until=0.0, device="cpu")
    first = capsys.readouterr().out
    assert f"{ROW}, seed 0: epoch 1" in first
    assert "the time is over; the same command goes on from here" in first
    assert rows.work(ROW, None, folders / "runs", until=float("inf"), device="cpu")
    second = capsys.readouterr().out
    assert "resumed after epoch 1" in second
    assert "epoch 2" in second


def test_a_seed_that_is_not_the_cards_is_refused(folders, monkeypatch):
    monkeypatch.setattr(rows, "load_data", lambda *args, **kwargs: None)
    with pytest.raises(UserError, match="seed 7 is not one"):
        rows.work(ROW, None, folders / "runs", until=0.0, seeds=[7])
