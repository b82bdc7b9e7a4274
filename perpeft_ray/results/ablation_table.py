"""The main table: methods × variants, mean and deviation over seeds, gains and wins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from perpeft_ray.config import (
    METHODS,
    PEFT_METHODS,
    SIMPLE_METHODS,
    TABLE_2,
    TABLE_3,
    StudyConfig,
    exists,
)
from perpeft_ray.results.reference import (
    OUR_READING,
    count_wins,
    paper_dataset,
    paper_datasets,
    paper_numbers,
)
from perpeft_ray.results.summary import ablation_summary, gains_over_global
from perpeft_ray.results.text import MISSING, Cell, StudyTable, TextTable, mean_and_std

SHOWN = {"ndcg_at_20": "NDCG@20", "hr_at_20": "HR@20"}
"""Metrics of the printed table; the Parquet file has all."""


def ablation_table(trials: pd.DataFrame, study: StudyConfig) -> StudyTable:
    """The methods of a study, and beside them the paper's where it has the data set.

    The numbers are of `ablation_summary`, with the columns paper_mean and paper_std (null where the
    paper has none).
    """
    summary = ablation_summary(trials)
    dataset = paper_dataset(study.dataset)
    paper = paper_numbers(dataset) if dataset else None
    printed = []
    for metric in SHOWN:
        printed.append(_own(trials, summary, study, metric))
        if paper is not None and dataset is not None:
            printed.append(_papers(paper, summary, study, metric, paper_datasets()[dataset]))
    return StudyTable("ablation_peft", _beside(summary, paper), tuple(printed))


def expected_trials(study: StudyConfig) -> int:
    """Trials that a study's ablation has when it is done."""
    variants = study.values("variant")
    cells = sum(
        sum(exists(method, variant) for variant in variants) if method in PEFT_METHODS else 1
        for method in study.methods
        if method not in SIMPLE_METHODS
    )
    simple = sum(method in SIMPLE_METHODS for method in study.methods)
    return simple + len(study.seeds) * (cells + _other_mode(study))


