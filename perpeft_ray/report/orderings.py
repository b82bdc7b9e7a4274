"""Which orderings of the paper's tables hold on which data, over any number of studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from perpeft_ray.config import TABLE_2, TABLE_3, VARIANTS
from perpeft_ray.report.comparisons import p_text
from perpeft_ray.report.statistics import LEVEL, compare, holm, read_results, user_values
from perpeft_ray.report.summary import ablation_summary
from perpeft_ray.report.text import Cell, StudyTable, TextTable, mean_and_std

ORDERINGS = (
    ("frozen_mm", "without_mm"),
    ("global", "frozen_mm"),
    *(("perpeft", method) for method in (*TABLE_2[1:-1], *TABLE_3[1:])),
)
"""(above, below) in the means of the paper's Tables 2 and 3."""


def orderings(folders: Sequence[Path], metric: str = "ndcg@20") -> StudyTable:
    """Orderings of the paper that the studies have both methods of, per data set and variant.

    Columns: dataset, encoder, variant, above, below, mean_above, mean_below, difference, low, high
    (95 % bootstrap interval over users), p_value (paired t over users), p_holm (corrected over the
    data set), p_seeds, users, seeds, finding: `holds` or `reversed` where p_holm is below 0.05,
    else `undecided`.
    """
    values = _named(user_values(*read_results(folders), metric))
    rows = [
        {"dataset": dataset, "encoder": encoder, **row}
        for (dataset, encoder), of_data in values.groupby(["dataset", "encoder"], sort=False)
        for variant in VARIANTS
        for above, below in ORDERINGS
        if (row := _row(of_data, variant, above, below, metric)) is not None
    ]
    numbers = pd.DataFrame(rows)
    numbers["p_holm"] = (
        numbers.p_value.fillna(1.0)
        .groupby([numbers.dataset, numbers.encoder])
        .transform(lambda p: holm(p.to_numpy(np.float64)))
    )
    numbers["finding"] = np.where(
        numbers.p_holm >= LEVEL, "undecided", np.where(numbers.difference > 0, "holds", "reversed")
    )
    texts = tuple(
        _text(rows, str(dataset), metric)
        for dataset, rows in numbers.groupby("dataset", sort=False)
    )
    return StudyTable("orderings", numbers, texts)


def means(folders: Sequence[Path]) -> StudyTable:
    """Test metrics of every data set, method and variant.

    Columns: those of `ablation_summary`, and dataset, encoder.
    """
    trials = _named(read_results(folders)[0])
    frames = [
        ablation_summary(of_data).assign(dataset=dataset, encoder=encoder)
        for (dataset, encoder), of_data in trials.groupby(["dataset", "encoder"], sort=False)
    ]
    numbers = pd.concat(frames, ignore_index=True)
    shown = numbers[numbers.metric == "ndcg_at_20"]
    datasets = list(shown.dataset.unique())
    cells = {
        (row.method, row.variant if isinstance(row.variant, str) else "", row.dataset): row
        for row in shown.itertuples()
    }
    labels = dict.fromkeys((method, variant) for method, variant, _ in cells)
    rows = tuple(
        (Cell(f"{method} {variant}".strip()), *(_mean(cells.get((*label, d))) for d in datasets))
        for label in labels
        for method, variant in [label]
    )
    text = TextTable(
        title="Test NDCG@20 of all data sets",
        header=("method", *datasets),
        rows=rows,
        caption="× 100, mean ± standard deviation over seeds.",
    )
    return StudyTable("means", numbers, (text,))


def _row(
    values: pd.DataFrame, variant: str, above: str, below: str, metric: str
) -> dict[str, object] | None:
    found = compare(values, above, below, variant, metric)
    if found is None:
        return None
    if (above, below) == ORDERINGS[0] and variant != _first_variant(values):
        return None  # neither has a variant: one row is enough
    return {
        "variant": variant,
        "above": above,
        "below": below,
        "mean_above": found.mean_a,
        "mean_below": found.mean_b,
        "difference": found.difference,
        "low": found.interval[0],
        "high": found.interval[1],
        "p_value": found.p_value,
        "p_seeds": found.p_seeds,
        "users": found.users,
        "seeds": found.seeds,
    }


def _first_variant(values: pd.DataFrame) -> str:
    there = set(values.variant.dropna())
    return next((variant for variant in VARIANTS if variant in there), VARIANTS[0])


def _text(rows: pd.DataFrame, dataset: str, metric: str) -> TextTable:
    encoder = str(rows.encoder.iloc[0])
    return TextTable(
        title=f"The paper's orderings on {dataset}, test {metric.upper()}",
        header=("ordering", "variant", "difference", "p", "p seeds", "finding"),
        rows=tuple(
            (
                Cell(f"{row.below} < {row.above}"),
                Cell(row.variant),
                Cell(f"{100 * row.difference:+.2f} [{100 * row.low:.2f}, {100 * row.high:.2f}]"),
                Cell(p_text(row.p_holm)),
                Cell(p_text(row.p_seeds)),
                Cell(row.finding, best=row.finding != "undecided"),
            )
            for row in rows.itertuples()
        ),
        caption=(
            f"Encoder {encoder}; {rows.seeds.max()} seeds, {rows.users.max()} users. × 100 "
            "with 95 % bootstrap intervals over users; p: paired t over users, Holm-corrected over "
            "the data set; p seeds: paired t over seeds, not corrected."
        ),
    )


def _mean(row: object) -> Cell:
    return Cell("–" if row is None else mean_and_std(row.mean, row.std))  # type: ignore[attr-defined]


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Data sets and encoders by what tells them apart and not by where they lie."""
    return rows.assign(
        dataset=rows.dataset.map(lambda name: _short(name, 1)),
        encoder=rows.encoder.map(lambda name: _short(name, 2)),
    )


def _short(name: str, parts: int) -> str:
    """The last parts of the path in a data set's or encoder's name."""
    return "/".join(name.rstrip("/").split("/")[-parts:])
