"""Orderings over studies, on ranks made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from perpeft_ray.metrics import ndcg
from perpeft_ray.report.orderings import means, orderings, settings
from perpeft_ray.report.statistics import holm
from tests.report.test_statistics import Write, against, write

__all__ = ["write"]


def test_findings_are_the_signs_of_significant_differences(write: Write) -> None:
    rng = np.random.default_rng(0)
    better, worse = rng.integers(0, 3, 200), rng.integers(10, 60, 200)
    methods = ("without_mm", "frozen_mm", "global", "perpeft")
    ranks = dict(zip(((m, 0) for m in methods), (worse, better, worse, better), strict=True))
    first = write("toyshop:1", ranks)
    second = write("toyshop:2", {("global", 0): worse, ("perpeft", 0): rng.permutation(worse)})
    table = orderings([first.path, second.path])
    ndcgs = table.numbers[table.numbers.metric == "ndcg@20"]
    found = {(row.dataset, row.above, row.below): row.finding for row in ndcgs.itertuples()}
    assert found == {
        ("toyshop:1", "frozen_mm", "without_mm"): "holds",
        ("toyshop:1", "global", "frozen_mm"): "reversed",
        ("toyshop:1", "perpeft", "frozen_mm"): "undecided",
        ("toyshop:1", "perpeft", "global"): "holds",
        ("toyshop:2", "perpeft", "global"): "undecided",
    }
    row = ndcgs.set_index(["dataset", "above", "below"]).loc["toyshop:1", "perpeft", "global"]
    assert row.difference == against("global", first).difference
    for _, rows in table.numbers.groupby(["dataset", "metric"]):
        np.testing.assert_allclose(rows.p_holm, holm(rows.p_value.fillna(1.0).to_numpy()))
    assert "without_mm < frozen_mm" in table.printed[0].markdown()


def test_orderings_are_of_both_metrics(write: Write) -> None:
    folder = write("toyshop:1", {("global", 0): [0, 100, 2], ("perpeft", 0): [0, 0, 2]})
    rows = orderings([folder.path]).numbers.set_index("metric")
    assert rows.mean_below.to_dict() == pytest.approx({"ndcg@20": 0.5, "hr@20": 2 / 3})


def test_means_have_a_column_per_data_set(write: Write) -> None:
    first = write("toyshop:1", {("global", 0): [0, 100], ("perpeft", 0): [0, 0]})
    second = write("toyshop:2", {("perpeft", 0): [100, 100]})
    text, _ = means([first.path, second.path]).printed
    assert text.header == ("method", "toyshop:1", "toyshop:2")
    assert [[cell.text for cell in row] for row in text.rows] == [
        ["global lora", "50.00 [0.00, 100.00]", "–"],
        ["perpeft lora", "100.00 [100.00, 100.00]", "0.00 [0.00, 0.00]"],
    ]


def test_the_interval_of_a_mean_is_about_two_standard_errors_over_users(write: Write) -> None:
    rng = np.random.default_rng(0)
    ranks = {("global", seed): rng.integers(0, 40, 300) for seed in (0, 1)}
    numbers = means([write("toyshop:1", ranks).path]).numbers
    row = numbers.set_index("metric").loc["ndcg@20"]
    users = np.mean([ndcg(of_seed, 20) for of_seed in ranks.values()], axis=0)
    error = users.std(ddof=1) / np.sqrt(len(users))
    assert row["mean"] == pytest.approx(users.mean())
    assert (row.high - row["mean"], row["mean"] - row.low) == pytest.approx(
        (1.96 * error, 1.96 * error), rel=0.1
    )
    assert (row.users, row.seeds) == (300, 2)


def test_settings_are_those_of_the_final_trials(write: Write) -> None:
    folder = write("toyshop:1", {("global", seed): [0, 100] for seed in (0, 1)})
    [row] = settings([folder.path]).numbers.itertuples()
    assert (row.method, row.seeds, row.still_improving) == ("global", 2, 0)
    assert row.learning_rate == folder.trials().learning_rate.iloc[0]


def test_settings_count_seeds_as_numbers_also_beside_simple_methods(write: Write) -> None:
    trials = (("popularity", 0), ("without_mm", 0), ("global", 0), ("global", 1))
    folder = write("toyshop:1", {trial: [0, 100] for trial in trials})
    numbers = settings([folder.path]).numbers
    assert numbers.method.tolist() == ["without_mm", "global"]
    assert numbers.still_improving.dtype.kind == "i"
