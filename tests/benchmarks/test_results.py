"""Every figure in README's results section is the one in the files under results/."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import performance_page, results_section, row_accuracies
from globalcnn.train import Recipe

ROOT = Path(__file__).resolve().parents[2]


def test_readme_says_what_the_results_say():
    for page, section in results_section.sections().items():
        assert section in (ROOT / page).read_text(encoding="utf-8"), (
            "run: python -m benchmarks.results_section"
        )


def test_a_changed_figure_would_be_noticed(monkeypatch):
    real = results_section.read

    def changed(name):
        content = json.loads(json.dumps(real(name)))
        if name.startswith("cifar10"):
            content["test_accuracy"] += 0.001
        return content

    monkeypatch.setattr(results_section, "read", changed)
    section = results_section.sections()["docs/measurements.md"]
    assert section not in (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", sorted((ROOT / "results").rglob("*.json")), ids=lambda p: p.name)
def test_results_name_seed_versions_and_hardware(file):
    content = json.loads(file.read_text(encoding="utf-8"))
    assert "seed" in content or "seeds" in content
    assert {"torch", "python", "cpu", "threads"} <= set(content["environment"])


def row(tmp_path, name, accuracies, *, teacher=None, **recipe):
    """A file of results/rows/ with an accuracy for each seed."""
    told = Recipe().replace(**recipe).as_dict()
    runs = [
        {"seed": n, "test_accuracy": a, "epochs": told["epochs"], "recipe": told, "teacher": teacher}
        for n, a in enumerate(accuracies)
    ]
    (tmp_path / "rows" / "earlier").mkdir(parents=True, exist_ok=True)
    file = tmp_path / "rows" / f"{name}.json"
    named = file.stem.removesuffix(f"-{told['epochs']}-epochs")
    file.write_text(json.dumps({"row": named, "seeds": list(range(len(runs))), "runs": runs}))


def test_a_pair_is_compared_by_one_recipe_after_the_most_epochs_that_both_have(tmp_path, monkeypatch):
    monkeypatch.setattr(row_accuracies, "RESULTS", tmp_path)
    row(tmp_path, "ours-cifar10", [0.95], epochs=90)
    row(tmp_path, "theirs-cifar10", [0.93], epochs=60)
    assert row_accuracies.accuracies("ours", "theirs") == "-"
    row(tmp_path, "earlier/ours-cifar10-30-epochs", [0.8], epochs=30)
    row(tmp_path, "earlier/theirs-cifar10-30-epochs", [0.7], epochs=30, compile=True)
    row(tmp_path, "earlier/ours-cifar10-60-epochs", [0.9], epochs=60)
    row(tmp_path, "theirs-cifar100", [0.5], epochs=60)
    assert row_accuracies.accuracies("ours", "theirs") == "90.0 / 93.0 (cifar10, 60 epochs)"
    assert row_accuracies.accuracies("theirs", "ours") == "93.0 / 90.0 (cifar10, 60 epochs)"
    row(tmp_path, "ours-cifar100", [0.5, 0.7], epochs=60)
    assert "cifar100" not in row_accuracies.accuracies("ours", "theirs")  # other seeds
    row(tmp_path, "theirs-cifar100", [0.4, 0.5], epochs=60)
    assert row_accuracies.accuracies("ours", "theirs").endswith(", 60.0 / 45.0 (cifar100, 60 epochs)")


def test_networks_of_which_one_had_a_teacher_are_no_pair(tmp_path, monkeypatch):
    monkeypatch.setattr(row_accuracies, "RESULTS", tmp_path)
    row(tmp_path, "ours-cifar10", [0.95], epochs=60, teacher={"path": "large-cifar10"})
    row(tmp_path, "theirs-cifar10", [0.93], epochs=60)
    assert row_accuracies.accuracies("ours", "theirs") == "-"


def test_each_network_is_shown_after_its_longest_training_with_a_teacher_and_without(tmp_path, monkeypatch):
    monkeypatch.setattr(row_accuracies, "RESULTS", tmp_path)
    row(tmp_path, "resnet32_cifar-cifar10", [0.91], epochs=40)
    row(tmp_path, "earlier/resnet32_cifar-cifar10-90-epochs", [0.92], epochs=90)
    row(tmp_path, "resnet32_cifar-cifar100", [0.5, 0.6], epochs=7, teacher={"path": "large-cifar100"})
    *_, first, second = row_accuracies.reached().splitlines()
    assert first == "| `resnet32_cifar` | cifar10 | 92.00 after 90 epochs | - | 92.49 |"
    taught = "55.00 after 7 epochs, learning from `large-cifar100` (mean of 2 seeds)"
    assert second == f"| `resnet32_cifar` | cifar100 | - | {taught} | 68.6 |"


def test_no_weights_or_data_among_the_results():
    assert {p.suffix for p in (ROOT / "results").rglob("*") if p.is_file()} <= {".json", ".png", ".md"}


def test_the_performance_page_says_what_the_benchmarks_say():
    assert performance_page.section() in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8"), (
        "run: python -m benchmarks.performance_page"
    )
