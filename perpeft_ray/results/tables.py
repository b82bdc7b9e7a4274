"""The tables of a study, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from perpeft_ray.results.ablation_table import ablation_table
from perpeft_ray.results.comparisons import comparisons
from perpeft_ray.results.files import whole_file
from perpeft_ray.results.folder import StudyFolder
from perpeft_ray.results.summary import (
    SELECTION,
    baseline_learning_rates,
    best_settings,
    costs,
    front,
    sensitivity,
)
from perpeft_ray.results.text import MISSING, Cell, StudyTable, TextTable, mean_and_std


def study_tables(folder: StudyFolder) -> list[StudyTable]:
    """All tables that the trials so far give, from the study's Parquet files alone."""
    trials = folder.trials()
    tables = [costs_table(trials)]
    if set(trials.phase) != {"settings"}:
        tables = [
            ablation_table(trials, folder.config),
            comparisons([folder.path]),
            best_settings_table(trials),
            learning_rates_table(trials),
            *tables,
        ]
    if folder.config.search.pareto:
        return [*tables, front_table(trials)]
    varied = sensitivity_table(trials)
    return [*tables, varied] if len(varied.numbers) else tables


def write_tables(folder: StudyFolder) -> list[StudyTable]:
    """Write `tables/<name>.parquet`, `.csv`, `.md` and `.tex` of a study, and return the tables."""
    tables = study_tables(folder)
    for table in tables:
        write_table(table, folder.path / "tables")
    return tables


def write_table(
    table: StudyTable, folder: Path, forms: Sequence[str] = ("parquet", "csv", "md", "tex")
) -> None:
    """Write a table in these forms to `<folder>/<name>.<form>`: numbers, and as printed."""
    for form in forms:
        with whole_file(folder / f"{table.name}.{form}") as temporary:
            if form == "parquet":
                table.numbers.to_parquet(temporary, index=False)
            elif form == "csv":
                table.numbers.to_csv(temporary, index=False)
            else:
                texts = (t.markdown() if form == "md" else t.latex() for t in table.printed)
                temporary.write_text("\n".join(texts), encoding="utf-8")


def best_settings_table(trials: pd.DataFrame) -> StudyTable:
    """The search's best setting of each variant."""
    settings = best_settings(trials)
    top = settings[SELECTION].max()
    rows = tuple(
        (
            Cell(row.variant),
            Cell(f"{row.groups:.0f}"),
            Cell(_or_missing(row.rank, ".0f")),
            Cell(f"{row.conditioning_weight:g}"),
            Cell(f"{row.learning_rate:g}"),
            Cell(f"{100 * row.valid_ndcg_at_20:.2f}", best=row.valid_ndcg_at_20 == top),
            Cell(f"{row.trials}"),
        )
        for row in settings.itertuples()
    )
    text = TextTable(
        title="Best settings of PerPEFT",
        header=("variant", "groups", "rank", "λ", "learning rate", "valid NDCG@20", "trials"),
        rows=rows,
        caption="Chosen in the search by validation NDCG@20 (× 100) among the variant's complete "
        "trials.",
    )
    return StudyTable("best_settings", settings, (text,))


def learning_rates_table(trials: pd.DataFrame) -> StudyTable:
    """Every learning rate of every baseline."""
    rates = baseline_learning_rates(trials)
    rows = tuple(
        (
            Cell(row.method),
            Cell(MISSING if pd.isna(row.variant) else row.variant),
            Cell(f"{row.learning_rate:g}"),
            Cell(f"{100 * row.valid_ndcg_at_20:.2f}", best=row.chosen),
        )
        for row in rates.itertuples()
    )
    text = TextTable(
        title="Learning rates of the baselines",
        header=("method", "variant", "learning rate", "valid NDCG@20"),
        rows=rows,
        caption="Validation NDCG@20 (× 100); the rate in bold is the one the ablation uses.",
    )
    return StudyTable("learning_rates", rates, (text,))


def costs_table(trials: pd.DataFrame) -> StudyTable:
    """Trainable parameters, time and memory of each method and variant."""
    numbers = costs(trials)
    rows = tuple(
        (
            Cell(row.method if row.mode == "sequential" else f"{row.method} ({row.mode})"),
            Cell(MISSING if pd.isna(row.variant) else row.variant),
            Cell(_or_missing(row.rank, ".0f")),
            Cell(f"{row.trainable_parameters:,.0f}"),
            Cell(_or_missing(100 * row.trainable_fraction, ".2f")),
            Cell(f"{row.stage1_seconds + row.stage2_seconds + row.stage3_seconds:.0f}"),
            Cell(f"{row.epoch_seconds:.2f}"),
            Cell(f"{row.peak_memory_mb:,.0f}"),
        )
        for row in numbers.itertuples()
    )
    text = TextTable(
        title="What a trial costs",
        header=("method", "variant", "rank", "parameters", "%", "s", "s/epoch", "MB"),
        rows=rows,
        caption="Medians over complete trials: trainable parameters of the PEFT modules, also in % "
        "of the frozen encoder's; seconds of training, with those of a stage 1 that is shared, and "
        "of an epoch of stage 3; peak memory.",
    )
    return StudyTable("costs", numbers, (text,))


def front_table(trials: pd.DataFrame) -> StudyTable:
    """The settings on the search's Pareto front, with what they reach in test."""
    numbers = front(trials)
    rows = tuple(
        (
            Cell(row.variant),
            Cell(_or_missing(row.rank, ".0f")),
            Cell(f"{row.groups:.0f}"),
            Cell(f"{row.conditioning_weight:g}"),
            Cell(f"{row.learning_rate:g}"),
            Cell(f"{row.trainable_parameters:,.0f}"),
            Cell(f"{100 * row.valid_ndcg_at_20:.2f}"),
            Cell(mean_and_std(row.mean, row.std)),
        )
        for row in numbers.itertuples()
    )
    text = TextTable(
        title="Pareto front of accuracy and size",
        header=("variant", "rank", "groups", "λ", "lr", "parameters", "valid", "test NDCG@20"),
        rows=rows,
        caption="PerPEFT's settings that no other of the search beats in both validation NDCG@20 "
        "and trainable parameters; × 100, means over seeds. The front is chosen by validation.",
    )
    return StudyTable("front", numbers, (text,))


def sensitivity_table(trials: pd.DataFrame) -> StudyTable:
    """Test NDCG@20 of PerPEFT against one setting at a time."""
    numbers = sensitivity(trials)
    rows = tuple(
        (
            Cell(row.parameter),
            Cell(row.variant),
            Cell(f"{row.value:g}"),
            Cell(mean_and_std(row.mean, row.std)),
            Cell(f"{row.seeds}"),
        )
        for row in numbers.itertuples()
    )
    text = TextTable(
        title="Sensitivity of PerPEFT",
        header=("setting", "variant", "value", "test NDCG@20", "seeds"),
        rows=rows,
        caption="× 100, mean ± standard deviation over seeds; the other settings are held.",
    )
    return StudyTable("sensitivity", numbers, (text,))


def _or_missing(value: float, form: str) -> str:
    return MISSING if pd.isna(value) else format(value, form)
