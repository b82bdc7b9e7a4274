"""All comparisons of a study's methods, corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pandas as pd

from perpeft_ray.report.statistics import LEVEL, Comparison, compare_all, read_values
from perpeft_ray.report.text import MISSING, Cell, StudyTable, TextTable


def comparisons(folders: Sequence[Path], metric: str = "ndcg@20") -> StudyTable:
    """`comparisons_table` over all seeds of one or several studies."""
    return comparisons_table(compare_all(read_values(folders, metric), metric))


def comparisons_table(compared: Sequence[Comparison]) -> StudyTable:
    """The results of `compare_all`, one row each; prints PerPEFT's, one table per variant.

    Columns of the numbers: the fields of `Comparison`, with intervals as `…_low` and `…_high`.
    """
    names = [field.name for field in fields(Comparison)]
    numbers = pd.DataFrame([asdict(comparison) for comparison in compared], columns=names)
    for name in ("interval", "ratio_interval"):
        ends = numbers.pop(name)
        numbers[f"{name}_low"] = [low for low, _ in ends]
        numbers[f"{name}_high"] = [high for _, high in ends]
    printed = numbers[numbers.method_a == "perpeft"]
    texts = (_text(rows, str(v)) for v, rows in printed.groupby("variant", sort=False))
    return StudyTable("comparisons", numbers, tuple(texts))


def p_text(p: float) -> str:
    """A p value as printed: three decimals, or `<.001`."""
    if np.isnan(p):
        return MISSING
    return "<.001" if p < 0.001 else f"{p:.3f}"


def _text(numbers: pd.DataFrame, variant: str) -> TextTable:
    """The rows of one variant: one table per variant fits 80 characters."""
    rows = tuple(
        (
            Cell(row.method_b),
            Cell(
                f"{100 * row.difference:+.2f} "
                f"[{100 * row.interval_low:.2f}, {100 * row.interval_high:.2f}]",
                best=row.p_holm < LEVEL and row.difference > 0,
            ),
            Cell(p_text(row.p_holm)),
            Cell(f"{row.effect_size:+.2f}"),
            Cell(p_text(row.p_seeds_holm)),
        )
        for row in numbers.itertuples()
    )
    metric = numbers.metric.iloc[0].upper()
    return TextTable(
        title=f"perpeft ({variant}) against the other methods, test {metric}",
        header=("method", "difference", "p", "d", "p seeds"),
        rows=rows,
        caption=(
            "perpeft minus the method, × 100, with its 95 % bootstrap interval; bold where better "
            f"with p < 0.05. p: paired t over users ({_range(numbers.users)}), whose values are "
            f"means over seeds; p seeds: paired t over seeds ({_range(numbers.seeds)}); both "
            "Holm-corrected over all variants. d: Cohen's, over users."
        ),
    )


def _range(counts: pd.Series) -> str:
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low}–{high}"
