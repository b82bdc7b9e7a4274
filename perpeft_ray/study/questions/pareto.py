"""Accuracy against size: which settings are on the front, and what they reach in test."""

from __future__ import annotations

from perpeft_ray.config import TrialConfig
from perpeft_ray.study.ablation import run_ablation, run_listed
from perpeft_ray.study.plan import TrialSpec, search_trials, settings_trials
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.questions.front import on_front
from perpeft_ray.study.trainable import Study


def run_front(study: Study, progress: Progress) -> None:
    """Run what is missing of the search and its ablation, then of the front."""
    run_ablation(study, progress)
    run_listed(study, front_trials(study), progress)


def front_trials(study: Study) -> list[TrialSpec]:
    """The search's settings on its Pareto front, by validation, with every seed and test read."""
    scores, sizes = study.recorder.search_scores(), study.recorder.search_sizes()
    searched: dict[str, TrialConfig] = {
        spec.config.config_hash: spec.config for spec in search_trials(study.config)
    }
    found = [key for key in searched if key in scores]
    front = on_front([sizes[key] for key in found], [scores[key] for key in found])
    return settings_trials(
        study.config, (searched[key] for key, on in zip(found, front, strict=True) if on)
    )
