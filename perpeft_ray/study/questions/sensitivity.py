"""Sensitivity: varies one setting of PerPEFT at a time, around each variant's best."""

from __future__ import annotations

from dataclasses import replace

from perpeft_ray.config import SEARCHABLE
from perpeft_ray.study.ablation import run_ablation, run_listed
from perpeft_ray.study.plan import TrialSpec, best_configs, settings_trials
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.trainable import Study


def run_sensitivity(study: Study, progress: Progress) -> None:
    """Run the missing trials of the ablation, whose search finds the best, and of the curves."""
    run_ablation(study, progress)
    run_listed(study, sensitivity_trials(study), progress)


def sensitivity_trials(study: Study) -> list[TrialSpec]:
    """Every value of every setting around the search's best, the others fixed, with every seed;
    test is read."""
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
