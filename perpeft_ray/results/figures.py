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


def study_figures(folder: StudyFolder) -> list[StudyFigure]:
    """All figures that the trials so far give.

    A map of the users is not among them: it needs SASRec's states, which are not stored.
    """
    trials = folder.trials()
    figures = (
        accuracy_against_parameters(trials),
        groups_and_gains(read_final_trials([folder.path])),
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
