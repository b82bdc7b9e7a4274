"""`report.html`: a study on one page that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from perpeft_ray.config import StudyConfig
from perpeft_ray.results.ablation_table import expected_trials
from perpeft_ray.results.command import fixed_to, study_command
from perpeft_ray.results.comparisons import p_text
from perpeft_ray.results.drawing import StudyFigure
from perpeft_ray.results.figures import figure_path, write_figures
from perpeft_ray.results.files import whole_file
from perpeft_ray.results.folder import StudyFolder
from perpeft_ray.results.summary import SELECTION, ablation_summary, best_settings
from perpeft_ray.results.tables import write_tables
from perpeft_ray.results.text import MISSING, StudyTable, mean_and_std


@dataclass(frozen=True)
class _Best:
    """The best setting in words."""

    setting: str
    valid: str
    test: str | None
    gain: str | None
    command: str


def write_report(folder: StudyFolder) -> Path:
    """Write a study's tables, figures and `report.html`, and return the page's path.

    Everything comes from the study's folder; a study that is not done has a page that says so.
    """
    tables, figures = write_tables(folder), write_figures(folder)
    path = folder.path / "report.html"
    with whole_file(path) as temporary:
        temporary.write_text(_page(folder, tables, figures), encoding="utf-8")
    return path


def _page(folder: StudyFolder, tables: list[StudyTable], figures: list[StudyFigure]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("perpeft_ray.results", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    study, trials, description = folder.config, folder.trials(), folder.description
    return environment.get_template("report.html.jinja").render(
        study=study,
        users=None if trials.empty else trials.users_evaluated.max(),
        best=_best(study, trials, tables),
        warnings=list(_warnings(study, trials, description)),
        tables=[text for table in tables for text in table.printed],
        figures=[(figure, _base64(folder, figure)) for figure in figures],
        command=study_command(study),
        parameters=_parameters(trials, description["parameters"]),
        machine=description["machine"] | {"created": description["created_at"]},
        versions=description["versions"] | {"code": description["git_revision"] or "unknown"},
        timings=_timings(trials),
    )


def _best(study: StudyConfig, trials: pd.DataFrame, tables: list[StudyTable]) -> _Best | None:
    """The best setting by validation, with its test metrics and its gain over `global`."""
    settings = best_settings(trials)
    if settings.empty:
        return None
    setting = settings.loc[settings[SELECTION].idxmax()]
    summary = ablation_summary(trials)
    own = summary[
        (summary.method == "perpeft")
        & (summary.variant == setting.variant)
        & (summary["mode"] == study.mode)
        & (summary.metric == "ndcg_at_20")
    ]
    rank = "" if pd.isna(setting["rank"]) else f"rank {setting['rank']:.0f}, "
    return _Best(
        setting=(
            f"{setting.variant}, {rank}{setting.groups:.0f} groups, "
            f"λ = {setting.conditioning_weight:g}, learning rate {setting.learning_rate:g}"
        ),
        valid=f"{100 * setting[SELECTION]:.2f}",
        test=next(
            (f"{mean_and_std(row.mean, row.std)} (seeds: {row.seeds})" for row in own.itertuples()),
            None,
        ),
        gain=_gain(setting.variant, tables),
        command=study_command(fixed_to(study, setting)),
    )


def _gain(variant: str, tables: list[StudyTable]) -> str | None:
    (compared,) = (table.numbers for table in tables if table.name == "comparisons")
    for row in compared[
        (compared.method_b == "global") & (compared.variant == variant)
    ].itertuples():
        low, high = 100 * (row.ratio_interval_low - 1), 100 * (row.ratio_interval_high - 1)
        return (
            f"{100 * (row.ratio - 1):+.1f} % against global, "
            f"95 % interval {low:+.1f} to {high:+.1f} % "
            f"(p {p_text(row.p_holm)}, Holm-corrected, {row.users} users)"
        )
    return None


def _warnings(
    study: StudyConfig, trials: pd.DataFrame, description: dict[str, Any]
) -> Iterator[str]:
    """What a reader has to know before believing the tables."""
    ablation = trials[trials.phase == "ablation"]
    done, expected = int((ablation.status == "COMPLETE").sum()), expected_trials(study)
    if done < expected:
        yield f"The study is not done: {done} of {expected} trials of the ablation are complete."
    for row in trials[trials.status == "FAIL"].itertuples():
        yield f"Failed: {row.trial_id}: {row.error}"
    pruned = int((trials.status == "PRUNED").sum())
    if pruned:
        yield f"{pruned} trials of the search were stopped early (ASHA); they are in no table."
    if len(study.seeds) == 1:
        yield "One seed: nothing here says how much a result changes from seed to seed."
    if str(description["git_revision"]).endswith("-dirty"):
        yield "The code had changes that were not committed."
    devices = sorted(trials.device.dropna().unique())
    if len(devices) > 1:
        yield f"Trials ran on different devices, so times differ: {', '.join(devices)}."


def _parameters(trials: pd.DataFrame, declared: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Scientific, nuisance and fixed parameters with the values that the trials have."""
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


def _base64(folder: StudyFolder, figure: StudyFigure) -> str:
    return base64.b64encode(figure_path(folder, figure).read_bytes()).decode("ascii")
