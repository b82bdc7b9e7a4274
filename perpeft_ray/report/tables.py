"""The tables of a study, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from perpeft_ray.config import METHODS, SEARCHABLE, VARIED, Searchable, StudyConfig
from perpeft_ray.report.method_tables import (
    ablation_table,
    comparisons_table,
    metrics_table,
    slices_table,
)
from perpeft_ray.report.practice import groups_table, titles_of_users
from perpeft_ray.report.statistics import Comparison, compare_all, read_results, user_values
from perpeft_ray.report.summary import (
    SELECTION,
    best_settings,
    costs,
    in_paper_order,
    of_settings,
    searched,
    sensitivity,
)
from perpeft_ray.report.text import StudyTable, TextTable, shown, with_error
from perpeft_ray.report.verdict import Verdict, verdict
from perpeft_ray.store.files import whole_file
from perpeft_ray.store.folder import StudyFolder


@dataclass(frozen=True)
class StudyResults:
    """A study's results so far, read once."""

    folder: StudyFolder
    study: StudyConfig
    trials: pd.DataFrame
    """All rows of `trials/`."""
    users: pd.DataFrame
    """The users of the final trials."""
    compared: tuple[Comparison, ...]
    """Results of `compare_all`."""
    verdict: Verdict

    @classmethod
    def read(cls, folder: StudyFolder) -> StudyResults:
        """Read the study's Parquet files."""
        study = folder.config
        trials, users = read_results([folder])
        compared = tuple(compare_all(user_values(trials, users)))
        return cls(folder, study, trials, users, compared, verdict(study, trials, compared))

    @property
    def compares(self) -> bool:
        """Whether the study compares methods; otherwise only given settings."""
        return set(self.trials.phase) != {"settings"}


def answer_tables(results: StudyResults) -> dict[str, StudyTable]:
    """The tables that answer the study's question, by name; without any, the costs."""
    trials = results.trials
    tables = []
    if results.compares:
        tables.append(ablation_table(trials, results.users, results.study, results.compared))
    if results.study.search.pareto:
        tables.append(front_table(trials))
    elif len((varied := sensitivity_table(trials)).numbers):
        tables.append(varied)
    return {table.name: table for table in tables or [costs_table(trials)]}


def study_tables(results: StudyResults) -> dict[str, StudyTable]:
    """All tables that the trials so far allow, by name; the study's answer comes first."""
    trials, users = results.trials, results.users
    tables = answer_tables(results)
    others = []
    if results.compares:
        others = [
            comparisons_table(results.compared),
            best_settings_table(trials),
            learning_rates_table(trials),
            metrics_table(trials, users, results.study.metrics.k),
            slices_table(trials, users),
            groups_table(trials, users, titles_of_users(results.folder)),
        ]
    if "costs" not in tables:
        others.append(costs_table(trials))
    return tables | {table.name: table for table in others}


def printed_tables(tables: dict[str, StudyTable]) -> list[TextTable]:
    """Of `answer_tables` or `study_tables`, those that answer the study's question: at most two."""
    answers = [tables[name] for name in ("ablation_peft", "front", "sensitivity") if name in tables]
    return [table.printed[0] for table in answers or [tables["costs"]]]


def write_tables(results: StudyResults) -> dict[str, StudyTable]:
    """Write `tables/<name>.parquet`, `.csv`, `.md` and `.tex` of a study, and return the tables."""
    tables = study_tables(results)
    for table in tables.values():
        write_table(table, results.folder.path / "tables")
    return tables


def best_setting(results: StudyResults) -> str | None:
    """The search's best setting of PerPEFT by validation, in words; None without one."""
    settings = best_settings(results.trials)
    if settings.empty:
        return None
    row = settings.loc[settings[SELECTION].idxmax()]
    settings = [
        (setting.words or f"{setting.label} {{:g}}").format(row[setting.name])
        for setting in _printed_settings(results.trials)
        if pd.notna(row[setting.name])
    ]
    words = ", ".join([row.variant, *settings])
    return f"{words} (validation NDCG@20 {100 * row[SELECTION]:.2f})"


def answer_lines(results: StudyResults, place: str) -> list[str]:
    """The best setting and the verdict, as printed; `place`: the study's folder or URI."""
    best = best_setting(results)
    return [f"Best setting: {best}"] * bool(best) + results.verdict.lines(place)


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
    rows = best_settings(trials)
    columns = {
        "variant": shown(rows.variant),
        **_setting_columns(rows, trials),
        "valid NDCG@20": shown(100 * rows[SELECTION], ".2f"),
        "trials": shown(rows.trials),
    }
    caption = (
        "Chosen in the search by validation NDCG@20 (× 100) among the variant's complete trials."
    )
    best = {"valid NDCG@20": rows[SELECTION] == rows[SELECTION].max()}
    text = TextTable("Best settings of PerPEFT", columns, caption, best)
    return StudyTable("best_settings", rows, (text,))


