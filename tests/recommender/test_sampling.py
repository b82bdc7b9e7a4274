"""Windows and negatives against plain loops and the chi-square distribution."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from perpeft_ray.data.split import Histories
from perpeft_ray.errors import InputError
from perpeft_ray.recommender.sampling import (
    TrainingSampler,
    batches_of,
    last_inputs,
    select,
)

NUM_ITEMS = 12


def histories_of(sequences: list[list[int]]) -> Histories:
    offsets = np.concatenate(([0], np.cumsum([len(s) for s in sequences]))).astype(np.int64)
    return Histories(offsets, np.array([*itertools.chain(*sequences)], dtype=np.int32))


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Histories with repeats, none of all items, and a pool that may lie inside a history."""
    item = st.integers(1, NUM_ITEMS)
    history = st.lists(item, max_size=15).filter(lambda h: len(set(h)) < NUM_ITEMS)
    sequences = draw(st.lists(history, min_size=1, max_size=8))
    return sequences, sorted(draw(st.sets(item, min_size=1)))


@settings(max_examples=200, deadline=None)
@given(case=cases(), weight=st.sampled_from([0.0, 0.4, 1.0]), seed=st.integers(0, 99))
def test_negatives_are_of_the_pool_and_never_a_users_item(case, weight, seed):
    sequences, pool = case
    sampler = TrainingSampler(histories_of(sequences), NUM_ITEMS, length=4)
    users = np.arange(len(sequences))
    batch = sampler.sample(
        users, np.random.default_rng(seed), pool=np.array(pool, dtype=np.int32), weight=weight
    )
    assert (batch.outside_negatives is not None) == (weight == 0.4)
    for u, history in enumerate(sequences):
        real = batch.inputs[u] > 0
        allowed = (set(pool) if weight else set(range(1, NUM_ITEMS + 1))) - set(history)
        if not allowed:  # the history has the whole pool
            allowed = set(range(1, NUM_ITEMS + 1)) - set(history)
        assert set(batch.negatives[u, real]) <= allowed
        assert not batch.negatives[u, ~real].any()
        if batch.outside_negatives is not None:
            outside = set(batch.outside_negatives[u, real])
            assert outside <= set(range(1, NUM_ITEMS + 1)) - set(history)
            assert not batch.outside_negatives[u, ~real].any()


@settings(max_examples=100, deadline=None)
@given(case=cases(), length=st.integers(1, 6))
def test_windows_equal_plain_loops(case, length):
    sequences, _ = case
    histories = histories_of(sequences)
    sampler = TrainingSampler(histories, NUM_ITEMS, length)
    users = np.arange(len(sequences))[::-1]
    batch = sampler.sample(users, np.random.default_rng(0), pool=None, weight=1.0)
    seen = last_inputs(histories, users, length)
    for row, u in enumerate(users):
        history = sequences[u]
        assert batch.inputs[row].tolist() == padded(history[:-1], length)
        assert batch.positives[row].tolist() == padded(history[1:], length)
        assert seen[row].tolist() == padded(history, length)
    assert sampler.trainable_users.tolist() == [u for u, h in enumerate(sequences) if len(h) >= 2]
    for array in (batch.inputs, batch.positives, batch.negatives, seen):
        assert array.dtype == np.int64


def test_negatives_are_uniform_over_the_allowed_items():
    """From the pool, and for 0 < λ < 1 a second one from all items."""
    sequences, pool = [[3, 4, 3, 9], [1, 2]], [2, 3, 5, 8, 9, 12]
    everything = list(range(1, NUM_ITEMS + 1))
    sampler = TrainingSampler(histories_of(sequences), NUM_ITEMS, length=3)
    users = np.tile([0, 1], 10_000)
    rng = np.random.default_rng(7)
    both = sampler.sample(users, rng, pool=np.array(pool), weight=0.5)
    whole = sampler.sample(users, rng, pool=None, weight=1.0)
    assert both.outside_negatives is not None
    for drawn, source in (
        (both.negatives, pool),
        (both.outside_negatives, everything),
        (whole.negatives, everything),
    ):
        for u, history in enumerate(sequences):
            counts = np.bincount(drawn[users == u].ravel(), minlength=NUM_ITEMS + 1)[1:]
            allowed = sorted(set(source) - set(history))
            of_allowed = counts[np.array(allowed) - 1]
            assert of_allowed.sum() == counts.sum() == 10_000 * (len(history) - 1)
            assert chisquare(of_allowed).pvalue > 0.01


