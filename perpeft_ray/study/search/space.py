"""The search space of a method: all its settings, or one at a time.

A *setting* is a dictionary of the values that apply: the variant, if the method has one, and those
of `config.SEARCHABLE`.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import optuna

from perpeft_ray.config import (
    PEFT_METHODS,
    SEARCHABLE,
    VARIED,
    Method,
    StudyConfig,
    Variant,
    exists,
)

Setting = dict[str, Any]


def variants_of(study: StudyConfig, method: Method) -> list[Variant | None]:
    """The variants to search for a method; only None for methods without a PEFT module."""
    if method not in PEFT_METHODS:
        return [None]
    return [variant for variant in study.values("variant") if exists(method, variant)]


def first_setting(study: StudyConfig, method: Method, variant: Variant | None) -> Setting:
    """The first value of everything that applies; the middle of a range."""
    names = _names(method, variant)
    return {"variant": variant, **{name: study.values(name)[0] for name in names}}


def all_settings(study: StudyConfig, method: Method) -> list[Setting] | None:
    """Every setting, in the order of the given values; None if one has a range."""
    if any(study.range_of(name) for name in VARIED):
        return None
    return [
        {"variant": variant, **dict(zip(_names(method, variant), values, strict=True))}
        for variant in variants_of(study, method)
        for values in product(*(study.values(name) for name in _names(method, variant)))
    ]


def suggest_setting(study: StudyConfig, method: Method, trial: optuna.Trial) -> Setting:
    """One setting from Optuna, define-by-run.

    Suggests only what applies and has more than one value: passing a setting on the command line
    removes it from the search.
    """

    def value(name: str) -> Any:
        ends = study.range_of(name)
        if ends is not None:
            return trial.suggest_float(name, *ends, log=True)
        values = study.values(name)
        return trial.suggest_categorical(name, values) if len(values) > 1 else values[0]

    variants = variants_of(study, method)
    variant: Any = variants[0]
    if len(variants) > 1:
        variant = trial.suggest_categorical("variant", variants)
    return {"variant": variant, **{name: value(name) for name in _names(method, variant)}}


def _names(method: Method, variant: Variant | None) -> list[str]:
    return [setting.name for setting in SEARCHABLE if setting.applies(method, variant)]
