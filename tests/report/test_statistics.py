"""Comparisons of methods against plain computations on the same ranks."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from perpeft_ray.config import StudyConfig
from perpeft_ray.errors import InputError
from perpeft_ray.report import statistics
from perpeft_ray.report.method_tables import comparisons_table
from perpeft_ray.report.statistics import (
    Comparison,
    compare,
    compare_all,
    group_gains,
    holm,
    mean_and_interval,
    read_results,
    user_metric,
    user_values,
)
from perpeft_ray.store.folder import StudyFolder
from tests.records import with_ranks

Ranks = Mapping[tuple[str, int], Sequence[int]]
Write = Callable[..., StudyFolder]


@pytest.fixture
def write(record, tmp_path: Path) -> Write:
    """Write a study whose trials have the test ranks given as (method, seed) -> ranks."""

    def make(dataset: str, ranks: Ranks, **options: Any) -> StudyFolder:
        study = StudyConfig(dataset=dataset, storage=str(tmp_path), study=dataset.replace(":", "_"))
        folder = StudyFolder.create(study)
        for minute, ((method, seed), values) in enumerate(ranks.items()):
            variant = None if method in ("popularity", "without_mm") else "lora"
            made = record(method, variant, seed=seed, study=study, minute=minute, **options)
            folder.write_trial(with_ranks(made, values))
        return folder

    return make


def values_of(*folders: StudyFolder, metric: str = "ndcg@20") -> pd.DataFrame:
    return user_values(*read_results(folders), metric)


def against(b: str, *folders: StudyFolder, metric: str = "ndcg@20") -> Comparison:
    """PerPEFT and another method over all seeds of some studies."""
    found = compare(values_of(*folders, metric=metric), "perpeft", b, "lora", metric)
    assert found is not None
    return found


def test_a_comparison_is_of_users_averaged_over_seeds(write: Write) -> None:
    rng = np.random.default_rng(3)
    ranks = {(m, s): rng.integers(0, 40, 300) for m in ("perpeft", "global") for s in (0, 1, 2)}
    result = against("global", write("toyshop", ranks))
    gains = {key: np.where(r < 20, 1 / np.log2(r + 2), 0) for key, r in ranks.items()}
    a, b = (np.mean([gains[m, s] for s in (0, 1, 2)], axis=0) for m in ("perpeft", "global"))
    assert (result.users, result.seeds) == (300, 3)
    assert (result.mean_a, result.mean_b) == pytest.approx((a.mean(), b.mean()))
    assert result.difference == pytest.approx((a - b).mean())
    assert result.ratio == pytest.approx(a.mean() / b.mean())
    assert result.effect_size == pytest.approx((a - b).mean() / (a - b).std(ddof=1))
    t = (a - b).mean() / ((a - b).std(ddof=1) / 300**0.5)
    assert result.p_value == pytest.approx(2 * stats.t.sf(abs(t), 299))
    of_seeds = [gains["perpeft", s].mean() - gains["global", s].mean() for s in (0, 1, 2)]
    assert result.p_seeds == pytest.approx(stats.ttest_1samp(of_seeds, 0).pvalue)


def test_the_test_over_users_agrees_with_a_permutation_test(write: Write) -> None:
    rng = np.random.default_rng(4)
    worse = rng.integers(0, 60, 400)
    better = np.where(rng.random(400) < 0.2, worse // 3, worse)
    better = np.where(rng.random(400) < 0.25, better + 15, better)
    result = against("global", write("toyshop", {("perpeft", 0): better, ("global", 0): worse}))
    differences = user_metric(better, "ndcg@20") - user_metric(worse, "ndcg@20")
    signs = rng.choice([-1, 1], (5000, 400))
    permuted = np.mean(np.abs((signs * differences).mean(axis=1)) >= abs(differences.mean()))
    assert 0.01 < result.p_value < 0.99
    assert result.p_value == pytest.approx(permuted, abs=0.03)


def test_the_interval_is_the_normal_one_for_many_users(write: Write) -> None:
    rng = np.random.default_rng(5)
    ranks = {("perpeft", 0): rng.integers(0, 30, 2000), ("global", 0): rng.integers(0, 60, 2000)}
    result = against("global", write("toyshop", ranks), metric="hr@20")
    a, b = ranks["perpeft", 0] < 20, ranks["global", 0] < 20
    half = 1.96 * np.std(a * 1.0 - b, ddof=1) / 2000**0.5
    centre = a.mean() - b.mean()
    assert result.interval == pytest.approx((centre - half, centre + half), abs=0.1 * half)
    assert 1 < result.ratio_interval[0] < result.ratio < result.ratio_interval[1]


def test_resampling_fewer_times_at_once_changes_no_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(0).random(301)
    before = mean_and_interval(values)
    monkeypatch.setattr(statistics, "_BLOCK_VALUES", 7 * 301)
    assert mean_and_interval(values) == before


def test_memory_of_an_interval_does_not_grow_with_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_BLOCK_VALUES", 2**16)
    values = np.random.default_rng(0).random(2**14)
    mean_and_interval(values[:100])  # imports scipy
    tracemalloc.start()
    mean_and_interval(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 8 * 2**16  # values and places of a block, and room


def test_studies_are_pooled_and_equal_user_names_stay_apart(write: Write) -> None:
    first = write("toyshop:101", {("perpeft", 101): [0, 0, 5], ("global", 101): [0, 30, 5]})
    second = write("toyshop:102", {("perpeft", 102): [0, 0], ("global", 102): [0, 0]})
    result = against("global", first, second)
    assert (result.users, result.seeds, result.difference) == (5, 2, pytest.approx(1 / 5))


def test_only_shared_seeds_and_evaluated_users_count(write: Write) -> None:
    ranks = {
        ("perpeft", 0): [0, 2, -1],
        ("perpeft", 1): [0, 0, 0],
        ("without_mm", 0): [2, 2, -1],
    }
    result = against("without_mm", write("toyshop", ranks))
    assert (result.users, result.seeds, result.difference) == (2, 1, 0.25)
    assert np.isnan(result.p_seeds)


def test_a_method_without_seeds_is_compared_with_every_seed(write: Write) -> None:
    ranks = {("perpeft", 0): [0, 0], ("perpeft", 1): [0, 2], ("popularity", 0): [2, 2]}
    result = against("popularity", write("toyshop", ranks))
    assert (result.users, result.seeds) == (2, 2)
    assert result.difference == pytest.approx((0.5 + 0.25) / 2)


def test_equal_methods_do_not_differ(write: Write) -> None:
    ranks = {("perpeft", 0): [40, 40], ("global", 0): [40, 40]}
    result = against("global", write("toyshop", ranks))
    assert (result.difference, result.effect_size, result.p_value) == (0.0, 0.0, 1.0)
    assert np.isnan(result.ratio)


def test_a_ratio_has_no_interval_where_few_users_have_a_hit(write: Write) -> None:
    """Of nine users, a third or so of the resamples leave out the one with a hit."""
    ranks = {("perpeft", 0): [2] * 9, ("global", 0): [0, *[40] * 8]}
    result = against("global", write("toyshop", ranks))
    assert result.ratio == pytest.approx(4.5)
    assert np.isnan(result.ratio_interval).all()
    assert result.interval[0] < result.difference < result.interval[1] == 0.5


def test_one_user_has_no_interval(write: Write) -> None:
    folder = write("toyshop", {("perpeft", 0): [0], ("global", 0): [2]})
    result = against("global", folder)
    assert np.isnan([*result.interval, *result.ratio_interval]).all()
    (text,) = comparisons_table(compare_all(values_of(folder))).printed
    assert text.texts.difference.tolist() == ["+50.00"]


@pytest.mark.filterwarnings("error")
def test_seeds_that_differ_by_the_same_have_no_p_value_below_1(write: Write) -> None:
    ranks = {("perpeft", s): [0, 1, 2] for s in (0, 1)} | {("global", s): [0, 2, 5] for s in (0, 1)}
    assert against("global", write("toyshop", ranks)).p_seeds == 1.0


def test_without_a_shared_seed_there_is_no_comparison(write: Write) -> None:
    folder = write("toyshop", {("perpeft", 0): [0, 1], ("global", 1): [2, 1]})
    assert compare(values_of(folder), "perpeft", "global", "lora", "ndcg@20") is None


@pytest.mark.parametrize("metric", ["ndcg@0", "ndcg", "auc@5"])
def test_an_unknown_metric_is_refused(metric: str) -> None:
    with pytest.raises(InputError, match=rf"`metric` must be one of hr@K, .* but is {metric}"):
        user_metric(np.array([1.0]), metric)


def test_holm_by_hand() -> None:
    # Smallest × 3, next × 2, and no later one below an earlier one.
    assert holm(np.array([0.03, 0.01, 0.04])) == pytest.approx([0.06, 0.03, 0.06])
    assert holm(np.array([0.6, np.nan, 0.7])).tolist() == [
        1.0,
        pytest.approx(np.nan, nan_ok=True),
        1.0,
    ]
    assert holm(np.array([])).tolist() == []


def test_perpefts_comparisons_and_those_with_global_are_corrected_apart(write: Write) -> None:
    rng = np.random.default_rng(6)
    methods = ("perpeft", "global", "without_mm", "random_grouping")
    ranks = {(method, seed): rng.integers(0, 50, 200) for method in methods for seed in (0, 1)}
    folder = write("toyshop", ranks)
    table = comparisons_table(compare_all(values_of(folder)))
    numbers = table.numbers
    assert list(zip(numbers.method_a, numbers.method_b, strict=True)) == [
        *(("perpeft", method) for method in ("without_mm", "global", "random_grouping")),
        *((method, "global") for method in ("without_mm", "random_grouping")),
    ]
    for rows in (numbers[:3], numbers[3:]):
        assert rows.p_holm.to_numpy() == pytest.approx(holm(rows.p_value.to_numpy()))
    assert numbers.p_value[2] == against("random_grouping", folder).p_value
    (text,) = table.printed  # PerPEFT's alone
    assert text.texts.method.tolist() == ["without_mm", "global", "random_grouping"]
    assert "users (200)" in text.caption
    assert "seeds (2)" in text.caption


def test_group_gains_by_hand() -> None:
    users = pd.DataFrame(
        {"group": [7, 7, 3, 3, 3], "a": [1.0, 0.0, 0.5, 0.5, 0.5], "b": [0.0, 0.0, 0.5, 0.0, 1.0]}
    )
    gains = group_gains(users).set_index("group")
    assert gains.users.to_dict() == {3: 3, 7: 2}
    assert gains.gain.to_dict() == pytest.approx({3: 0.0, 7: 0.5})
    # The mean of two draws from differences of 1 and 0 is 0, 0.5 or 1.
    assert (gains.gain_low[7], gains.gain_high[7]) == (0.0, 1.0)
