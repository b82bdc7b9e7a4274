"""Orderings over studies, on ranks made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from perpeft_ray.report.orderings import means, orderings
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
    found = {(row.dataset, row.above, row.below): row.finding for row in table.numbers.itertuples()}
    assert found == {
        ("toyshop:1", "frozen_mm", "without_mm"): "holds",
        ("toyshop:1", "global", "frozen_mm"): "reversed",
        ("toyshop:1", "perpeft", "frozen_mm"): "undecided",
        ("toyshop:1", "perpeft", "global"): "holds",
        ("toyshop:2", "perpeft", "global"): "undecided",
    }
    one = compare_methods([first.path], "perpeft", "global", "lora")
    row = table.numbers.set_index(["dataset", "above", "below"]).loc[
        ("toyshop:1", "perpeft", "global")
    ]
    assert row.difference == pytest.approx(one.difference)
    assert (row.low, row.high) == pytest.approx(one.interval)
    for _, rows in table.numbers.groupby("dataset"):
        np.testing.assert_allclose(rows.p_holm, holm(rows.p_value.fillna(1.0).to_numpy()))
    [text, _] = table.printed
    assert "without_mm < frozen_mm" in text.markdown()


def test_means_have_a_column_a_data_set(write: Write) -> None:
    first = write("toyshop:1", {("global", 0): [0, 100], ("perpeft", 0): [0, 0]})
    second = write("toyshop:2", {("perpeft", 0): [100, 100]})
    [text] = means([first.path, second.path]).printed
    assert text.header == ("method", "toyshop:1", "toyshop:2")
    cells = {row[0].text: [cell.text for cell in row[1:]] for row in text.rows}
    assert set(cells) == {"global lora", "perpeft lora"}
    assert cells["global lora"][1] == "–"
