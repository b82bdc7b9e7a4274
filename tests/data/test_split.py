"""split_dataset against plain Python, and hand-made cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpeft_ray.config import DataSettings
from perpeft_ray.data.interactions import Dataset
from perpeft_ray.data.split import repeat_shares, split_dataset
from perpeft_ray.errors import InputError

ITEMS = ["i3", "i1", "i0", "i2", "unused"]


def dataset_of(rows: list[tuple[str, str, int]]) -> Dataset:
    return Dataset(
        uri="parquet:x",
        root=Path("x"),
        interactions=pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]),
        items=pd.DataFrame({"item_id": ITEMS, "title": None, "image": None}),
        fingerprint="",
        items_fingerprint="",
    )


def slow_split(rows: list[tuple[str, str, int]]):
    """user_id -> (training, validation, test), item indices; users in order of appearance."""
    histories: dict[str, list[tuple[int, int, int]]] = {}
    for row, (user, item, timestamp) in enumerate(rows):
        histories.setdefault(user, []).append((timestamp, row, ITEMS.index(item) + 1))
    split = {}
    for user, history in histories.items():
        items = [item for _, _, item in sorted(history)]
        split[user] = (items[:-2], items[-2], items[-1]) if len(items) >= 3 else (items, 0, 0)
    return split


rows_with_an_evaluable_user = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from(ITEMS[:4]), st.integers(-2, 2)),
    min_size=13,  # six users: one has at least three
    max_size=50,
)


@settings(max_examples=40, deadline=None)
@given(rows_with_an_evaluable_user)
def test_leave_one_out_equals_plain_python(rows):
    split = split_dataset(dataset_of(rows))
    expected = slow_split(rows)
    assert split.user_ids.tolist() == list(expected)
    assert split.item_ids.tolist() == ITEMS
    assert (split.num_users, split.num_items) == (len(expected), len(ITEMS))
    for user, (train, valid, test) in enumerate(expected.values()):
        assert split.train.of(user).tolist() == train
        assert split.valid_item[user] == valid
        assert split.test_item[user] == test
        assert split.known("valid").of(user).tolist() == train
        assert split.known("test").of(user).tolist() == ([*train, valid] if valid else train)
    for part, targets in (("valid", split.valid_item), ("test", split.test_item)):
        assert split.target(part) is targets
        assert split.evaluated(part).tolist() == [u for u, item in enumerate(targets) if item]
    assert (split.train.items.dtype, split.test_item.dtype) == (np.int32, np.int32)
    assert split.train.offsets[-1] == len(split.train.items)
    assert split.known("test").offsets[-1] == len(split.known("test").items)


def test_timestamps_are_compared_exactly():
    big = 2**62  # floats would tie these
    split = split_dataset(dataset_of([("u", "i0", big + 1), ("u", "i1", big), ("u", "i2", -big)]))
    assert split.test_item.tolist() == [ITEMS.index("i0") + 1]


def test_no_user_with_three_interactions():
    rows = [("u", "i0", 0), ("u", "i1", 1), ("v", "i0", 0)]
    with pytest.raises(InputError) as caught:
        split_dataset(dataset_of(rows))
    assert str(caught.value) == (
        "`parquet:x` needs at least one user with 3 interactions, but the longest history has 2"
    )


def test_repeat_shares_count_known_targets_and_equal_rows():
    rows = [
        ("u", "i0", 1),
        ("u", "i1", 2),
        ("u", "i0", 3),  # the test target, seen in training
        ("v", "i2", 1),
        ("v", "i3", 2),
        ("v", "i3", 3),  # the test target, seen as the validation item
        ("w", "i0", 1),
        ("w", "i0", 1),  # the same row twice, and a target that is new
        ("w", "i1", 2),
        ("x", "i1", 1),  # not evaluated
    ]
    shares = repeat_shares(dataset_of(rows))
    assert shares.targets_in_history == pytest.approx(2 / 3)
    assert shares.repeated_rows == pytest.approx(1 / 10)


def by_time(share: float) -> DataSettings:
    return DataSettings(split="time", test_share=share)


@settings(max_examples=40, deadline=None)
@given(rows_with_an_evaluable_user, st.sampled_from([0.1, 0.25, 0.4]))
def test_by_time_equals_plain_python(rows, share):
    times = sorted(time for _, _, time in rows)
    count = max(1, round(share * len(rows)))
    first, second = times[-2 * count] if 2 * count <= len(times) else times[0], times[-count]
    spans: dict[str, list[list[int]]] = {}
    for user, item, time in sorted(rows, key=lambda row: row[2]):  # stable
        span = 0 if time < first else 1 if time < second else 2
        spans.setdefault(user, [[], [], []])[span].append(ITEMS.index(item) + 1)
    order = dict.fromkeys(user for user, _, _ in rows)
    expected = {user: spans[user] for user in order if spans[user][0]}
    valid = times[0] < first < second
    if not valid or not all(any(of[span] for of in expected.values()) for span in (1, 2)):
        with pytest.raises(InputError, match=r"`data\.split` time"):
            split_dataset(dataset_of(rows), by_time(share))
        return
    split = split_dataset(dataset_of(rows), by_time(share))
    assert split.user_ids.tolist() == list(expected)
    for user, (train, between, after) in enumerate(expected.values()):
        assert split.train.of(user).tolist() == train
        assert split.valid_item[user] == (between or [0])[0]
        assert split.test_item[user] == (after or [0])[0]
        assert split.known("test").of(user).tolist() == train + between


@pytest.mark.parametrize(
    ("rows", "share", "message"),
    [
        (
            [("u", "i0", 5), ("u", "i1", 5), ("v", "i0", 5)],
            0.1,
            "times before and between the cuts of `data.split` time, but its first time is 5 and "
            "the cuts are at 5 and 5",
        ),
        (
            [("u", "i0", 1), ("u", "i1", 2), ("v", "i0", 3)],
            0.3,
            "a user with interactions before validation and in the test span of `data.split` time, "
            "but at `data.test_share` 0.3 none has",
        ),
    ],
)
def test_by_time_needs_interactions_in_every_span(rows, share, message):
    with pytest.raises(InputError) as caught:
        split_dataset(dataset_of(rows), by_time(share))
    assert str(caught.value) == f"`parquet:x` must have {message}"


def test_repeat_shares_follow_the_split():
    rows = [  # 11, so a share of 0.25 cuts at times 6 (validation) and 8 (test)
        ("late", "i3", 8),
        ("a", "i0", 1),
        ("b", "i1", 2),
        ("a", "i2", 7),
        ("a", "i1", 6),
        ("c", "i2", 3),
        ("b", "i3", 9),
        ("a", "i3", 8),
        ("b", "i0", 4),
        ("c", "unused", 5),
        ("a", "i0", 9),
    ]
    shares = repeat_shares(dataset_of(rows), by_time(0.25))
    assert shares.targets_in_history == 0.0  # a and b had no i3; by leave-one-out, a ends with i0
    assert repeat_shares(dataset_of(rows)).targets_in_history == 0.5