def learning_rates_table(trials: pd.DataFrame) -> StudyTable:
    """Every setting that a method other than PerPEFT tried, one row each.

    Columns: method, variant, learning_rate, other settings that a method varied, valid_ndcg_at_20
    (of the search's phase), chosen.
    """
    rates = searched(trials, [method for method in METHODS if method != "perpeft"])
    cells = rates.groupby(["method", "variant"], dropna=False)
    varied = [
        s for s in SEARCHABLE if s.name == "learning_rate" or (cells[s.name].nunique() > 1).any()
    ]
    rates = rates.assign(chosen=rates[SELECTION] == cells[SELECTION].transform("max"))
    names = [setting.name for setting in varied]
    rates = rates.sort_values(names, kind="stable")
    rows = in_paper_order(rates[["method", "variant", *names, SELECTION, "chosen"]])
    columns = {
        "method": shown(rows.method),
        "variant": shown(rows.variant),
        **{s.column or s.label: shown(rows[s.name], "g") for s in varied},
        "valid NDCG@20": shown(100 * rows[SELECTION], ".2f"),
    }
    caption = "Validation NDCG@20 (× 100); the setting in bold is the one the ablation uses."
    best = {"valid NDCG@20": rows.chosen}
    text = TextTable("Settings of the other methods", columns, caption, best)
    return StudyTable("learning_rates", rows, (text,))


def costs_table(trials: pd.DataFrame) -> StudyTable:
    """Trainable parameters, time and memory of each method and variant."""
    rows = costs(trials)
    columns = {
        "method": rows.method,
        "variant": shown(rows.variant),
        "rank": shown(rows["rank"], ".0f"),
        "parameters": shown(rows.trainable_parameters, ",.0f"),
        "%": shown(100 * rows.trainable_fraction, ".2f"),
        "s": shown(rows.stage1_seconds + rows.stage2_seconds + rows.stage3_seconds, ".0f"),
        "s/epoch": shown(rows.epoch_seconds, ".2f"),
        "MB": shown(rows.peak_memory_mb, ",.0f"),
    }
    caption = (
        "Medians over complete trials: trainable parameters of the PEFT modules, also in % of the "
        "frozen encoder's; seconds of training, including a shared stage 1, and of an epoch of "
        "stage 3; peak memory."
    )
    return StudyTable("costs", rows, (TextTable("Cost of a trial", columns, caption),))


def front_table(trials: pd.DataFrame) -> StudyTable:
    """The settings on the search's Pareto front, with their test results, smallest first.

    Columns: variant, the searchable settings, trainable_parameters, valid_ndcg_at_20 (mean), mean,
    std (test NDCG@20), seeds.
    """
    done = of_settings(trials)
    keys = ["variant", *VARIED, "trainable_parameters"]
    by_setting = done[done.method == "perpeft"].groupby(keys, dropna=False, sort=False)
    rows = by_setting.agg(
        valid_ndcg_at_20=(SELECTION, "mean"),
        mean=("test_ndcg_at_20", "mean"),
        std=("test_ndcg_at_20", "std"),
        seeds=("seed", "nunique"),
    )
    rows = rows.reset_index().sort_values("trainable_parameters", ignore_index=True)
    columns = {
        "variant": shown(rows.variant),
        **_setting_columns(rows, trials),
        "parameters": shown(rows.trainable_parameters, ",.0f"),
        "valid": shown(100 * rows[SELECTION], ".2f"),
        "test NDCG@20": with_error(rows["mean"], rows["std"]),
    }
    caption = (
        "PerPEFT's settings that no other of the search beats in both validation NDCG@20 and "
        "trainable parameters; × 100, means over seeds. The front is chosen by validation."
    )
    text = TextTable("Pareto front of accuracy and size", columns, caption)
    return StudyTable("front", rows, (text,))


def sensitivity_table(trials: pd.DataFrame) -> StudyTable:
    """Test NDCG@20 of PerPEFT against one setting at a time."""
    rows = sensitivity(trials)
    columns = {
        "setting": rows.parameter,
        "variant": shown(rows.variant),
        "value": shown(rows.value, "g"),
        "test NDCG@20": with_error(rows["mean"], rows["std"]),
        "seeds": shown(rows.seeds),
    }
    caption = "× 100, mean ± standard deviation over seeds; the other settings are fixed."
    text = TextTable("Sensitivity of PerPEFT", columns, caption)
    return StudyTable("sensitivity", rows, (text,))


def _printed_settings(trials: pd.DataFrame) -> list[Searchable]:
    """The main settings, and others that PerPEFT's trials vary."""
    own = trials[trials.method == "perpeft"]
    return [s for s in SEARCHABLE if s.words or own[s.name].nunique() > 1]


def _setting_columns(rows: pd.DataFrame, trials: pd.DataFrame) -> dict[str, list[str]]:
    return {s.column or s.label: shown(rows[s.name], "g") for s in _printed_settings(trials)}
