"""Which of the paper's orderings hold on which data, over any number of studies."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from perpeft_ray.config import (
    SEARCHABLE,
    SIMPLE_METHODS,
    TABLE_2,
    TABLE_3,
    VARIANTS,
    VARIED,
    Searchable,
)
from perpeft_ray.report.statistics import (
    LEVEL,
    compare,
    holm,
    mean_and_interval,
    read_results,
    user_values,
)
from perpeft_ray.report.summary import SELECTION, final_trials, in_paper_order, labels
from perpeft_ray.report.text import StudyTable, TextTable, p_text, shown, with_interval
from perpeft_ray.store.folder import StudyFolder

ORDERINGS = (
    ("frozen_mm", "without_mm"),
    ("global", "frozen_mm"),
    *(("perpeft", method) for method in (*TABLE_2[1:-1], *TABLE_3[1:])),
)
"""(above, below) in the means of the paper's Tables 2 and 3."""


SHOWN = ("ndcg@20", "hr@20")
"""Metrics that the tables print."""


def orderings(folders: Sequence[Path]) -> StudyTable:
    """The paper's orderings whose methods the studies have, per data set and variant.

    Columns: dataset, encoder, metric, variant, above, below, mean_above, mean_below, difference,
    low, high (95 % bootstrap interval over users), p_value (paired t over users), p_holm (corrected
    over the data set and metric), p_seeds, users, seeds, finding: `holds` or `reversed` if
    p_holm is below 0.05, else `undecided`.
    """
    results = read_results([StudyFolder.open(path) for path in folders])
    rows = [
        {"dataset": dataset, "encoder": encoder, "metric": metric, **row}
        for metric in SHOWN
        for (dataset, encoder), of_data in _named(user_values(*results, metric)).groupby(
            ["dataset", "encoder"], sort=False
        )
        for row in _rows(of_data, metric)
    ]
    numbers = pd.DataFrame(rows)
    numbers["p_holm"] = (
        numbers.p_value.fillna(1.0)
        .groupby([numbers.dataset, numbers.encoder, numbers.metric])
        .transform(lambda p: holm(p.to_numpy(np.float64)))
    )
    numbers["finding"] = np.where(
        numbers.p_holm >= LEVEL, "undecided", np.where(numbers.difference > 0, "holds", "reversed")
    )
    texts = tuple(
        _text(rows, str(dataset), str(metric))
        for (dataset, metric), rows in numbers.groupby(["dataset", "metric"], sort=False)
    )
    return StudyTable("orderings", numbers, texts)


def means(folders: Sequence[Path]) -> StudyTable:
    """Test metrics of every data set, method and variant, with intervals over users.

    Columns: dataset, encoder, method, variant, metric, mean, low, high (95 % bootstrap interval
    over users, whose values are means over seeds), std (over seeds, null for one), users, seeds.
    """
    results = read_results([StudyFolder.open(path) for path in folders])
    values = pd.concat(
        [_named(user_values(*results, metric)).assign(metric=metric) for metric in SHOWN]
    )
    cells = ["dataset", "encoder", "method", "variant", "metric"]
    numbers = pd.DataFrame(
        [
            dict(zip(cells, cell, strict=True)) | _interval(rows)
            for cell, rows in values.groupby(cells, dropna=False, sort=False)
        ]
    )
    numbers = in_paper_order(numbers)
    return StudyTable("means", numbers, tuple(_means_text(numbers, m) for m in SHOWN))


def settings(folders: Sequence[Path]) -> StudyTable:
    """The settings that validation chose for every data set and method.

    Columns: dataset, encoder, method, variant, the searchable settings, valid_ndcg_at_20 and
    selected_epoch (means over seeds), still_improving (seeds whose best epoch is the last), seeds.
    """
    cells = ["dataset", "encoder", "method", "variant"]
    final = _named(final_trials(read_results([StudyFolder.open(path) for path in folders])[0]))
    # Simple methods have no such column, which makes it one of objects.
    final = final[~final.method.isin(SIMPLE_METHODS)].astype({"still_improving": int})
    groups = final.groupby([*cells, *VARIED], dropna=False, sort=False)
    numbers = in_paper_order(
        groups.agg(
            valid_ndcg_at_20=(SELECTION, "mean"),
            selected_epoch=("selected_epoch", "mean"),
            still_improving=("still_improving", "sum"),
            seeds=("seed", "nunique"),
        ).reset_index()
    )
    varied = [s for s in SEARCHABLE if numbers.groupby("dataset")[s.name].nunique().max() > 1]
    texts = tuple(
        _settings_text(rows, str(dataset), varied)
        for dataset, rows in numbers.groupby("dataset", sort=False)
    )
    return StudyTable("settings", numbers, texts)


