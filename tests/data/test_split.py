"""Stratified splits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from globalcnn.data.split import checked_fraction, every_fifth, held_out
from globalcnn.errors import UserError

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(torch.tensor)


@given(labels=LABELS, fraction=st.floats(0, 0.99), seed=st.integers(0, 5))
def test_held_out_is_a_stratified_partition(labels: torch.Tensor, fraction: float, seed: int) -> None:
    try:
        kept, held = held_out(labels, fraction, seed=seed)
    except UserError:
        counts = torch.bincount(labels)
        assert round(fraction * len(labels)) == 0 or counts.max() == 1
        return
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())
    for label in labels.unique().tolist():
        count, of_class = int((labels == label).sum()), int((labels[held] == label).sum())
        assert abs(of_class - fraction * count) <= 1.000001
        assert of_class < count
    wanted = round(fraction * len(labels))
    assert len(held) == wanted or len(held) < wanted  # fewer only where classes kept their last image


def test_held_out_takes_exactly_the_fraction_of_even_classes() -> None:
    labels = torch.arange(10).repeat_interleave(50)
    _, held = held_out(labels, 0.1, seed=0)
    assert torch.bincount(labels[held]).tolist() == [5] * 10
    assert len(held_out(torch.arange(1000) % 7, 0.29, seed=0)[1]) == 290


def test_held_out_is_drawn_by_the_seed_alone() -> None:
    labels = torch.arange(100) % 4
    first = held_out(labels, 0.2, seed=0)[1].tolist()
    torch.manual_seed(5)
    assert held_out(labels, 0.2, seed=0)[1].tolist() == first
    assert held_out(labels, 0.2, seed=1)[1].tolist() != first


def test_every_class_keeps_an_image_whatever_the_fraction() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    kept, _ = held_out(labels, math.nextafter(1, 0), seed=0)  # rounds to all six
    assert labels[kept].tolist() == [0, 1, 2]


def test_nothing_to_hold_out_is_an_error() -> None:
    with pytest.raises(UserError) as caught:
        held_out(torch.tensor([0, 1, 0]), 0.1, seed=0)
    assert str(caught.value) == (
        "validation=0.1 of 3 training images in 2 classes holds out none: use a larger fraction, or 0 for no "
        "validation split"
    )


@given(labels=LABELS)
def test_every_fifth_is_a_partition_with_tests_of_each_class(labels: torch.Tensor) -> None:
    train, test = every_fifth(labels)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(labels)))
    for label in labels.unique().tolist():
        count = int((labels == label).sum())
        assert int((labels[test] == label).sum()) == max(1, count // 5)


@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 10, float("nan"), float("inf")])
def test_fractions_out_of_range(value: float) -> None:
    with pytest.raises(UserError, match=r"it must be at least 0 and below 1, such as 0\.1"):
        checked_fraction(value)


@pytest.mark.parametrize("value", ["0.1", None, True])
def test_fractions_that_are_no_numbers(value: object) -> None:
    with pytest.raises(UserError, match=r"must be a number: a fraction such as 0.1, or 0"):
        checked_fraction(value)  # type: ignore[arg-type]
