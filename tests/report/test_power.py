"""The power estimate against simulated studies."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from perpeft_ray.cli.main import perpeft
from perpeft_ray.config import PeftSettings, StudyConfig
from perpeft_ray.errors import InputError
from perpeft_ray.report.power import (
    power_table,
    rounded,
    seeds_needed,
    smallest_effect,
    users_needed,
)
from perpeft_ray.report.statistics import Comparison, compare_users
from perpeft_ray.store.folder import StudyFolder
from tests.records import with_ranks


def simulated(
    users: int, seeds: int, effect: float, between: float, within: float, rng: np.random.Generator
) -> np.ndarray:
    """Users' differences [users, seeds]: an effect, the user's own part, and noise of a seed."""
    own = effect + between * rng.normal(size=(users, 1))
    return own + within * rng.normal(size=(users, seeds))


def power_of(users: int, seeds: int, effect: float, between: float, within: float) -> float:
    """The share of 2,000 simulated studies in which the paired t test over users is below 0.05."""
    rng = np.random.default_rng(0)
    means = (
        simulated(users, seeds, effect, between, within, rng).mean(axis=1) for _ in range(2000)
    )
    return float(np.mean([stats.ttest_1samp(study, 0.0).pvalue < 0.05 for study in means]))


def compared(differences: np.ndarray) -> Comparison:
    """The comparison of two methods whose users differ by these [users, seeds]."""
    users, seeds = differences.shape
    rows = pd.DataFrame(
        {
            "dataset": "toyshop",
            "seed": np.tile(np.arange(seeds), users),
            "user_id": np.repeat(np.arange(users), seeds),
            "a": 1.0 + differences.ravel(),
            "b": 1.0,
        }
    )
    return compare_users(rows, ("perpeft", "global", "lora"), "ndcg@20")


@pytest.mark.parametrize(("effect", "deviation"), [(0.5, 1.0), (0.02, 0.2)])
def test_that_many_users_find_the_effect_in_four_of_five_studies(
    effect: float, deviation: float
) -> None:
    users = users_needed(effect, deviation)
    assert power_of(int(users), 1, effect, 0.0, deviation) == pytest.approx(0.8, abs=0.03)


def test_that_many_seeds_find_the_effect_in_four_of_five_studies() -> None:
    # Large, so that the variance of users and of seeds is known well.
    known = compared(simulated(300, 40, 0.0, 0.1, 1.0, np.random.default_rng(1)))
    assert known.seed_deviation == pytest.approx(1.0, abs=0.02)
    seeds = seeds_needed(known, 0.04)
    assert 5 < seeds < 40
    found = power_of(300, int(seeds), 0.04, 0.1, 1.0)
    assert found == pytest.approx(0.8, abs=0.05)


def test_one_seed_gives_the_least_number_of_seeds() -> None:
    rng = np.random.default_rng(2)
    effect = 0.05
    least = seeds_needed(compared(simulated(400, 1, effect, 0.0, 1.0, rng)), effect)
    several = seeds_needed(compared(simulated(400, 3, effect, 0.3, 1.0, rng)), effect)
    assert least < several


def test_no_number_of_seeds_helps_where_users_differ_too_much() -> None:
    known = compared(simulated(200, 5, 0.0, 1.0, 0.1, np.random.default_rng(3)))
    assert math.isinf(seeds_needed(known, 0.05))


def test_the_smallest_effect_is_the_one_that_these_users_are_enough_for() -> None:
    known = compared(simulated(500, 2, 0.1, 0.3, 0.5, np.random.default_rng(4)))
    effect = smallest_effect(known.users, known.deviation, alpha=0.01)
    assert users_needed(effect, known.deviation, alpha=0.01) == pytest.approx(500, abs=1)


def test_no_effect_needs_more_than_any_number_of_users() -> None:
    assert math.isinf(users_needed(0.0, 1.0))
    assert math.isinf(users_needed(math.nan, 1.0))


def test_numbers_are_rounded_upwards_to_two_digits() -> None:
    counts = (3, 41, 123, 4_816, 99_999, math.inf)
    assert [rounded(count) for count in counts] == [
        *("3", "41", "130", "4,900", "100,000", "no number"),
    ]


def test_the_table_has_a_row_per_variant() -> None:
    known = compared(simulated(500, 2, 0.1, 0.3, 0.5, np.random.default_rng(5)))
    table = power_table([known], 0.2)
    (row,) = table.rows
    assert [cell.text for cell in row[:4]] == [
        *("lora", f"{100 * known.difference:+.0f} %", "500", "2"),
    ]
    assert row[5].text == rounded(users_needed(0.2 * known.mean_b, known.deviation))
    assert "20 %" in table.title


def test_the_command_prints_it_for_a_study(
    record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = StudyConfig(storage=str(tmp_path), peft=PeftSettings(variant="lora"))
    folder = StudyFolder.create(study)
    rng = np.random.default_rng(6)
    for method in ("perpeft", "global"):
        folder.write_trial(with_ranks(record(method, study=study), rng.integers(0, 40, 300)))
    perpeft(["power", str(folder.path), "--effect", "0.5"])
    printed = capsys.readouterr().out
    assert "What shows an effect of 50 % in NDCG@20 over global" in printed
    assert "300" in printed
    with pytest.raises(InputError, match="`effect` must be above 0, but is -1"):
        perpeft(["power", str(folder.path), "--effect", "-1"])
