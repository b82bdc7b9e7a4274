"""Comparisons of methods against plain computations on the same ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from perpeft_ray.config import StudyConfig
from perpeft_ray.errors import InputError
from perpeft_ray.report.comparisons import comparisons, p_text
from perpeft_ray.report.statistics import Comparison, compare, holm, read_values, user_metric
from perpeft_ray.store.folder import StudyFolder
from tests.records import with_ranks

Write = Callable[..., StudyFolder]


def compare_methods(
    folders: Sequence[Path], a: str, b: str, variant: str | None, metric: str = "ndcg@20"
) -> Comparison:
    """Two methods over all seeds of some studies."""
    found = compare(read_values(folders, metric), a, b, variant, metric)
    assert found is not None
    return found


@pytest.fixture
def write(record, tmp_path: Path) -> Write:
    """Write a study whose trials have the test ranks given as (method, seed) -> ranks."""

    def make(dataset: str, ranks: dict[tuple[str, int], Sequence[int]], **options) -> StudyFolder:
        study = StudyConfig(dataset=dataset, storage=str(tmp_path), study=dataset.replace(":", "_"))
        folder = StudyFolder.create(study)
        for minute, ((method, seed), values) in enumerate(ranks.items()):
            variant = None if method in ("popularity", "without_mm") else "lora"
            made = record(method, variant, seed=seed, study=study, minute=minute, **options)
            folder.write_trial(with_ranks(made, values))
        return folder

    return make


def test_a_comparison_is_of_users_averaged_over_seeds(write: Write) -> None:
    rng = np.random.default_rng(3)
    ranks = {(m, s): rng.integers(0, 40, 300) for m in ("perpeft", "global") for s in (0, 1, 2)}
    folder = write("toyshop", ranks)
    result = compare_methods([folder.path], "perpeft", "global", "lora")

    gains = {key: np.where(r < 20, 1 / np.log2(r + 2), 0) for key, r in ranks.items()}
    a = np.mean([gains["perpeft", seed] for seed in (0, 1, 2)], axis=0)
    b = np.mean([gains["global", seed] for seed in (0, 1, 2)], axis=0)
    assert (result.users, result.seeds) == (300, 3)
    assert result.mean_a == pytest.approx(a.mean())
    assert result.mean_b == pytest.approx(b.mean())
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
    folder = write("toyshop", {("perpeft", 0): better, ("global", 0): worse})
    result = compare_methods([folder.path], "perpeft", "global", "lora")
    differences = user_metric(better, "ndcg@20") - user_metric(worse, "ndcg@20")
    signs = rng.choice([-1, 1], (5000, 400))
    permuted = np.mean(np.abs((signs * differences).mean(axis=1)) >= abs(differences.mean()))
    assert 0.01 < result.p_value < 0.99
    assert result.p_value == pytest.approx(permuted, abs=0.03)


def test_the_interval_is_the_normal_one_for_many_users(write: Write) -> None:
    rng = np.random.default_rng(5)
    ranks = {("perpeft", 0): rng.integers(0, 30, 2000), ("global", 0): rng.integers(0, 60, 2000)}
    folder = write("toyshop", ranks)
    result = compare_methods([folder.path], "perpeft", "global", "lora", "hr@20")
    a, b = ranks["perpeft", 0] < 20, ranks["global", 0] < 20
    half = 1.96 * np.std(a * 1.0 - b, ddof=1) / 2000**0.5
    centre = a.mean() - b.mean()
    assert result.interval == pytest.approx((centre - half, centre + half), abs=0.1 * half)
    assert result.ratio_interval[0] < result.ratio < result.ratio_interval[1]
    assert result.ratio_interval[0] > 1


def test_studies_are_pooled_and_equal_user_names_stay_apart(write: Write) -> None:
    folders = [
        write("toyshop:101", {("perpeft", 101): [0, 0, 5], ("global", 101): [0, 30, 5]}).path,
        write("toyshop:102", {("perpeft", 102): [0, 0], ("global", 102): [0, 0]}).path,
    ]
    result = compare_methods(folders, "perpeft", "global", "lora")
    assert (result.users, result.seeds) == (5, 2)
    assert result.difference == pytest.approx(1 / 5)


def test_only_seeds_of_both_methods_and_evaluated_users_count(write: Write) -> None:
    ranks = {
        ("perpeft", 0): [0, 2, -1],
        ("perpeft", 1): [0, 0, 0],
        ("without_mm", 0): [2, 2, -1],
    }
    result = compare_methods([write("toyshop", ranks).path], "perpeft", "without_mm", "lora")
    assert (result.users, result.seeds, result.difference) == (2, 1, 0.25)
    assert np.isnan(result.p_seeds)


def test_equal_methods_differ_in_nothing(write: Write) -> None:
    ranks = {("perpeft", 0): [40, 40], ("global", 0): [40, 40]}
    result = compare_methods([write("toyshop", ranks).path], "perpeft", "global", "lora")
    assert (result.difference, result.effect_size, result.p_value) == (0.0, 0.0, 1.0)
    assert np.isnan(result.ratio)


def test_the_studys_other_mode_is_left_out(write: Write) -> None:
    write("toyshop", {("perpeft", 0): [0], ("global", 0): [2]})
    folder = write("toyshop", {("perpeft", 0): [20]}, mode="parallel")
    result = compare_methods([folder.path], "perpeft", "global", "lora")
    assert result.mean_a == 1.0


def test_what_cannot_be_compared_is_told(write: Write) -> None:
    folder = write("toyshop", {("perpeft", 0): [0, 1], ("global", 1): [2, 1]})
    assert compare(read_values([folder.path]), "perpeft", "global", "lora", "ndcg@20") is None
    with pytest.raises(InputError, match=r"`metric` must be one of hr@K, .* but is ndcg@0"):
        user_metric(np.array([1.0]), "ndcg@0")


def test_holm_by_hand() -> None:
    # Smallest × 3, next × 2, and no later one below an earlier one.
    assert holm(np.array([0.03, 0.01, 0.04])) == pytest.approx([0.06, 0.03, 0.06])
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]
    assert holm(np.array([])).tolist() == []


def test_comparisons_are_corrected_over_the_table(write: Write) -> None:
    rng = np.random.default_rng(6)
    methods = ("perpeft", "global", "without_mm", "random_grouping")
    ranks = {(method, seed): rng.integers(0, 50, 200) for method in methods for seed in (0, 1)}
    folder = write("toyshop", ranks)
    table = comparisons([folder.path])
    numbers = table.numbers
    assert numbers.method_b.tolist() == [
        *("without_mm", "global", "random_grouping"),
        *("global", "global"),
    ]
    assert numbers.method_a.tolist()[3:] == ["without_mm", "random_grouping"]
    for family in (slice(0, 2), slice(3, 4)):  # PerPEFT's, and the others with `global`
        rows = numbers.loc[family]
        assert rows.p_holm.to_numpy() == pytest.approx(holm(numbers.p_value[rows.index].to_numpy()))
    assert (numbers.interval_low < numbers.difference).all()
    assert (numbers.difference < numbers.interval_high).all()
    single = compare_methods([folder.path], "perpeft", "random_grouping", "lora")
    assert numbers.p_value[2] == single.p_value
    (text,) = table.printed
    assert text.rows[1][0].text == "global"
    assert "users (200)" in text.caption
    assert "seeds (2)" in text.caption


def test_p_values_are_printed_short() -> None:
    assert [p_text(p) for p in (0.00099, 0.0451, 1.0, float("nan"))] == [
        "<.001",
        "0.045",
        "1.000",
        "–",
    ]


def test_a_method_without_seeds_is_compared_with_every_seed(write: Write) -> None:
    ranks = {("perpeft", 0): [0, 0], ("perpeft", 1): [0, 2], ("popularity", 0): [2, 2]}
    result = compare_methods([write("toyshop", ranks).path], "perpeft", "popularity", "lora")
    assert (result.users, result.seeds) == (2, 2)
    assert result.difference == pytest.approx((0.5 + 0.25) / 2)  # means over seeds of two users
