"""A comparison trains every network with every seed by one recipe and measures all side by side."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from globalcnn import UserError
from globalcnn.measure import count
from globalcnn.train import Recipe, Silent, evaluate
from globalcnn.train.comparison import compare, judged_by

QUICK = Recipe(epochs=2, batch_size=24, validation=0.0)


def silent(label):
    return nullcontext(Silent())


def test_figures(stripes, tmp_path):
    names = ("digits_conv", "digits_global")
    entries = compare(
        names, stripes, QUICK, seeds=(1, 2), out=tmp_path, device="cpu", batches=(1, 4), reporter=silent
    )
    assert [e.model for e in entries] == list(names)
    for entry in entries:
        assert len(entry.accuracies) == 2
        again = evaluate(entry.models[1], stripes.loader("test", 16), 3)
        assert again.accuracy == entry.accuracies[1]
        assert entry.mean == pytest.approx(sum(entry.accuracies) / 2)
        assert entry.spread == pytest.approx(abs(entry.accuracies[0] - entry.accuracies[1]) / 2**0.5)
        assert entry.macs == count(entry.models[0], (1, 12, 12)).macs
        assert set(entry.latencies) == {1, 4}
        assert (tmp_path / entry.model / "seed2" / "summary.json").is_file()
        assert entry.confusions(0, 1) == tuple(e.confusions(1, 0) for e in entry.evaluations)


def test_a_finished_training_is_not_repeated(stripes, tmp_path):
    compare(("digits_conv",), stripes, QUICK, seeds=(1,), out=tmp_path, device="cpu", reporter=silent)
    before = (tmp_path / "digits_conv" / "seed1" / "state.pt").stat().st_mtime_ns
    again = compare(
        ("digits_conv",),
        stripes,
        QUICK,
        seeds=(1, 2),
        out=tmp_path,
        device="cpu",
        resume=True,
        reporter=silent,
    )
    assert (tmp_path / "digits_conv" / "seed1" / "state.pt").stat().st_mtime_ns == before
    assert len(again[0].accuracies) == 2


def test_what_is_judged():
    assert "last epoch" in judged_by(QUICK)
    assert "held-out" in judged_by(QUICK.replace(validation=0.1))


@pytest.mark.parametrize(
    ("models", "seeds", "word"),
    [
        ((), (1,), "models="),
        (("digits_conv", "digits_conv"), (1,), "each once"),
        (("digits_conv",), (), "seeds="),
        (("digits_conv",), (2**32,), "seed=4294967296"),
    ],
)
def test_arguments(stripes, models, seeds, word):
    with pytest.raises(UserError, match=word):
        compare(models, stripes, QUICK, seeds=seeds, reporter=silent)
