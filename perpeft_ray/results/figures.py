"""The figures of a study, and their files."""

from __future__ import annotations

from pathlib import Path

from perpeft_ray.results.ablation_figures import (
    accuracy_against_parameters,
    groups_and_gains,
    sensitivity_curves,
)
from perpeft_ray.results.drawing import StudyFigure
from perpeft_ray.results.files import whole_file
from perpeft_ray.results.folder import StudyFolder
from perpeft_ray.results.search_figures import (
    parameter_importance,
    search_front,
    search_history,
    slices,
)
from perpeft_ray.results.statistics import read_final_trials
from perpeft_ray.results.user_figures import user_map


def study_figures(folder: StudyFolder) -> list[StudyFigure]:
    """All figures that the trials so far give."""
    trials = folder.trials()
    figures = (
        accuracy_against_parameters(trials),
        groups_and_gains(read_final_trials([folder.path])),
        user_map(folder),
        sensitivity_curves(trials),
        search_history(trials, folder.epochs()),
        search_front(trials, pareto=folder.config.search.pareto),
        parameter_importance(trials),
        slices(trials),
    )
    return [figure for figure in figures if figure is not None]


def write_figures(folder: StudyFolder) -> list[StudyFigure]:
    """Write `figures/<name>.png` of a study, and return the figures."""
    figures = study_figures(folder)
    for figure in figures:
        with whole_file(figure_path(folder, figure)) as temporary:
            figure.figure.savefig(temporary, format="png")
    return figures


def figure_path(folder: StudyFolder, figure: StudyFigure) -> Path:
    """Where a study has a figure."""
    return folder.path / "figures" / f"{figure.name}.png"
