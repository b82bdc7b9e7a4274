"""`report.html`: a study on one self-contained page."""

from __future__ import annotations

import base64
import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from perpeft_ray.config import SEARCHABLE, VARIED, StudyConfig
from perpeft_ray.config.presets import with_settings
from perpeft_ray.report.figures import write_figures
from perpeft_ray.report.practice import in_practice
from perpeft_ray.report.summary import SELECTION, best_settings
from perpeft_ray.report.tables import (
    StudyResults,
    best_setting,
    printed_tables,
    write_tables,
)
from perpeft_ray.report.text import MISSING, StudyTable, write_page
from perpeft_ray.screen import counted
from perpeft_ray.store.description import repeat_warnings

TRIAL_HEADER = (
    *("trial", "phase", "method", "variant", "status"),
    *(setting.label for setting in SEARCHABLE),
    *("seed", "valid NDCG@20", "test NDCG@20", "seconds"),
)
"""Columns of the table of all trials."""


def write_report(results: StudyResults) -> tuple[Path, dict[str, StudyTable]]:
    """Write a study's tables, figures and `report.html`; returns the page's path and the tables.

    Reads only the study's folder; the page of an unfinished study says so.
    """
    tables, figures = write_tables(results), write_figures(results)
    study, trials, folder = results.study, results.trials, results.folder
    description = folder.description
    settings = best_settings(trials)
    first = printed_tables(tables)
    texts = [text for table in tables.values() for text in table.printed]
    path = folder.path / "report.html"
    write_page(
        path,
        "perpeft_ray.report",
        "report.html.jinja",
        study=study,
        users=None if trials.empty else trials.users_evaluated.max(),
        verdict=results.verdict.lines(folder.uri or f"{study.storage}/{study.study}"),
        practice=in_practice(study, trials, tables["groups"].numbers, results.verdict)
        if "groups" in tables
        else [],
        best=best_setting(results),
        best_command=None
        if settings.empty
        else study_command(fixed_to(study, settings.loc[settings[SELECTION].idxmax()])),
        warnings=list(_warnings(results, description)),
        first=first,
        tables=[text for text in texts if text not in first],
        figures=[(f, base64.b64encode(file.read_bytes()).decode()) for f, file in figures.items()],
        trials=list(_trials(trials)),
        trial_header=TRIAL_HEADER,
        command=study_command(study),
        parameters=_parameters(trials, description["parameters"]),
        machine=description["machine"] | {"created": description.get("created_at")},
        versions=description["versions"] | {"code": description.get("git_revision") or "unknown"},
        timings=_timings(trials),
    )
    return path, tables


def study_command(study: StudyConfig) -> str:
    """The `perpeft study` command of a study: one line per field that differs from the default."""
    options = list(_differences(study, StudyConfig()))
    if not study.is_toyshop:  # whose study would choose by the data what is not given
        options.insert(0, ["--preset", "toyshop"])
        if study.encoder == StudyConfig().encoder:
            options.insert(1, ["--encoder", study.encoder])
    return " \\\n  ".join(["perpeft study", *(shlex.join(option) for option in options)])


def fixed_to(study: StudyConfig, setting: pd.Series) -> StudyConfig:
    """The study with every searched setting fixed; `setting`: a row of `best_settings`.

    Its name is `<study>_best`, so that it does not use the folder of the search.
    """
    settings = {"study": f"{study.study}_best", "peft.variant": setting["variant"]}
    for searchable in SEARCHABLE:
        value = setting[searchable.name]
        if pd.notna(value):  # it applies to the variant
            settings[searchable.given] = int(value) if searchable.whole else float(value)
    return with_settings(study, settings)


def _differences(settings: Any, defaults: Any, prefix: str = "") -> Iterator[list[str]]:
    for field in dataclasses.fields(settings):
        value, default = getattr(settings, field.name), getattr(defaults, field.name)
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _differences(value, default, f"{prefix}{name}.")
        elif value != default and isinstance(value, bool):
            yield [f"--{prefix}{'' if value else 'no-'}{name}"]
        elif value != default:
            values = value if isinstance(value, tuple) else (value,)
            yield [f"--{prefix}{name}", *map(str, values)]


def _trials(trials: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """One row per trial: its cells as (text, sort value), and its files."""
    for row in trials.sort_values("started_at").itertuples():
        seconds = (row.finished_at - row.started_at).total_seconds()
        numbers = [
            *((getattr(row, name), 1, "g") for name in (*VARIED, "seed")),
            *((value, 100, ".2f") for value in (row.valid_ndcg_at_20, row.test_ndcg_at_20)),
            (seconds, 1, ".1f"),
        ]
        words = (row.phase, row.method, "" if pd.isna(row.variant) else row.variant)
        yield {
            "trial_id": row.trial_id,
            "complete": row.status == "COMPLETE",
            "words": (*words, row.status),
            "numbers": [
                ("", "") if pd.isna(value) else (f"{factor * value:{form}}", value)
                for value, factor, form in numbers
            ],
        }


def _warnings(results: StudyResults, description: dict[str, Any]) -> Iterator[str]:
    """Warnings besides the verdict's notes."""
    trials = results.trials
    yield from repeat_warnings(description.get("repeats"))
    yield from empty_groups(results)
    for row in trials[trials.status == "FAIL"].itertuples():
        yield f"Failed: {row.trial_id}: {row.error}"
    pruned = int((trials.status == "PRUNED").sum())
    if pruned:
        yield f"{pruned} trials of the search were stopped early (ASHA); they are in no table."
    if len(results.study.seeds) == 1:
        yield "One seed: how much results change from seed to seed is unknown."
    if str(description.get("git_revision")).endswith("-dirty"):
        yield "The code had uncommitted changes."
    devices = sorted(trials.device.dropna().unique())
    if len(devices) > 1:
        yield f"Trials ran on different devices, so times differ: {', '.join(devices)}."


def empty_groups(results: StudyResults) -> Iterator[str]:
    """A warning if compared trials have groups without users."""
    used = results.users.groupby("trial_id").group.nunique()
    trials = results.trials[results.trials.groups.notna()].set_index("trial_id")
    empty = (trials.groups - used).dropna()
    empty = empty[empty > 0]
    if len(empty):
        worst = empty.idxmax()
        yield (
            f"Groups without users in {counted(len(empty), 'compared trial')}, such as {worst} "
            f"({empty[worst]:.0f} of {trials.groups[worst]:.0f} groups): too many users are alike; "
            "ask for fewer groups."
        )


def _parameters(trials: pd.DataFrame, declared: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Scientific, nuisance and fixed parameters with the trials' values."""
    return [
        (part, "; ".join(f"{name} = {_values(trials[name])}" for name in names))
        for part, names in declared.items()
    ]


def _values(column: pd.Series) -> str:
    values = sorted(column.dropna().unique())
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values) or MISSING


def _timings(trials: pd.DataFrame) -> dict[str, str]:
    if trials.empty:
        return {}
    seconds = (trials.finished_at - trials.started_at).dt.total_seconds()
    return {
        "trials": f"{len(trials)}, {seconds.sum() / 60:.1f} minutes in all",
        "longest trial": f"{seconds.max() / 60:.1f} minutes ({trials.trial_id[seconds.idxmax()]})",
        "first began": f"{trials.started_at.min():%Y-%m-%d %H:%M} UTC",
        "last ended": f"{trials.finished_at.max():%Y-%m-%d %H:%M} UTC",
        "peak memory of a trial": f"{trials.peak_memory_mb.max():,.0f} MB",
    }
