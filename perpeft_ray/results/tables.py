"""The tables of a study: methods × variants, best settings, learning rates of the baselines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from perpeft_ray.config import METHODS, PEFT_METHODS, PERSONAL_METHODS, Method, Mode, StudyConfig
from perpeft_ray.results.files import whole_file
from perpeft_ray.results.folder import StudyFolder
from perpeft_ray.results.summary import (
    SELECTION,
    ablation_summary,
    baseline_learning_rates,
    best_settings,
    gains_over_global,
)
from perpeft_ray.results.text import Cell, TextTable

SHOWN = {"ndcg_at_20": "NDCG@20", "hr_at_20": "HR@20"}
"""Metrics of the printed ablation table; the Parquet file has all."""
MISSING = "–"


@dataclass(frozen=True)
class StudyTable:
    """A table's file name, its numbers (the Parquet and CSV files) and its printed forms."""

    name: str
    numbers: pd.DataFrame
    printed: tuple[TextTable, ...]


def study_tables(trials: pd.DataFrame, study: StudyConfig) -> list[StudyTable]:
    """All tables that the trials so far give; `trials` as `StudyFolder.trials` returns them."""
    summary = ablation_summary(trials)
    settings = best_settings(trials)
    rates = baseline_learning_rates(trials)
    return [
        StudyTable(
            "ablation_peft",
            summary,
            tuple(_ablation(trials, summary, study, metric) for metric in SHOWN),
        ),
        StudyTable("best_settings", settings, (_settings(settings),)),
        StudyTable("learning_rates", rates, (_learning_rates(rates),)),
    ]


def write_tables(folder: StudyFolder) -> list[StudyTable]:
    """Write `tables/<name>.parquet`, `.csv`, `.md` and `.tex` of a study, and return the tables."""
    tables = study_tables(folder.trials(), folder.config)
    for table in tables:
        path = folder.path / "tables" / table.name
        with whole_file(path.with_suffix(".parquet")) as temporary:
            table.numbers.to_parquet(temporary, index=False)
        with whole_file(path.with_suffix(".csv")) as temporary:
            table.numbers.to_csv(temporary, index=False)
        with whole_file(path.with_suffix(".md")) as temporary:
            temporary.write_text(
                "\n".join(text.markdown() for text in table.printed), encoding="utf-8"
            )
        with whole_file(path.with_suffix(".tex")) as temporary:
            temporary.write_text(
                "\n".join(text.latex() for text in table.printed), encoding="utf-8"
            )
    return tables


def expected_trials(study: StudyConfig) -> int:
    """Trials that a study's ablation has when it is done."""
    variants = len(study.values("variant"))
    cells = sum(variants if method in PEFT_METHODS else 1 for method in study.methods)
    return len(study.seeds) * (cells + _other_mode(study))


def _ablation(
    trials: pd.DataFrame, summary: pd.DataFrame, study: StudyConfig, metric: str
) -> TextTable:
    """One metric, a row a method and a column a variant, so that it fits 80 characters."""
    variants = study.values("variant")
    summary = summary[summary.metric == metric]
    found = {
        (row.method, row.mode, None if pd.isna(row.variant) else row.variant): row
        for row in summary.itertuples()
    }
    body = [
        [found.get((method, mode, v if method in PEFT_METHODS else None)) for v in variants]
        for method, mode in _rows(study)
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
        for (method, mode), cells in zip(_rows(study), body, strict=True)
    ]
    return TextTable(
        title=f"Test {SHOWN[metric]} on {study.dataset}",
        header=("method", *variants, "seeds"),
        rows=(*rows, *_gain_rows(summary, study)),
        caption=_caption(trials, summary, study),
        rules=(len(rows),),
    )


def _gain_rows(summary: pd.DataFrame, study: StudyConfig) -> Iterator[tuple[Cell, ...]]:
    gains = {(row.mode, row.variant): row.gain for row in gains_over_global(summary).itertuples()}
    for method, mode in _rows(study):
        if method == "perpeft" and "global" in study.methods:
            of_variants = [gains.get((mode, variant)) for variant in study.values("variant")]
            yield (
                Cell(f"{_label(method, mode, study)} gain"),
                *(Cell(MISSING if gain is None else f"{gain:+.1f} %") for gain in of_variants),
                Cell(""),
            )


