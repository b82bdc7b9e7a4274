"""The paper's tables: its own counts of wins, and wins counted by hand."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console

from perpeft_ray.config import METHODS, SIMPLE_METHODS, TABLE_2, TABLE_3
from perpeft_ray.report.reference import count_wins, paper_table, paper_text_tables


@pytest.mark.parametrize(
    ("number", "methods", "wins"), [(2, TABLE_2, "44 of 48"), (3, TABLE_3, "15 of 16")]
)
def test_the_papers_wins_follow_from_its_numbers(number, methods, wins) -> None:
    assert count_wins(paper_table(number), methods) == wins


def test_wins_are_counted_against_every_other_row() -> None:
    rows = [
        ("without_mm", None, 0.50),
        ("global", "lora", 0.30),
        ("perpeft", "lora", 0.40),  # below the row without PEFT
        ("global", "ia3", 0.60),
        ("perpeft", "ia3", 0.60),  # a tie
        ("global", "iisan", 0.20),  # perpeft not finished
        ("without_text", "ia3", 0.90),  # a row of the other table
    ]
    summary = pd.DataFrame(rows, columns=["method", "variant", "mean"]).assign(metric="hr_at_20")
    assert count_wins(summary, TABLE_2) == "1 of 2"
    assert count_wins(summary, TABLE_3) == "0 of 1"
    assert count_wins(summary.assign(metric="hr_at_10"), TABLE_2) == "0 of 0"


def test_numbers_are_the_papers() -> None:
    table = paper_table(2)
    row = table[
        (table.method == "perpeft")
        & (table.variant == "lora")
        & (table.dataset == "arts")
        & (table.metric == "hr_at_30")
    ]
    assert row[["mean", "std"]].round(6).values.tolist() == [[0.0864, 0.0006]]
    assert table[table.method == "frozen_mm"].variant.isna().all()
    assert {*table.method, *paper_table(3).method} == set(METHODS) - SIMPLE_METHODS


def test_all_tables_fit_80_characters() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    tables = paper_text_tables()
    for table in tables:
        console.print(table.terminal())
    out = " ".join(console.export_text().split())
    assert len(tables) == 8
    assert "…" not in out
    assert "44 of 48" in out
    assert "15 of 16" in out


def test_the_best_of_each_variant_is_bold() -> None:
    # IISAN on Sports: global's 2.01 beats PerPEFT's 2.00 in NDCG@20.
    sports = {row[0][0]: row[3] for row in paper_text_tables()[0].rows()}
    assert sports["global iisan"] == ("2.01", True)
    assert sports["perpeft iisan"] == ("2.00 ± 0.03", False)
