"""Studies of PerPEFT's settings: sensitivity, the Pareto front of accuracy and size, and costs."""

from __future__ import annotations

from dataclasses import replace

from perpeft_ray.config import (
    FACTS,
    PEFT_METHODS,
    SEARCHABLE,
    Method,
    StudyConfig,
    TrialConfig,
    Variant,
    exists,
)
from perpeft_ray.metrics import on_front
from perpeft_ray.study.ablation import run_ablation, run_listed
from perpeft_ray.study.plan import TrialSpec, best_configs, settings_trials
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.runtime import scratch_folder
from perpeft_ray.study.search.space import first_setting
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


def run_efficiency(study: Study, progress: Progress) -> None:
    """Run the missing ones of `efficiency_trials`, each in a fresh process.

    Does not use other studies' trained trials, which were timed beside others; uses cached hidden
    states and frozen features.
    """
    with scratch_folder("perpeft-efficiency-") as folder:
        own = study.workspace.with_nothing_trained(folder)
        alone = replace(study, workspace=own)
        run_listed(alone, efficiency_trials(study.config), progress, fresh_processes=True)


def efficiency_trials(study: StudyConfig) -> list[TrialSpec]:
    """Each method and variant at every rank, with the first value of every other setting."""
    return settings_trials(
        study,
        (
            _config(study, method, variant, rank)
            for method in study.methods
            for variant in (study.values("variant") if method in PEFT_METHODS else (None,))
            if exists(method, variant)
            for rank in (study.values("rank") if variant and FACTS[variant].rank else (None,))
        ),
    )


def _config(
    study: StudyConfig, method: Method, variant: Variant | None, rank: int | None
) -> TrialConfig:
    setting = first_setting(study, method, variant)
    if rank is not None:
        setting["rank"] = rank
    return study.trial(method, seed=study.seeds[0], **setting)
