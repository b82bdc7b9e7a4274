"""Orderings over studies, on ranks made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from perpeft_ray.metrics import ndcg
from perpeft_ray.report.orderings import means, orderings, settings
from perpeft_ray.report.statistics import holm
from tests.report.test_statistics import Write, compare_methods, write

__all__ = ["write"]


def test_findings_are_the_signs_of_what_is_significant(write: Write) -> None:
    rng = np.random.default_rng(0)
    better, worse = rng.integers(0, 3, 200), rng.integers(10, 60, 200)
    first = write(
        "toyshop:1",
        {
            ("without_mm", 0): worse,
            ("frozen_mm", 0): better,
            ("global", 0): worse,
            ("perpeft", 0): better,
        },
    )
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
    one = compare_methods([first.path], "perpeft", "global", "lora")
    row = ndcgs.set_index(["dataset", "above", "below"]).loc[("toyshop:1", "perpeft", "global")]
    assert row.difference == pytest.approx(one.difference)
    assert (row.low, row.high) == pytest.approx(one.interval)
    for _, rows in table.numbers.groupby(["dataset", "metric"]):
        np.testing.assert_allclose(rows.p_holm, holm(rows.p_value.fillna(1.0).to_numpy()))
    [text, *_] = table.printed
    assert "without_mm < frozen_mm" in text.markdown()


def test_orderings_are_of_both_metrics(write: Write) -> None:
    first = write("toyshop:1", {("global", 0): [0, 100, 50], ("perpeft", 0): [0, 0, 50]})
    rows = orderings([first.path]).numbers.set_index("metric")
    assert rows.loc["hr@20"].difference == pytest.approx(1 / 3)
    assert rows.loc["ndcg@20"].difference == pytest.approx(1 / 3)


def test_means_have_a_column_a_data_set(write: Write) -> None:
    first = write("toyshop:1", {("global", 0): [0, 100], ("perpeft", 0): [0, 0]})
    second = write("toyshop:2", {("perpeft", 0): [100, 100]})
    text, _ = means([first.path, second.path]).printed
    assert text.header == ("method", "toyshop:1", "toyshop:2")
    cells = {row[0].text: [cell.text for cell in row[1:]] for row in text.rows}
    assert set(cells) == {"global lora", "perpeft lora"}
    assert cells["global lora"][1] == "–"


def test_the_interval_of_a_mean_is_about_two_standard_errors_over_users(write: Write) -> None:
    rng = np.random.default_rng(0)
    ranks = {("global", seed): rng.integers(0, 40, 300) for seed in (0, 1)}
    [row] = (
        means([write("toyshop:1", ranks).path]).numbers.query("metric == 'ndcg@20'").itertuples()
    )
    users = np.mean([ndcg(of_seed, 20) for of_seed in ranks.values()], axis=0)
    error = users.std(ddof=1) / np.sqrt(len(users))
    assert row.mean == pytest.approx(users.mean())
    assert row.high - row.mean == pytest.approx(1.96 * error, rel=0.1)
    assert row.mean - row.low == pytest.approx(1.96 * error, rel=0.1)
    assert (row.users, row.seeds) == (300, 2)


def test_settings_are_those_of_the_final_trials(write: Write) -> None:
    folder = write("toyshop:1", {("global", seed): [0, 100] for seed in (0, 1)})
    final = folder.trials()
    [row] = settings([folder.path]).numbers.itertuples()
    assert (row.method, row.seeds) == ("global", 2)
    assert row.learning_rate == final.learning_rate.iloc[0]
    assert row.still_improving == final.still_improving.sum()
