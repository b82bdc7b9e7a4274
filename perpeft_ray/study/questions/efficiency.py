"""Cost of each variant and method: trials with fixed settings, one at a time, nothing shared."""

from __future__ import annotations

from dataclasses import replace

from perpeft_ray.config import (
    FACTS,
    PEFT_METHODS,
    Method,
    StudyConfig,
    TrialConfig,
    Variant,
    exists,
)
from perpeft_ray.study.ablation import run_listed
from perpeft_ray.study.plan import TrialSpec, settings_trials
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.runtime import scratch_folder
from perpeft_ray.study.search.space import first_setting
from perpeft_ray.study.trainable import Study


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
