"""The paper's own Tables 2 and 3, its order of methods and its count of wins.

Source: arXiv 2602.09445; the CSV files in `paper/` are its published numbers × 100.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import pandas as pd

from perpeft_ray.config import TABLE_2, TABLE_3, VARIANTS
from perpeft_ray.report.summary import labels
from perpeft_ray.report.text import TextTable, with_error

METRICS = {
    "hr_at_20": "HR@20",
    "hr_at_30": "HR@30",
    "ndcg_at_20": "NDCG@20",
    "ndcg_at_30": "NDCG@30",
}
"""The metrics that the paper prints and counts wins over."""

TABLES = {2: TABLE_2, 3: TABLE_3}
"""Methods of the paper's tables, in their order."""


def paper_table(number: int) -> pd.DataFrame:
    """Table 2 or 3 of the paper.

    Columns: method, variant (null for methods without PEFT), dataset, metric (`hr_at_20` …), mean,
    std (null where the paper has none); values in [0, 1], as in `ablation_summary`.
    """
    table = _read(f"table{number}.csv")
    return pd.DataFrame(
        {
            "method": table.method,
            "variant": table.peft.where(table.peft != "none"),
            "dataset": table.dataset,
            "metric": table.metric.str.replace("@", "_at_"),
            "mean": table.mean_x100 / 100.0,
            "std": table.std_x100 / 100.0,
        }
    )


def count_wins(summary: pd.DataFrame, rows: tuple[str, ...]) -> str:
    """Comparisons that PerPEFT wins, such as `44 of 48`, as in the captions of the paper's tables.

    A comparison is one data set, metric of `METRICS` and variant. PerPEFT wins if its mean is at
    least the mean of every other method of `rows` with that variant or without PEFT. On the paper's
    numbers this gives its 44 of 48 (Table 2) and 15 of 16 (Table 3), without ties. If PerPEFT or
    all others are missing, there is no comparison.

    `summary`: columns method, variant, metric, mean, and dataset if there are several.
    """
    place = [name for name in ("dataset", "metric") if name in summary]
    rows_of = summary[summary.metric.isin(METRICS) & summary.method.isin(rows)]
    own = rows_of[rows_of.method == "perpeft"]
    others = rows_of[rows_of.method != "perpeft"]
    with_variant = others[others.variant.notna()].merge(own, on=[*place, "variant"])
    without = others[others.variant.isna()].drop(columns="variant").merge(own, on=place)
    columns = [*place, "variant", "mean_x", "mean_y"]
    pairs = pd.concat([with_variant[columns], without[columns]])
    won = (pairs.mean_y >= pairs.mean_x).groupby([pairs[name] for name in columns[:-2]]).all()
    return f"{won.sum():.0f} of {len(won)}"


def paper_text_tables() -> list[TextTable]:
    """Tables 2 and 3 as text, one per data set, with PerPEFT's wins in the captions."""
    titles = _read("table1.csv").set_index("dataset").title
    return [_text(number, dataset, title) for number in TABLES for dataset, title in titles.items()]


def _text(number: int, dataset: str, title: str) -> TextTable:
    whole, methods = paper_table(number), TABLES[number]
    table = whole[whole.dataset == dataset]
    variants = table.variant.dropna().unique()
    blocks = {variant: block for block, variant in enumerate(VARIANTS, start=1)}
    table = table.assign(
        name=labels(table) if len(variants) > 1 else table.method,
        block=table.variant.map(blocks).fillna(0),
        place=table.method.map(methods.index),
        text=with_error(table["mean"], table["std"]),
        best=table["mean"] == table.groupby(["variant", "metric"])["mean"].transform("max"),
    ).sort_values(["block", "place"])
    rows = table.drop_duplicates("name")
    wide = table.pivot(index="name", columns="metric").loc[rows.name]
    return TextTable(
        f"The paper's Table {number} on {title} ({', '.join(variants)})",
        {"method": rows.name} | {name: wide["text"][metric] for metric, name in METRICS.items()},
        "× 100, the best of each PEFT variant is bold. perpeft is best in "
        f"{count_wins(table, methods)} here and in {count_wins(whole, methods)} over the four data "
        "sets.",
        {name: wide["best"][metric] for metric, name in METRICS.items()},
        rules=np.flatnonzero(rows.block.diff().fillna(0)).tolist(),
    )


def _read(name: str) -> pd.DataFrame:
    with resources.files("perpeft_ray.report").joinpath("paper", name).open() as file:
        return pd.read_csv(file, keep_default_na=False, na_values=[""])
