"""Metrics beside the objective, and NDCG@20 by the test item's frequency and by history."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from perpeft_ray.metrics import OF_RANKS
from perpeft_ray.report.statistics import CELL, user_means, user_values
from perpeft_ray.report.summary import final_trials, in_paper_order
from perpeft_ray.report.text import Cell, StudyTable, TextTable, mean_and_std

_SLICES = {
    "test_item_occurrences": "how often the test item occurs in training",
    "history_length": "how many items of the user are known",
}


def metrics_table(trials: pd.DataFrame, users: pd.DataFrame, lengths: Sequence[int]) -> StudyTable:
    """HR, NDCG, MRR, coverage and popularity at each K of `lengths`; prints one table per K.

    `trials`, `users`: of `read_results`. Columns: method, variant, mode, k, metric, mean, error
    (standard error over users, null for coverage and popularity), seeds.
    """
    found = [
        user_means(user_values(trials, users, f"{metric}@{k}", own_mode=False), []).assign(
            metric=metric, k=k
        )
        for k in lengths
        for metric in OF_RANKS
    ]
    final = final_trials(trials)
    for k in lengths:
        for metric in ("coverage", "popularity"):
            values = final[f"test_{metric}"].map(lambda of_k, k=k: of_k[k - 1], na_action="ignore")
            by_cell = final.assign(mean=values.astype(float)).groupby(CELL, dropna=False)
            means = by_cell.agg(mean=("mean", "mean"), seeds=("seed", "nunique")).reset_index()
            found.append(means.assign(metric=metric, k=k))
    numbers = in_paper_order(pd.concat(found, ignore_index=True))
    numbers = numbers[[*CELL, "k", "metric", "mean", "error", "seeds"]]
    texts = [_of_length(numbers[numbers.k == k], k) for k in lengths if len(numbers)]
    return StudyTable("metrics", numbers, tuple(texts))


def _of_length(numbers: pd.DataFrame, k: int) -> TextTable:
    names = [*OF_RANKS, "coverage"]
    tops = numbers.groupby("metric")["mean"].max()
    rows = []
    for cell, of_cell in numbers.groupby(CELL, dropna=False, sort=False):
        mean = of_cell.set_index("metric")["mean"]
        cells = [Cell(f"{100 * mean[n]:.2f}", best=mean[n] == tops[n]) for n in names]
        rows.append((Cell(_label(*cell)), *cells, Cell(f"{mean['popularity']:.1f}")))
    return TextTable(
        title=f"Test metrics at {k}",
        header=("method", *(name.upper() for name in OF_RANKS), "coverage", "popularity"),
        rows=tuple(rows),
        caption=(
            "Means × 100, except popularity; bold: best of the column. "
            f"Coverage: share of all items that are in anyone's first {k}. Popularity: how often a "
            "recommended item occurs in training."
        ),
    )


def slices_table(trials: pd.DataFrame, users: pd.DataFrame) -> StudyTable:
    """Test NDCG@20 of users in up to three parts, by `test_item_occurrences` and `history_length`.

    The parts have about equally many users. Columns: method, variant, mode, by, low, high (the
    values that a part spans), users, mean, error (over users), seeds.
    """
    values = user_values(trials, users, own_mode=False)
    found, texts = [], []
    for name, words in _SLICES.items():
        if values.empty:
            break
        # Equal values leave pandas without bins; they are one part.
        part = pd.qcut(values[name], 3, labels=False, duplicates="drop").fillna(0)
        ends = values.groupby(part)[name].agg(["min", "max"]).astype(int)
        cut = values.assign(low=part.map(ends["min"]), high=part.map(ends["max"]))
        numbers = in_paper_order(user_means(cut, ["low", "high"]).assign(by=name))
        found.append(numbers)
        texts.append(_by_part(numbers, words))
    columns = [*CELL, "by", "low", "high", "users", "mean", "error", "seeds"]
    numbers = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)
    return StudyTable("slices", numbers[columns], tuple(texts))


def _by_part(numbers: pd.DataFrame, words: str) -> TextTable:
    parts = sorted(set(zip(numbers.low, numbers.high, strict=True)))
    tops = numbers.groupby(["low", "high"])["mean"].max()
    rows = []
    for cell, of_cell in numbers.groupby(CELL, dropna=False, sort=False):
        by_part = of_cell.set_index(["low", "high"])
        means = [(by_part["mean"][part], by_part["error"][part]) for part in parts]
        tops_of_parts = [tops[part] for part in parts]
        texts = [
            Cell(mean_and_std(mean, error), best=mean == top)
            for (mean, error), top in zip(means, tops_of_parts, strict=True)
        ]
        rows.append((Cell(_label(*cell)), *texts))
    counts = numbers.groupby(["low", "high"]).users.max()
    return TextTable(
        title=f"Test NDCG@20 by {words}",
        header=("method", *(f"{low}" if low == high else f"{low}–{high}" for low, high in parts)),
        rows=tuple(rows),
        caption=(
            f"× 100, mean ± standard error over {_listed(counts[part] for part in parts)} users; "
            "bold: best of the column."
        ),
    )


def _label(method: str, variant: str | None, mode: str) -> str:
    words = [method] if pd.isna(variant) else [method, str(variant)]
    return " ".join([*words, "(parallel)"] if mode == "parallel" else words)


def _listed(counts: Iterable[int]) -> str:
    return ", ".join(f"{count:,}" for count in counts)
