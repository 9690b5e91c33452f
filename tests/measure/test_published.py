"""The published table: every row is counted, what is not reproduced is said, accuracies come from results."""

from __future__ import annotations

import json

import pytest

from globalcnn.measure import published
from globalcnn.measure.published import measured_accuracies, published_table
from globalcnn.models.published import published_rows


@pytest.fixture
def few(monkeypatch):
    """Only the rows of small networks, and one that cannot be reproduced."""
    wanted = (
        "digits_global",
        "resnet_global_cifar",
        "densenet_cifar",
        "neural_ode_mnist",
        "mobilenetv2_global",
    )
    rows = tuple(r for r in published_rows() if r.model in wanted)
    monkeypatch.setattr(published, "published_rows", lambda: rows)
    return rows


def test_rows_are_the_expected_counts(few):
    rows = published_table()
    assert [(r.table, r.row, r.dataset) for r in rows] == [(r.table, r.row, r.dataset) for r in few]
    for ours, theirs in zip(rows, few, strict=True):
        assert theirs.expected == {
            "params": ours.params,
            "macs_conv_fc": ours.macs,
            "macs_paper_counting": ours.macs_paper,
            "pde_multiplies": ours.macs_total - ours.macs_paper,
        }
        assert ours.accuracy is None


def test_what_cannot_be_reproduced_is_said_with_by_how_much(few):
    notes = {(r.model, r.num_classes): r.note for r in published_table()}
    assert "Printed 1.6e+06 parameters, counted 2.952e+06 (+84.5 %)." in notes["mobilenetv2_global", 1000]
    assert "+27.3 %" in notes["mobilenetv2_global", 1000]
    assert "Printed 8e+05 parameters, counted 7.692e+05 (-3.9 %)." in notes["densenet_cifar", 10]
    assert notes["densenet_cifar", 100] == ""


def test_networks_that_solve_say_what_an_evaluation_costs(few):
    row = next(r for r in published_table() if r.model == "neural_ode_mnist")
    assert row.solve["evaluations"] == 32
    assert row.macs == row.solve["outside"] + 32 * row.solve["per_evaluation"]


def test_accuracies_come_from_results(few, tmp_path):
    summary = {
        "test_accuracy": 0.9, "epochs": 3,
        "model": {"model": "resnet_global_cifar"}, "data": {"name": "cifar10"},
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps({**summary, "epochs": 1, "test_accuracy": 0.5}))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.json").write_text(json.dumps(summary))
    comparison = {
        "results": [{"model": "digits_global", "accuracy_mean": 0.95, "seeds": [1, 2]}],
        "data": "mnist", "recipe": {"epochs": 30},
    }  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(comparison))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text("[1]")
    found = measured_accuracies(tmp_path)
    assert found["resnet_global_cifar", "CIFAR-10"] == (90.0, "Ours: 3 epochs, 1 seed(s), sub/b.json.")
    assert found["digits_global", "MNIST-10"][0] == 95.0
    rows = {(r.model, r.dataset): r for r in published_table(tmp_path)}
    assert rows["resnet_global_cifar", "CIFAR-10"].accuracy == 90.0
    assert rows["resnet_global_cifar", "CIFAR-100"].accuracy is None
    assert "sub/b.json" in rows["resnet_global_cifar", "CIFAR-10"].note
