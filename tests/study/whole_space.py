"""Every trial that the search of a method can choose from."""

from __future__ import annotations

from perpeft_ray.config import Method, StudyConfig
from perpeft_ray.study.plan import TrialSpec, search_trial
from perpeft_ray.study.search.space import all_settings


def search_trials(study: StudyConfig, method: Method = "perpeft") -> list[TrialSpec]:
    return [search_trial(study, method, setting) for setting in all_settings(study, method) or []]
