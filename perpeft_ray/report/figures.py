"""The figures of a study, and their files."""

from __future__ import annotations

from pathlib import Path

from perpeft_ray.report.ablation_figures import (
    accuracy_against_parameters,
    effects,
    groups_and_gains,
    learning_curves,
    sensitivity_curves,
)
from perpeft_ray.report.drawing import StudyFigure
from perpeft_ray.report.search_figures import parameter_importance, search_front, search_history
from perpeft_ray.report.statistics import user_values
from perpeft_ray.report.tables import StudyResults
from perpeft_ray.report.user_figures import user_map
from perpeft_ray.store.files import whole_file
from perpeft_ray.store.folder import StudyFolder


def study_figures(results: StudyResults) -> list[StudyFigure]:
    """All figures that the trials so far give."""
    trials, users, epochs = results.trials, results.users, results.folder.epochs()
    figures = (
        effects(results.compared),
        learning_curves(trials, epochs, results.study),
        parameter_importance(trials),
        search_history(trials, epochs),
        search_front(trials) if results.study.search.pareto else None,
        sensitivity_curves(trials),
        accuracy_against_parameters(trials),
        groups_and_gains(user_values(trials, users)),
        user_map(trials, users),
    )
    return [figure for figure in figures if figure is not None]


def write_figures(results: StudyResults) -> list[StudyFigure]:
    """Write `figures/<name>.png` of a study, and return the figures."""
    figures = study_figures(results)
    for figure in figures:
        with whole_file(figure_path(results.folder, figure)) as temporary:
            figure.figure.savefig(temporary, format="png")
    return figures


def figure_path(folder: StudyFolder, figure: StudyFigure) -> Path:
    """Where a study has a figure."""
    return folder.path / "figures" / f"{figure.name}.png"
