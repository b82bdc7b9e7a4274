"""The tables of a study, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from perpeft_ray.config import StudyConfig
from perpeft_ray.results.ablation_table import ablation_table
from perpeft_ray.results.comparisons import comparisons_table
from perpeft_ray.results.files import whole_file
from perpeft_ray.results.folder import StudyFolder
from perpeft_ray.results.statistics import Comparison, compare_all, read_results, user_values
from perpeft_ray.results.summary import (
    SELECTION,
    baseline_learning_rates,
    best_settings,
    costs,
    front,
    sensitivity,
)
from perpeft_ray.results.text import MISSING, Cell, StudyTable, TextTable, mean_and_std
from perpeft_ray.results.verdict import Verdict, verdict


@dataclass(frozen=True)
class StudyResults:
    """What a study has found so far, read once."""

    folder: StudyFolder
    study: StudyConfig
    trials: pd.DataFrame
    """All rows of `trials/`, and study_mode."""
    users: pd.DataFrame
    """The users of the final trials."""
    compared: tuple[Comparison, ...]
    """Of `compare_all`."""
    verdict: Verdict

    @classmethod
    def read(cls, folder: StudyFolder) -> StudyResults:
        """From the study's Parquet files alone."""
        study = folder.config
        trials, users = read_results([folder.path])
        compared = tuple(compare_all(user_values(trials, users)))
        return cls(folder, study, trials, users, compared, verdict(study, trials, compared))

    @property
    def compares(self) -> bool:
        """Whether methods are compared; else the study is about given settings alone."""
        return set(self.trials.phase) != {"settings"}


def study_tables(results: StudyResults) -> dict[str, StudyTable]:
    """All tables that the trials so far give, by name; the study's answer comes first."""
    trials = results.trials
    tables = []
    if results.compares:
        tables.append(ablation_table(trials, results.users, results.study, results.compared))
    if results.study.search.pareto:
        tables.append(front_table(trials))
    elif len((varied := sensitivity_table(trials)).numbers):
        tables.append(varied)
    if results.compares:
        tables += [
            comparisons_table(results.compared),
            best_settings_table(trials),
            learning_rates_table(trials),
        ]
    tables.append(costs_table(trials))
    return {table.name: table for table in tables}


def printed_tables(tables: dict[str, StudyTable]) -> list[TextTable]:
    """The tables that answer the study's question: at most two."""
    answers = [tables[name] for name in ("ablation_peft", "front", "sensitivity") if name in tables]
    return [table.printed[0] for table in answers or [tables["costs"]]]


def write_tables(results: StudyResults) -> dict[str, StudyTable]:
    """Write `tables/<name>.parquet`, `.csv`, `.md` and `.tex` of a study, and return the tables."""
    tables = study_tables(results)
    for table in tables.values():
        write_table(table, results.folder.path / "tables")
    return tables


def best_setting(results: StudyResults) -> str | None:
    """The search's best setting of PerPEFT by validation, in words; None before there is one."""
    settings = best_settings(results.trials)
    if settings.empty:
        return None
    row = settings.loc[settings[SELECTION].idxmax()]
    rank = "" if pd.isna(row["rank"]) else f"rank {row['rank']:.0f}, "
    return (
        f"{row.variant}, {rank}{row.groups:.0f} groups, λ = {row.conditioning_weight:g}, "
        f"learning rate {row.learning_rate:g} (validation NDCG@20 {100 * row[SELECTION]:.2f})"
    )


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
