"""The main table: methods × variants, mean and standard error, marks for better than `global`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from perpeft_ray.config import METHODS, PEFT_METHODS, VECTOR_METHODS, StudyConfig
from perpeft_ray.metrics import CUTOFFS
from perpeft_ray.report.statistics import CELL, Comparison, user_means, user_values
from perpeft_ray.report.summary import ablation_summary, has_other_mode
from perpeft_ray.report.text import MISSING, Cell, StudyTable, TextTable

MARK = "*"


def ablation_table(
    trials: pd.DataFrame,
    users: pd.DataFrame,
    study: StudyConfig,
    compared: Sequence[Comparison],
) -> StudyTable:
    """The methods of a study; prints NDCG@20 and HR@20.

    `trials`, `users`: of `read_results`; `compared`: of `compare_all`. The numbers are those of
    `ablation_summary` with the column `error`, the standard error over users of each mean.
    """
    errors = pd.concat(
        _errors(trials, users, f"{name}@{cutoff}") for name in ("hr", "ndcg") for cutoff in CUTOFFS
    )
    summary = ablation_summary(trials).merge(errors, on=[*CELL, "metric"], how="left")
    return StudyTable(
        "ablation_peft",
        summary,
        (
            _table(summary[summary.metric == "ndcg_at_20"], study, "NDCG@20", _marks(compared)),
            _table(summary[summary.metric == "hr_at_20"], study, "HR@20", set()),
        ),
    )


def _errors(trials: pd.DataFrame, users: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Columns method, variant, mode, metric, error; a user's value is the mean over seeds."""
    means = user_means(user_values(trials, users, metric, own_mode=False), [])
    return means[[*CELL, "error"]].assign(metric=metric.replace("@", "_at_"))


def _marks(compared: Sequence[Comparison]) -> set[tuple[str, str | None]]:
    """Methods and variants that are significantly better than `global`."""
    return {
        (comparison.method_a, comparison.variant)
        for comparison in compared
        if comparison.method_b == "global" and comparison.significant and comparison.difference > 0
    }


def _table(
    summary: pd.DataFrame, study: StudyConfig, metric: str, marks: set[tuple[str, str | None]]
) -> TextTable:
    """One metric, one row per method and column per variant, within 80 characters."""
    variants = study.values("variant")
    found = {
        (row.method, row.mode, None if pd.isna(row.variant) else row.variant): row
        for row in summary.itertuples()
    }
    names = _rows(summary, study)
    body = [
        [found.get((method, mode, v), found.get((method, mode, None))) for v in variants]
        for method, mode in names
    ]
    tops = [
        max((cell.mean for cell in column if cell), default=math.nan)
        for column in zip(*body, strict=True)
    ]
    rows = []
    for (method, mode), cells in zip(names, body, strict=True):
        other_mode = mode != study.mode
        label = f"{method} ({mode})" if other_mode else method
        marked = [not other_mode and (method, variant) in marks for variant in variants]
        texts = (_cell(*of_cell) for of_cell in zip(cells, tops, marked, strict=True))
        rows.append((Cell(label), *texts))
    return TextTable(
        title=f"Test {metric} × 100 on {_name(study.dataset)}",
        header=("method", *variants),
        rows=tuple(rows),
        caption=_caption(summary, study, marks),
    )


def _cell(row: Any, top: float, marked: bool) -> Cell:
    if row is None:
        return Cell(MISSING)
    error = "" if pd.isna(row.error) else f" ± {100 * row.error:.2f}"
    return Cell(f"{100 * row.mean:.2f}{error}{MARK if marked else ''}", best=row.mean == top)


def _name(dataset: str) -> str:
    """A data set's name in titles: the last part of a path."""
    _, _, path = dataset.partition(":")
    return PurePosixPath(path).name if "/" in path else dataset


def _rows(summary: pd.DataFrame, study: StudyConfig) -> list[tuple[str, str]]:
    """(method, mode) of the planned and the existing rows, in the paper's order."""
    other = "sequential" if study.mode == "parallel" else "parallel"
    rows: set[tuple[str, str]] = {(method, study.mode) for method in study.methods}
    if has_other_mode(study):
        rows.add(("perpeft", other))
    rows |= set(zip(summary.method, summary["mode"], strict=True))
    return sorted(rows, key=lambda row: (METHODS.index(row[0]), row[1] == other))


def _caption(summary: pd.DataFrame, study: StudyConfig, marks: set[tuple[str, str | None]]) -> str:
    seeds = sorted(set(summary[summary.method.isin(PEFT_METHODS)].seeds)) or [0]
    number = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    text = f"mean ± standard error over users; seeds: {number}; bold: best of the column"
    if marks:
        text += f"; {MARK} better than global, p < 0.05 (Holm)"
    if VECTOR_METHODS & set(summary.method):
        text += "; user_level and group_level are our reading of the paper's rows"
    return text + "."
