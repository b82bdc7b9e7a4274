"""Accuracy against size: the settings on the front, and their test results."""

from __future__ import annotations

from perpeft_ray.study.ablation import run_ablation, run_listed
from perpeft_ray.study.plan import TrialSpec, settings_trials
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.questions.front import on_front
from perpeft_ray.study.trainable import Study


def run_front(study: Study, progress: Progress) -> None:
    """Run the missing trials of the search and its ablation, then of the front."""
    run_ablation(study, progress)
    run_listed(study, front_trials(study), progress)


def front_trials(study: Study) -> list[TrialSpec]:
    """The search's settings on its Pareto front, by validation, with every seed and test read."""
    rows = [
        row
        for row in study.folder.searched().values()
        if row.config.method == "perpeft" and row.status == "COMPLETE"
    ]
    front = on_front([row.size or 0 for row in rows], [row.score or 0.0 for row in rows])
    return settings_trials(
        study.config, (row.config for row, on in zip(rows, front, strict=True) if on)
    )
