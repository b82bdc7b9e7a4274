"""Orderings over studies, on ranks made by hand."""

from __future__ import annotations

import numpy as np
import pytest

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
    second = write("toyshop:2", {("perpeft", seed): [100, 0] for seed in (0, 1)})
    table = means([first.path, second.path])
    assert list(table.printed[0].texts) == ["method", "toyshop:1", "toyshop:2"]
    assert table.printed[0].texts.to_numpy().tolist() == [
        ["global lora", "50.00 [0.00, 100.00]", "–"],
        ["perpeft lora", "100.00 [100.00, 100.00]", "50.00 [0.00, 100.00]"],
    ]
    assert table.numbers[["users", "seeds"]].to_numpy().tolist()[-1] == [2, 2]


def test_settings_are_those_of_the_final_trials_with_seeds_counted(write: Write) -> None:
    trials = (("popularity", 0), ("without_mm", 0), ("global", 0), ("global", 1))
    folder = write("toyshop:1", {trial: [0, 100] for trial in trials})
    numbers = settings([folder.path]).numbers
    assert numbers.method.tolist() == ["without_mm", "global"]
    assert numbers.seeds.tolist() == [1, 2]
    assert numbers.still_improving.tolist() == [0, 0]
    assert numbers.still_improving.dtype.kind == "i"  # also beside simple methods, which have none
    assert numbers.learning_rate[1] == folder.trials().learning_rate.iloc[-1]