def _rows(study: StudyConfig) -> list[tuple[Method, Mode]]:
    """(method, mode) of the ablation's rows in the paper's order."""
    rows: list[tuple[Method, Mode]] = []
    for method in METHODS:
        if method in study.methods:
            rows.append((method, study.mode if method in PERSONAL_METHODS else "sequential"))
            if method == "perpeft" and _other_mode(study):
                rows.append((method, "sequential" if study.mode == "parallel" else "parallel"))
    return rows


def _other_mode(study: StudyConfig) -> bool:
    return study.parallel_workers > 0 and "perpeft" in study.methods


def _label(method: str, mode: str, study: StudyConfig) -> str:
    personal = method in PERSONAL_METHODS
    return f"{method} ({mode})" if personal and mode != study.mode else method


def _mean_std(cell: Any, top: float) -> Cell:
    """`cell`: a row of `ablation_summary` or None; `top`: the best mean of its column."""
    if cell is None:
        return Cell(MISSING)
    spread = "" if pd.isna(cell.std) else f" ± {100 * cell.std:.2f}"
    return Cell(f"{100 * cell.mean:.2f}{spread}", best=cell.mean == top)


def _seeds(counts: list[int]) -> str:
    """How many seeds the cells of a row have: `3`, or `1–3` where they differ."""
    different = sorted(set(counts)) or [0]
    return f"{different[0]}–{different[-1]}" if len(different) > 1 else f"{different[0]}"


def _caption(trials: pd.DataFrame, summary: pd.DataFrame, study: StudyConfig) -> str:
    complete = int(summary.seeds.sum())
    failed = int(((trials.phase == "ablation") & (trials.status == "FAIL")).sum())
    sentences = ["Test metrics × 100"]
    if len(study.seeds) > 1:
        sentences[0] += ", mean ± standard deviation over seeds"
    sentences[0] += "; the best of each column is bold."
    if any(method not in PEFT_METHODS for method in study.methods):
        sentences.append("Methods without PEFT have one value, shown under every variant.")
    if {"perpeft", "global"} <= set(study.methods):
        sentences.append("Gain: over global.")
    sentences.append(f"{complete} of {expected_trials(study)} trials are complete")
    sentences[-1] += f", {failed} failed." if failed else "."
    return " ".join(sentences)


def _settings(settings: pd.DataFrame) -> TextTable:
    top = settings[SELECTION].max()
    rows = tuple(
        (
            Cell(row.variant),
            Cell(f"{row.groups:.0f}"),
            Cell(MISSING if pd.isna(row.rank) else f"{row.rank:.0f}"),
            Cell(f"{row.conditioning_weight:g}"),
            Cell(f"{row.learning_rate:g}"),
            Cell(f"{100 * row.valid_ndcg_at_20:.2f}", best=row.valid_ndcg_at_20 == top),
            Cell(f"{row.trials}"),
        )
        for row in settings.itertuples()
    )
    return TextTable(
        title="Best settings of PerPEFT",
        header=("variant", "groups", "rank", "λ", "learning rate", "valid NDCG@20", "trials"),
        rows=rows,
        caption="Chosen in the search by validation NDCG@20 (× 100) among the variant's complete "
        "trials.",
    )


def _learning_rates(rates: pd.DataFrame) -> TextTable:
    rows = tuple(
        (
            Cell(row.method),
            Cell(MISSING if pd.isna(row.variant) else row.variant),
            Cell(f"{row.learning_rate:g}"),
            Cell(f"{100 * row.valid_ndcg_at_20:.2f}", best=row.chosen),
        )
        for row in rates.itertuples()
    )
    return TextTable(
        title="Learning rates of the baselines",
        header=("method", "variant", "learning rate", "valid NDCG@20"),
        rows=rows,
        caption="Validation NDCG@20 (× 100); the rate in bold is the one the ablation uses.",
    )