def _rows(values: pd.DataFrame, metric: str) -> Iterator[dict[str, object]]:
    there = set(values.variant.dropna())
    variants = [variant for variant in VARIANTS if variant in there] or VARIANTS[:1]
    for variant, (above, below) in itertools.product(variants, ORDERINGS):
        if (above, below) == ORDERINGS[0] and variant != variants[0]:
            continue  # neither has a variant: one row is enough
        found = compare(values, above, below, variant, metric)
        if found is not None:
            yield {
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


def _text(rows: pd.DataFrame, dataset: str, metric: str) -> TextTable:
    return TextTable(
        f"The paper's orderings on {dataset}, test {metric.upper()}",
        {
            "ordering": rows.below + " < " + rows.above,
            "variant": rows.variant,
            "difference": with_interval(rows.difference, rows.low, rows.high),
            "p": map(p_text, rows.p_holm),
            "p seeds": map(p_text, rows.p_seeds),
            "finding": rows.finding,
        },
        f"Encoder {rows.encoder.iloc[0]}; {rows.seeds.max()} seeds, {rows.users.max()} users. "
        "× 100 with 95 % bootstrap intervals over users, not corrected; p: paired t over users, "
        "Holm-corrected over the data set; p seeds: paired t over seeds, not corrected.",
        {"finding": rows.finding != "undecided"},
    )


def _interval(rows: pd.DataFrame) -> dict[str, object]:
    """The mean over users of `user_values`, with its interval and its deviation over seeds."""
    of_users = rows.groupby("user_id")["value"].mean().to_numpy()
    of_seeds = rows.groupby("seed")["value"].mean()
    mean, low, high = mean_and_interval(of_users)
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "std": of_seeds.std(),
        "users": len(of_users),
        "seeds": len(of_seeds),
    }


def _means_text(numbers: pd.DataFrame, metric: str) -> TextTable:
    rows = numbers[numbers.metric == metric]
    label = labels(rows)
    cells = with_interval(rows["mean"], rows.low, rows.high, ".2f")
    wide = rows.assign(label=label, cell=cells).pivot(
        index="label", columns="dataset", values="cell"
    )
    wide = wide.loc[label.unique(), rows.dataset.unique()]
    return TextTable(
        f"Test {metric.upper()} of all data sets",
        {"method": wide.index, **{name: shown(wide[name]) for name in wide}},
        "× 100, mean over seeds, with 95 % bootstrap intervals over users.",
    )


def _settings_text(rows: pd.DataFrame, dataset: str, varied: Sequence[Searchable]) -> TextTable:
    return TextTable(
        f"Settings chosen by validation on {dataset}",
        {
            "method": rows.method,
            **{s.symbol: shown(rows[s.name], "g") for s in varied},
            "valid NDCG@20": shown(100 * rows.valid_ndcg_at_20, ".2f"),
            "epoch": shown(rows.selected_epoch, ".0f"),
            "seeds": shown(rows.seeds),
        },
        "Chosen with the first seed; NDCG@20 × 100 and the selected epoch are means over "
        f"seeds. {rows.still_improving.sum()} of {rows.seeds.sum()} trials selected their last "
        "epoch.",
    )


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Data sets and encoders under short distinct names, without folders."""
    return rows.assign(
        dataset=rows.dataset.map(lambda name: _short(name, 1)),
        encoder=rows.encoder.map(lambda name: _short(name, 2)),
    )


def _short(name: str, parts: int) -> str:
    """The last parts of the path in a data set's or encoder's name."""
    return "/".join(name.rstrip("/").split("/")[-parts:])
