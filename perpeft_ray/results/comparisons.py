"""The table of comparisons: PerPEFT against every other method, corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pandas as pd

from perpeft_ray.config import METHODS, VARIANTS
from perpeft_ray.results.statistics import (
    Comparison,
    compare_trials,
    holm,
    read_final_trials,
)
from perpeft_ray.results.text import MISSING, Cell, StudyTable, TextTable


def comparisons(folders: Sequence[Path], metric: str = "ndcg@20") -> StudyTable:
    """PerPEFT against every other method of each variant, over all seeds of one or several studies.

    The numbers have a row a `Comparison`, with intervals as columns `…_low` and `…_high`, and
    p_holm and p_seeds_holm: p_value and p_seeds corrected by Holm over all rows of the table.
    """
    trials = read_final_trials(folders)
    found = [
        comparison
        for variant in VARIANTS
        for method in METHODS
        if method != "perpeft"
        and (comparison := compare_trials(trials, "perpeft", method, variant, metric)) is not None
    ]
    numbers = _numbers(found)
    texts = (_text(numbers, variant, metric) for variant in numbers.variant.unique())
    return StudyTable("comparisons", numbers, tuple(texts))


def p_text(p: float) -> str:
    """A p value as printed: three decimals, or `<.001`."""
    if np.isnan(p):
        return MISSING
    return "<.001" if p < 0.001 else f"{p:.3f}"


def _numbers(found: list[Comparison]) -> pd.DataFrame:
    names = [field.name for field in fields(Comparison)]
    numbers = pd.DataFrame([asdict(comparison) for comparison in found], columns=names)
    for name in ("interval", "ratio_interval"):
        ends = numbers.pop(name)
        numbers[f"{name}_low"] = [low for low, _ in ends]
        numbers[f"{name}_high"] = [high for _, high in ends]
    for name, corrected in (("p_value", "p_holm"), ("p_seeds", "p_seeds_holm")):
        known = numbers[name].notna()
        numbers[corrected] = np.nan
        numbers.loc[known, corrected] = holm(numbers.loc[known, name].to_numpy(np.float64))
    return numbers


def _text(numbers: pd.DataFrame, variant: str, metric: str) -> TextTable:
    """The rows of one variant, so that the table fits 80 characters."""
    numbers = numbers[numbers.variant == variant]
    rows = tuple(
        (
            Cell(row.method_b),
            Cell(
                f"{100 * row.difference:+.2f} "
                f"[{100 * row.interval_low:.2f}, {100 * row.interval_high:.2f}]",
                best=row.p_holm < 0.05 and row.difference > 0,
            ),
            Cell(p_text(row.p_holm)),
            Cell(f"{row.effect_size:+.2f}"),
            Cell(p_text(row.p_seeds_holm)),
        )
        for row in numbers.itertuples()
    )
    return TextTable(
        title=f"perpeft ({variant}) against the other methods, test {metric.upper()}",
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
