"""Sensitivity: one setting of PerPEFT at a time, about the best of each variant."""

from __future__ import annotations

from dataclasses import replace

from perpeft_ray.config import SEARCHABLE
from perpeft_ray.study.ablation import run_ablation, run_listed
from perpeft_ray.study.plan import TrialSpec, best_configs, settings_trials
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.trainable import Study


def run_sensitivity(study: Study, progress: Progress) -> None:
    """Run what is missing of the ablation, whose search finds the best, and of the curves."""
    run_ablation(study, progress)
    run_listed(study, sensitivity_trials(study), progress)


def sensitivity_trials(study: Study) -> list[TrialSpec]:
    """Every value of every setting in the place of the search's best, with every seed and test
    read; the other settings are held."""
    best = best_configs(study.folder.searched().values())
    return settings_trials(
        study.config,
        (
            replace(config, **{setting.name: value})
            for (method, variant), config in best.items()
            if method == "perpeft"
            for setting in SEARCHABLE
            if setting.applies(method, variant)
            for value in study.config.values(setting.name)
        ),
    )
