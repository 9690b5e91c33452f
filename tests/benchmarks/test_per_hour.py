"""The arms of the study of recipes, and what it writes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from benchmarks import per_hour, study
from globalcnn import UserError
from globalcnn.train import Recipe


def test_every_arm_is_a_recipe_that_differs_from_the_base():
    arms = per_hour.STUDY.arms
    recipes = [per_hour.STUDY.recipe(name, 5) for name in arms]
    assert all(isinstance(recipe, Recipe) and recipe.epochs == 5 for recipe in recipes)
    distinct = {
        (json.dumps(r.as_dict()), arm.objective) for r, arm in zip(recipes, arms.values(), strict=True)
    }
    assert len(distinct) == len(arms)
    with pytest.raises(UserError, match="did you mean 'muon'"):
        per_hour.STUDY.arm("mun")


def test_the_harder_share_is_what_gets_gradients():
    logits = nn.Parameter(torch.tensor([[5.0, 0.0], [0.0, 0.0], [-1.0, 0.0], [4.0, 0.0]]))

    class Table(nn.Module):
        def forward(self, rows):
            return logits[rows.long()]

    model = Table()
    objective = per_hour.HarderShare(0.5, label_smoothing=0.0)
    objective(model, torch.arange(4), torch.zeros(4, dtype=torch.long)).loss.backward()
    assert model.training
    assert logits.grad.abs().sum(1).gt(0).tolist() == [False, True, True, False]


def test_results_are_collected_and_shown_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    for arm, accuracy in (("base", 0.30), ("muon", 0.34), ("growing", 0.32)):
        folder = tmp_path / "runs" / "net-data-12" / f"{arm}-seed0"
        folder.mkdir(parents=True)
        told = {
            "arm": arm,
            "seed": 0,
            "epochs": 12,
            "validation_accuracy": [0.1, accuracy],
            "test_accuracy": 0.3,
        }
        told["environment"] = {}
        (folder / study.RESULT).write_text(json.dumps(told))
    (written,) = study.collect(per_hour.STUDY, tmp_path / "runs")
    assert [r["arm"] for r in json.loads(written.read_text())["runs"]] == ["base", "growing", "muon"]
    lines = study.as_table(per_hour.STUDY, written).splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == ["muon", "growing", "base"]
    assert "+4.00" in lines[0]
