"""Which groups gain, their words, what serving costs, what to try next."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from perpeft_ray.config import StudyConfig
from perpeft_ray.report.practice import distinctive_words, groups_table, in_practice
from perpeft_ray.report.statistics import compare_all, user_values
from perpeft_ray.report.verdict import verdict
from tests.records import Frames, Record, frames_of, with_ranks

USERS = 600


@pytest.fixture(scope="module")
def ranks() -> tuple[np.ndarray, np.ndarray]:
    """Of `global` and PerPEFT: users of group 0 gain, those of group 1 lose, of six groups."""
    rng = np.random.default_rng(0)
    before = rng.integers(0, 40, USERS)
    after = before.copy()
    after[::6], after[1::6] = before[::6] // 4, before[1::6] + 40
    return before, after


@pytest.fixture
def frames(record: Record, ranks: tuple[np.ndarray, np.ndarray]) -> Frames:
    before, after = ranks
    searched = [record(phase="search", learning_rate=rate) for rate in (6e-3, 1e-2)]
    compared = [with_ranks(record("perpeft"), after), with_ranks(record("global"), before)]
    return frames_of([*searched, *compared])


def test_a_groups_gain_is_the_mean_difference_of_its_users(
    frames: Frames, ranks: tuple[np.ndarray, np.ndarray]
) -> None:
    numbers = groups_table(*frames).numbers.set_index("group")
    values = [np.where(r < 20, 1 / np.log2(r + 2.0), 0.0) for r in ranks]
    assert numbers.users.tolist() == [100] * 6
    for group in range(6):
        gain = (values[1] - values[0])[group::6].mean()
        assert numbers.gain[group] == pytest.approx(gain)
        assert numbers.gain_low[group] <= gain <= numbers.gain_high[group]
    assert numbers.gain_low[0] > 0 > numbers.gain_high[1]


def practice(frames: Frames, study: StudyConfig, *, options: bool) -> list[str]:
    """The sentences of a study; without `options`, no note of the verdict asks for anything."""
    found = verdict(study, frames[0], compare_all(user_values(*frames)))
    found = found if options else replace(found, options=())
    return in_practice(study, frames[0], groups_table(*frames).numbers, found)


def test_sentences_name_the_groups_that_gain_the_cost_and_the_next_study(frames: Frames) -> None:
    gain, most, cost, *_, following = practice(frames, StudyConfig(), options=True)
    assert gain.startswith("1 of 6 groups gain over one global module, with 17% of the users")
    assert "and 1 lose" in gain
    assert most.startswith("Group 0 gains most: +")
    assert "encoder of 4,000 parameters and 6 adapters of 10 each" in cost
    assert "encoded 6 times" in cost
    assert following == (
        "To try next, under another --study: --search.learning-rate 0.006 0.02 --search.trials 15 "
        "--seeds 0 1 2"
    )


def test_several_seeds_and_no_note_leave_nothing_to_try(frames: Frames) -> None:
    lines = practice(frames, StudyConfig(seeds=(0, 1)), options=False)
    assert not any(line.startswith("To try next") for line in lines)


def test_groups_without_a_clear_difference_are_reported_so(record: Record) -> None:
    ranks = np.random.default_rng(0).integers(0, 40, 60)
    frames = frames_of([with_ranks(record(method), ranks) for method in ("perpeft", "global")])
    lines = practice(frames, StudyConfig(), options=False)
    assert lines[0] == "In none of 6 groups is a gain or loss against one global module clear."


def test_a_groups_words_are_those_it_has_more_often() -> None:
    titles = pd.DataFrame(
        [(f"u{n}", "Oak lamp" if n < 10 else "Steel lamp") for n in range(20)]
        + [("u0", "Rare thing"), ("u1", None)],
        columns=["user_id", "title"],
    )
    groups = pd.Series({f"u{n}": n // 10 for n in range(20)})
    assert distinctive_words(groups, titles) == {0: ["oak"], 1: ["steel"]}


def test_without_a_pair_there_is_no_group(record: Record) -> None:
    table = groups_table(*frames_of([with_ranks(record("perpeft"), [1, 2])]))
    assert table.printed == ()
    assert table.numbers.empty
