"""What is held out by time, on hand-made interactions; ranks against a plain count."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import perpeft_ray
from perpeft_ray.data.interactions import Dataset, load_folder
from perpeft_ray.errors import InputError
from studies.cold_start import SLICES, HeldOut, hold_out, rank_events, write_training_folder


def _dataset(rows: list[tuple[str, str, int]], items: str) -> Dataset:
    return Dataset(
        uri="by hand",
        root=Path(),
        interactions=pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]),
        items=pd.DataFrame({"item_id": list(items), "title": "x", "image": None}),
        fingerprint="",
        items_fingerprint="",
    )


ROWS = [
    ("u", "a", 1),
    ("u", "b", 2),
    ("v", "a", 3),
    ("u", "c", 5),  # the cut: a new item for a known user
    ("w", "b", 6),  # a new user's first interaction has no history
    ("w", "a", 7),
    ("u", "a", 8),
    ("w", "c", 8),
]


def test_the_cut_divides_users_items_and_events():
    held_out = hold_out(_dataset(ROWS, "abcd"), 0.4, 5)
    assert held_out.cut == 5
    assert held_out.training.values.tolist() == [list(row) for row in ROWS[:3]]
    assert held_out.known_items.item_id.tolist() == ["a", "b"]
    assert held_out.new_items.item_id.tolist() == ["c", "d"]  # d has no interaction at all
    assert held_out.events.values.tolist() == [
        ["u", "c", ["a", "b"], False, True],
        ["u", "a", ["a", "b", "c"], False, False],
        ["w", "a", ["b"], True, False],
        ["w", "c", ["b", "a"], True, True],
    ]
    firsts = hold_out(_dataset(ROWS, "abcd"), 0.4, 1).events
    assert firsts[["user_id", "item_id"]].values.tolist() == [["u", "c"], ["w", "a"]]


def test_a_cut_with_nothing_on_one_side_is_told():
    with pytest.raises(InputError, match="between 0 and 1"):
        hold_out(_dataset(ROWS, "abcd"), 1.0, 5)
    at_once = [(user, item, 1) for user, item, _ in ROWS]
    with pytest.raises(InputError, match="has 0 before it"):
        hold_out(_dataset(at_once, "abcd"), 0.5, 5)


def test_training_sees_nothing_after_the_cut(shop, tmp_path):
    dataset = load_folder(shop, "shop")
    held_out = hold_out(dataset, 0.4, 5)
    write_training_folder(held_out, dataset.root, tmp_path)
    training = load_folder(tmp_path, "training")  # checks items and images
    assert training.interactions.timestamp.max() < held_out.cut
    assert set(training.items.item_id) == set(training.interactions.item_id)


def test_events_are_ranked_among_all_or_new_items(exported, shop):
    """The model knows 30 items; two more are added, and ranks are counted plainly."""
    new = pd.DataFrame(
        {"item_id": ["n1", "n2"], "title": ["red lamp", None], "image": [None, "images/3.png"]},
        dtype=object,
    )
    events = pd.DataFrame(
        [
            ("u", "i4", ["i1", "i2"], False, False),
            ("w", "i5", ["i7"], True, False),
            ("w", "n1", ["i7", "i5"], True, True),
            ("u", "n2", ["i1", "n1"], False, True),
        ],
        columns=["user_id", "item_id", "history", "new_user", "new_item"],
    )
    held_out = HeldOut(0, pd.DataFrame(), pd.DataFrame(), new, events)
    model = perpeft_ray.load(exported)
    found = rank_events(model, held_out, shop)
    assert found.slice.tolist() == [SLICES[0], SLICES[1], *2 * [SLICES[2]], *2 * [SLICES[3]]]
    assert found.user_id.tolist() == ["u", "w", "w", "u", "w", "u"]
    pool = {SLICES[3]: {"n1", "n2"}}
    order = [0, 1, 2, 3, 2, 3]
    for event, row in zip(order, found.itertuples(), strict=True):
        history, target = events.history[event], events.item_id[event]
        scores = dict(
            zip(model.item_ids, model.scores([model.indices(history)])[0].tolist(), strict=True)
        )
        rivals = (pool.get(row.slice, set(scores)) - set(history)) - {target}
        expected = sum(scores[rival] >= scores[target] for rival in rivals)
        assert row.rank == expected
