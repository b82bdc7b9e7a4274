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
    users: int, seeds: int, effect: float, between: float, within: float, seed: int
) -> np.ndarray:
    """Users' differences [users, seeds]: an effect, the user's own part, and noise of a seed."""
    rng = np.random.default_rng(seed)
    own = effect + between * rng.normal(size=(users, 1))
    return own + within * rng.normal(size=(users, seeds))


def power_of(users: int, seeds: int, effect: float, between: float, within: float) -> float:
    """The share of 2,000 simulated studies in which the paired t test over users is below 0.05."""
    means = np.stack(
        [
            simulated(users, seeds, effect, between, within, seed).mean(axis=1)
            for seed in range(2000)
        ]
    )
    return float((stats.ttest_1samp(means, 0.0, axis=1).pvalue < 0.05).mean())


def compared(
    users: int, seeds: int, effect: float, between: float, within: float, seed: int
) -> Comparison:
    """The comparison of two methods whose users differ by `simulated` differences."""
    differences = simulated(users, seeds, effect, between, within, seed)
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
def test_the_users_needed_find_the_effect_in_four_of_five_studies(
    effect: float, deviation: float
) -> None:
    users = users_needed(effect, deviation)
    assert power_of(int(users), 1, effect, 0.0, deviation) == pytest.approx(0.8, abs=0.03)


def test_the_seeds_needed_find_the_effect_in_four_of_five_studies() -> None:
    # Large, so that the variance of users and of seeds is known well.
    known = compared(300, 40, 0.0, 0.1, 1.0, seed=1)
    assert known.seed_deviation == pytest.approx(1.0, abs=0.02)
    seeds = seeds_needed(known, 0.04)
    assert 5 < seeds < 40
    assert power_of(300, int(seeds), 0.04, 0.1, 1.0) == pytest.approx(0.8, abs=0.05)


def test_one_seed_gives_a_lower_bound_of_seeds() -> None:
    least = seeds_needed(compared(400, 1, 0.05, 0.0, 1.0, seed=2), 0.05)
    assert least < seeds_needed(compared(400, 3, 0.05, 0.3, 1.0, seed=2), 0.05)


def test_no_number_of_seeds_helps_if_users_differ_too_much() -> None:
    assert math.isinf(seeds_needed(compared(200, 5, 0.0, 1.0, 0.1, seed=3), 0.05))


def test_the_smallest_effect_is_the_one_for_which_the_users_suffice() -> None:
    effect = smallest_effect(500, 0.4, alpha=0.01)
    assert users_needed(effect, 0.4, alpha=0.01) == pytest.approx(500, abs=1)


@pytest.mark.parametrize("effect", [0.0, math.nan])
def test_no_effect_needs_more_than_any_number_of_users(effect: float) -> None:
    assert math.isinf(users_needed(effect, 1.0))


def test_numbers_are_rounded_up_to_two_digits() -> None:
    counts = (3, 41, 123, 4_816, 99_999, math.inf)
    texts = ["3", "41", "130", "4,900", "100,000", "no number"]
    assert [rounded(count) for count in counts] == texts


def test_the_table_has_a_row_per_variant() -> None:
    known = compared(500, 2, 0.1, 0.3, 0.5, seed=5)
    table = power_table([known], 0.2)
    (row,) = table.texts.to_numpy().tolist()
    assert row[:4] == ["lora", f"{100 * known.difference:+.0f} %", "500", "2"]
    assert row[5] == rounded(users_needed(0.2 * known.mean_b, known.deviation))


def test_the_command_prints_the_table_of_a_study(
    record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = StudyConfig(storage=str(tmp_path), peft=PeftSettings(variant="lora"))
    folder = StudyFolder.create(study)
    with pytest.raises(InputError, match="must have complete trials of perpeft and global"):
        perpeft(["power", str(folder.path)])
    rng = np.random.default_rng(6)
    for method in ("perpeft", "global"):
        folder.write_trial(with_ranks(record(method, study=study), rng.integers(0, 40, 300)))
    perpeft(["power", str(folder.path), "--effect", "0.5"])
    assert "What shows an effect of 50 % in NDCG@20 over global" in capsys.readouterr().out
    with pytest.raises(InputError, match="`effect` must be a positive number, but is -1"):
        perpeft(["power", str(folder.path), "--effect", "-1"])