def test_positions_and_users_draw_independently():
    sampler = TrainingSampler(histories_of([[1] * 6] * 2), NUM_ITEMS, length=5)
    users = np.tile([0, 1], 2_000)
    negatives = sampler.sample(users, np.random.default_rng(3), pool=None, weight=1.0).negatives
    for a, b in ((negatives[:, 0], negatives[:, 1]), (negatives[0::2, 2], negatives[1::2, 2])):
        assert (a == b).mean() == pytest.approx(1 / 11, abs=0.02)


def test_an_index_is_not_taken_for_an_item():
    """The fault of METHOD.md, section 7, is one that these checks see, and we do not have.

    The group's items are 7..12; the user knows 7..11. Comparing *indices* 0..5 with the history
    rejects nothing, so that draw returns positives.
    """
    history, pool = [7, 8, 9, 10, 11], np.arange(7, 13)
    rng = np.random.default_rng(0)
    faulty = [draw_by_index(history, pool, rng) for _ in range(100)]
    assert set(faulty) & set(history)

    sampler = TrainingSampler(histories_of([history]), NUM_ITEMS, length=4)
    batch = sampler.sample(np.zeros(100, dtype=np.int64), rng, pool=pool, weight=1.0)
    assert set(batch.negatives.ravel()) == {12}


def test_a_user_with_every_item_is_refused():
    with pytest.raises(InputError, match=r"leave every user an item .* user 1 has all items \(3\)"):
        TrainingSampler(histories_of([[1, 2], [1, 2, 3, 1]]), num_items=3, length=2)


def test_batches_have_every_user_once():
    users = np.arange(100, 137)
    batches = batches_of(users, 16, np.random.default_rng(0))
    together = np.concatenate(batches)
    assert sorted(together) == users.tolist()
    assert together.tolist() != users.tolist()
    again = np.concatenate(batches_of(users, 16, np.random.default_rng(0)))
    np.testing.assert_array_equal(again, together)
    assert batches_of(users[:0], 16, np.random.default_rng(0)) == []


@pytest.mark.parametrize(
    ("users", "sizes"),
    [(37, [13, 12, 12]), (32, [16, 16]), (33, [11, 11, 11]), (5, [5]), (17, [9, 8])],
)
def test_batches_are_as_few_as_they_can_be_and_even(users, sizes):
    batches = batches_of(np.arange(users), 16, np.random.default_rng(0))
    assert [len(batch) for batch in batches] == sizes


def test_select_keeps_the_order_of_the_users():
    sequences = [[1, 2], [], [3], [4, 5, 6]]
    chosen = select(histories_of(sequences), np.array([3, 1, 0, 3]))
    assert [chosen.of(i).tolist() for i in range(4)] == [[4, 5, 6], [], [1, 2], [4, 5, 6]]
    assert chosen.items.dtype == np.int32
    assert len(select(histories_of(sequences), np.array([], dtype=np.int64)).items) == 0


def padded(items: list[int], length: int) -> list[int]:
    last = items[-length:]
    return [0] * (length - len(last)) + last


def draw_by_index(history: list[int], pool: NDArray[np.int64], rng: np.random.Generator) -> int:
    """The released program's draw: it tests the index where it means the item."""
    index = rng.integers(len(pool))
    while index in history:
        index = rng.integers(len(pool))
    return int(pool[index])
