"""The search space: which settings PerPEFT can be given, all of them and one suggestion at a time.

A *setting* is a dictionary of the searchable values that apply: variant, groups,
conditioning_weight and learning_rate, and rank where the variant has one.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import optuna

from perpeft_ray.config import FACTS, StudyConfig, Variant

Setting = dict[str, Any]

_COMMON = ("groups", "conditioning_weight", "learning_rate")


def all_settings(study: StudyConfig) -> list[Setting]:
    """Every setting of the study's search space, in the order in which the values are given."""
    return [
        {"variant": variant, **dict(zip(_names(variant), values, strict=True))}
        for variant in study.values("variant")
        for values in product(*(study.values(name) for name in _names(variant)))
    ]


def suggest_setting(study: StudyConfig, trial: optuna.Trial) -> Setting:
    """One setting from Optuna, define-by-run.

    Only settings with more than one value are suggested, and rank only to variants that have one:
    what is given on the command line leaves the search.
    """

    def value(name: str) -> Any:
        values = study.values(name)
        return trial.suggest_categorical(name, values) if len(values) > 1 else values[0]

    variant = value("variant")
    return {"variant": variant, **{name: value(name) for name in _names(variant)}}


def _names(variant: Variant) -> tuple[str, ...]:
    return ("rank", *_COMMON) if FACTS[variant].rank else _COMMON
