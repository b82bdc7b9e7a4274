"""Metrics beside the objective, against numbers worked by hand from ranks."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from perpeft_ray.report.metrics_tables import metrics_table, slices_table
from tests.records import Frames, Record, frames_of, with_ranks

# Of users u0 to u5: u0 and u1 have test items that occur 0 times, u2 and u3 once, u4 and u5 twice.
RANKS = [0, 4, 1, 30, 2, 9]


@pytest.fixture
def frames(record: Record) -> Frames:
    records = [
        with_ranks(record("perpeft"), RANKS),
        with_ranks(record("global"), [rank + 1 for rank in RANKS]),
        record("perpeft", score=0.2, phase="search", minute=1),
    ]
    return frames_of(records)


def of(numbers: pd.DataFrame, **where: object) -> pd.Series:
    (row,) = numbers.query(" and ".join(f"{name} == @where[{name!r}]" for name in where)).iloc
    return row


def test_rank_metrics_at_the_chosen_lengths(frames: Frames) -> None:
    numbers = metrics_table(*frames, (1, 5)).numbers
    assert sorted(set(numbers.k)) == [1, 5]
    assert of(numbers, method="perpeft", metric="hr", k=5)["mean"] == pytest.approx(4 / 6)
    mrr = of(numbers, method="perpeft", metric="mrr", k=5)
    assert mrr["mean"] == pytest.approx((1 + 1 / 5 + 1 / 2 + 1 / 3) / 6)
    users = [1, 1 / 5, 1 / 2, 0, 1 / 3, 0]
    spread = math.sqrt(sum((value - sum(users) / 6) ** 2 for value in users) / 5)
    assert mrr["error"] == pytest.approx(spread / math.sqrt(6))
    assert of(numbers, method="global", metric="mrr", k=1)["mean"] == 0


def test_coverage_and_popularity_are_those_of_the_trials(frames: Frames) -> None:
    table = metrics_table(*frames, (1, 4))
    assert of(table.numbers, method="perpeft", metric="coverage", k=1)["mean"] == 0.25
    assert of(table.numbers, method="perpeft", metric="popularity", k=4)["mean"] == 2.0
    assert "| perpeft lora | " in table.printed[0].markdown()
    assert [text.title for text in table.printed] == ["Test metrics at 1", "Test metrics at 4"]


def test_users_are_cut_by_how_common_the_test_item_is(frames: Frames) -> None:
    numbers = slices_table(*frames).numbers
    own = numbers[(numbers.method == "perpeft") & (numbers.by == "test_item_occurrences")]
    assert list(zip(own.low, own.high, own.users, strict=True)) == [(0, 0, 2), (1, 1, 2), (2, 2, 2)]
    gains = [(1 + 1 / math.log2(6)) / 2, 1 / math.log2(3) / 2, (0.5 + 1 / math.log2(11)) / 2]
    assert own["mean"].tolist() == pytest.approx(gains)


def test_users_are_cut_by_their_history(frames: Frames) -> None:
    table = slices_table(*frames)
    own = table.numbers[(table.numbers.method == "global") & (table.numbers.by == "history_length")]
    assert own.users.sum() == 6  # histories of 1, 2, 3, 4, 5 and 1 items
    assert table.printed[1].header == ("method", "1", "2–3", "4–5")


def test_users_whose_histories_are_equally_long_are_one_part(frames: Frames) -> None:
    trials, users = frames
    table = slices_table(trials, users.assign(history_length=4))
    assert table.printed[1].header == ("method", "4")
    own = table.numbers[(table.numbers.method == "global") & (table.numbers.by == "history_length")]
    assert own.users.tolist() == [6]


def test_without_final_trials_the_tables_are_empty(record: Record) -> None:
    frames = frames_of([record("perpeft", phase="search")])
    assert metrics_table(*frames, (10,)).printed == slices_table(*frames).printed == ()
