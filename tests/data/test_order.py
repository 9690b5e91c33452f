"""Batches as a function of (seed, epoch, rank)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from globalcnn.data.order import Order, derived_seed
from globalcnn.errors import UserError

SHAPES = {"count": st.integers(1, 60), "batch_size": st.integers(1, 20), "world_size": st.integers(1, 7)}


def ranks(world_size: int, **settings: Any) -> list[Order]:
    return [Order(rank=rank, world_size=world_size, **settings) for rank in range(world_size)]


@given(**SHAPES)
def test_in_evaluation_the_shards_are_disjoint_and_complete(
    count: int, batch_size: int, world_size: int
) -> None:
    orders = ranks(world_size, count=count, batch_size=batch_size)
    seen = torch.cat([torch.cat([*order.batches(0), torch.arange(0)]) for order in orders])
    assert sorted(seen.tolist()) == list(range(count))
    assert max(order.images for order in orders) - min(order.images for order in orders) <= 1


@given(**SHAPES, drop_last=st.booleans(), epoch=st.integers(0, 3))
def test_in_training_all_ranks_get_equally_much(
    count: int, batch_size: int, world_size: int, drop_last: bool, epoch: int
) -> None:
    settings = {"count": count, "batch_size": batch_size, "shuffle": True, "drop_last": drop_last}
    try:
        orders = ranks(world_size, **settings)
    except UserError:
        with pytest.raises(UserError):  # no rank starts alone
            Order(rank=world_size - 1, world_size=world_size, **settings)  # type: ignore[arg-type]
        return
    sizes = [[len(batch) for batch in order.batches(epoch)] for order in orders]
    assert sizes[0]
    assert all(size == sizes[0] for size in sizes)
    for order, size in zip(orders, sizes, strict=True):
        assert len(order) == len(size)
        assert order.images == sum(size)
    assert 1 not in sizes[0] or batch_size == 1


@given(count=st.integers(2, 60), world_size=st.integers(1, 7), batch_size=st.integers(1, 9))
def test_in_training_nothing_is_left_out_but_a_last_single_image(
    count: int, world_size: int, batch_size: int
) -> None:
    share = -(-count // world_size)
    if share == 1:
        batch_size = 1
    orders = ranks(world_size, count=count, batch_size=batch_size, shuffle=True)
    seen = torch.cat([order.positions(0) for order in orders])
    left_out = world_size if batch_size > 1 and share % batch_size == 1 else 0
    assert len(seen) == world_size * share - left_out
    assert len(seen.unique()) >= count - left_out
    assert torch.bincount(seen).max() <= -(-world_size * share // count)


def test_the_epoch_the_seed_and_nothing_else_make_the_order() -> None:
    def positions(epoch: int, *, seed: int = 3) -> list[int]:
        return Order(count=50, batch_size=8, shuffle=True, seed=seed).positions(epoch).tolist()

    first = positions(0)
    torch.manual_seed(99)
    assert positions(0) == first
    assert positions(1) != first
    assert positions(0, seed=4) != first
    assert sorted(positions(1)) == list(range(50))


def test_the_order_does_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    Order(count=50, batch_size=8, shuffle=True).positions(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_are_the_same_on_every_machine() -> None:
    assert derived_seed(0, 0, "order") == 2971486031126333285
    assert derived_seed(1, 23) != derived_seed(12, 3)


def test_a_last_training_batch_of_one_image_is_left_out() -> None:
    assert [len(batch) for batch in Order(count=9, batch_size=4, shuffle=True).batches(0)] == [4, 4]
    assert [len(batch) for batch in Order(count=9, batch_size=4).batches(0)] == [4, 4, 1]
    assert [len(batch) for batch in Order(count=3, batch_size=1, shuffle=True).batches(0)] == [1, 1, 1]


def test_a_batch_larger_than_the_data_is_one_short_batch() -> None:
    assert [len(batch) for batch in Order(count=3, batch_size=100, shuffle=True).batches(0)] == [3]


def test_numbers_of_numpy_will_do() -> None:
    order = Order(count=5, batch_size=np.int64(2))  # type: ignore[arg-type]
    assert [len(batch) for batch in order.batches(0)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 is too small: it must be a whole number of at least 1"),
        ({"batch_size": 2.5}, "batch_size=2.5 is a float: it must be a whole number of at least 1"),
        ({"batch_size": True}, "batch_size=True is a bool"),
        ({"batch_size": "8"}, "batch_size='8' is a str"),
        ({"seed": 0.5}, "seed=0.5 is a float: it must be a whole number"),
        ({"rank": 2, "world_size": 2}, "rank=2 must be below world_size=2"),
        ({"rank": -1}, "rank=-1 is too small"),
        ({"world_size": 0}, "world_size=0 is too small"),
        (
            {"batch_size": 11, "drop_last": True},
            "batch_size=11 is more than the 10 images, and drop_last=True leaves no batch: use a batch_size "
            "of at "
            "most 10 or drop_last=False",
        ),
        (
            {"batch_size": 4, "drop_last": True, "world_size": 3},
            "batch_size=4 is more than the 3 images of each rank",
        ),
        ({"batch_size": 1, "drop_last": True, "world_size": 11}, "use fewer ranks"),
        (
            {"batch_size": 4, "shuffle": True, "world_size": 10},
            "the 10 images give each of 10 ranks a single one, and BatchNorm cannot train on a batch of one",
        ),
    ],
)
def test_errors(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Order(**{"count": 10, "batch_size": 2} | settings)  # type: ignore[arg-type]
    assert message in str(caught.value)