def _own(trials: pd.DataFrame, summary: pd.DataFrame, study: StudyConfig, metric: str) -> TextTable:
    """One metric, a row a method and a column a variant, so that it fits 80 characters."""
    variants = study.values("variant")
    of_metric = summary[summary.metric == metric]
    found = {
        (row.method, row.mode, None if pd.isna(row.variant) else row.variant): row
        for row in of_metric.itertuples()
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
    rows = [
        (
            Cell(_label(method, mode, study)),
            *(_mean_std(cell, top) for cell, top in zip(cells, tops, strict=True)),
            Cell(_seeds([cell.seeds for cell in cells if cell])),
        )
        for (method, mode), cells in zip(names, body, strict=True)
    ]
    return TextTable(
        title=f"Test {SHOWN[metric]} on {_name(study.dataset)}",
        header=("method", *variants, "seeds"),
        rows=(*rows, *_gain_rows(of_metric, study)),
        caption=_caption(trials, summary, study),
        rules=(len(rows),),
    )


def _papers(
    paper: pd.DataFrame, summary: pd.DataFrame, study: StudyConfig, metric: str, title: str
) -> TextTable:
    """The paper's numbers in the rows and columns of the study's table."""
    variants = study.values("variant")
    found = {
        (row.method, None if pd.isna(row.variant) else row.variant): row
        for row in paper[paper.metric == metric].itertuples()
    }
    methods = dict.fromkeys(method for method, _ in _rows(summary, study))
    rows = []
    for method in methods:
        cells = [found.get((method, v), found.get((method, None))) for v in variants]
        texts = (mean_and_std(cell.mean, cell.std) if cell else MISSING for cell in cells)
        rows.append((Cell(method), *map(Cell, texts)))
    return TextTable(
        title=f"The paper's {SHOWN[metric]} on {title}",
        header=("method", *variants),
        rows=tuple(rows),
        caption="× 100, from Tables 2 and 3 of arXiv 2602.09445. The data set is told by its name.",
    )


def _name(dataset: str) -> str:
    """A data set as a title has it: of a path, the last part."""
    _, _, path = dataset.partition(":")
    return PurePosixPath(path).name if "/" in path else dataset


def _beside(summary: pd.DataFrame, paper: pd.DataFrame | None) -> pd.DataFrame:
    if paper is None:
        return summary.assign(paper_mean=math.nan, paper_std=math.nan)
    columns = {"mean": "paper_mean", "std": "paper_std"}
    return summary.merge(
        paper.rename(columns=columns), on=["method", "variant", "metric"], how="left"
    )


def _gain_rows(summary: pd.DataFrame, study: StudyConfig) -> Iterator[tuple[Cell, ...]]:
    gains = {(row.mode, row.variant): row.gain for row in gains_over_global(summary).itertuples()}
    for method, mode in _rows(summary, study):
        if method == "perpeft" and "global" in study.methods:
            of_variants = [gains.get((mode, variant)) for variant in study.values("variant")]
            yield (
                Cell(f"{_label(method, mode, study)} gain"),
                *(Cell(MISSING if gain is None else f"{gain:+.1f} %") for gain in of_variants),
                Cell(""),
            )


def _rows(summary: pd.DataFrame, study: StudyConfig) -> list[tuple[str, str]]:
    """(method, mode) of what the study asks for and what it has, in the paper's order."""
    other = "sequential" if study.mode == "parallel" else "parallel"
    rows: set[tuple[str, str]] = {(method, study.mode) for method in study.methods}
    if _other_mode(study):
        rows.add(("perpeft", other))
    rows |= set(zip(summary.method, summary["mode"], strict=True))
    return sorted(rows, key=lambda row: (METHODS.index(row[0]), row[1] == other))


def _other_mode(study: StudyConfig) -> bool:
    return study.parallel_workers > 0 and "perpeft" in study.methods


def _label(method: str, mode: str, study: StudyConfig) -> str:
    return f"{method} ({mode})" if mode != study.mode else method


def _mean_std(cell: Any, top: float) -> Cell:
    """`cell`: a row of `ablation_summary` or None; `top`: the best mean of its column."""
    if cell is None:
        return Cell(MISSING)
    return Cell(mean_and_std(cell.mean, cell.std), best=cell.mean == top)


def _seeds(counts: list[int]) -> str:
    """How many seeds the cells of a row have: `3`, or `1–3` where they differ."""
    different = sorted(set(counts)) or [0]
    return f"{different[0]}–{different[-1]}" if len(different) > 1 else f"{different[0]}"


def _caption(trials: pd.DataFrame, summary: pd.DataFrame, study: StudyConfig) -> str:
    complete = int(summary[summary.metric == "ndcg_at_20"].seeds.sum())
    failed = int(((trials.phase == "ablation") & (trials.status == "FAIL")).sum())
    sentences = ["Test metrics × 100"]
    if len(study.seeds) > 1:
        sentences[0] += ", mean ± standard deviation over seeds"
    sentences[0] += "; the best of each column is bold."
    if any(method not in PEFT_METHODS for method in study.methods):
        sentences.append("Methods without PEFT have one value, shown under every variant.")
    if {"perpeft", "global"} <= set(study.methods):
        sentences.append("Gain: over global.")
    sentences += _wins(summary, study)
    if OUR_READING & set(summary.method):
        sentences.append("user_level and group_level are our reading of the paper's rows.")
    sentences.append(f"{complete} of {expected_trials(study)} trials are complete")
    sentences[-1] += f", {failed} failed." if failed else "."
    return " ".join(sentences)


def _wins(summary: pd.DataFrame, study: StudyConfig) -> Iterator[str]:
    """Sentences on PerPEFT's wins, in its study's own mode, as the paper's captions have them."""
    other = (summary.method == "perpeft") & (summary["mode"] != study.mode)
    for rows, whom in ((TABLE_2, "the other methods"), (TABLE_3, "its ablations")):
        wins = count_wins(summary[~other], rows)
        if wins.of:
            yield (
                f"perpeft beats {whom} in {wins} comparisons (variants × HR and NDCG at 20 and 30)."
            )
