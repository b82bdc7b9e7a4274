"""What is trained once and read again: every setting that changes the result changes its key."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from perpeft_ray.config import TrialConfig
from perpeft_ray.train.stage_cache import stage_one_key
from perpeft_ray.train.trial_cache import trial_key

FIELDS = [field.name for field in dataclasses.fields(TrialConfig)]
BY_CONTENT = {"dataset", "encoder"}
"""Named by what they are called; what they contain is in the fingerprint."""
ONLY_LATER_STAGES = {"groups", "conditioning_weight", "stage3_epochs", "mode"}


def _changed(config: TrialConfig, field: str) -> TrialConfig:
    """The same trial with another valid value of one field."""
    value = getattr(config, field)
    other: Any = {
        "dataset": "toyshop:7",
        "encoder": "text:somewhere",
        "method": "random_grouping",
        "variant": "rslora",
        "mode": "parallel",
        "dtype": "bfloat16",
        "last_layers": 1,
        "hidden_units": 64,
        "heads": 8,
    }.get(field)
    if other is None:
        other = value + 1 if isinstance(value, int) else value * 0.5
    assert other != value
    return dataclasses.replace(config, **{field: other})


@pytest.fixture(params=FIELDS)
def pair(request, make_trial):
    """A field, a trial, and the trial with another value of that field."""
    variant = "iisan" if request.param == "bottleneck" else "lora"
    config = make_trial("perpeft", variant)
    return request.param, config, _changed(config, request.param)


def test_a_trained_trial_is_read_only_for_its_own_settings(pair):
    field, config, other = pair
    same = trial_key(config, "data") == trial_key(other, "data")
    assert same == (field in BY_CONTENT)


def test_stage_one_is_shared_only_where_it_is_the_same(pair):
    field, config, other = pair
    same = stage_one_key(config, "data") == stage_one_key(other, "data")
    # Grouping at random begins only after stage 1.
    assert same == (field in BY_CONTENT | ONLY_LATER_STAGES | {"method"})


def test_methods_without_half_of_the_content_have_their_own_stage_one(make_trial):
    methods = ("perpeft", "without_text", "without_image", "frozen_mm", "without_mm")
    adapted = ("perpeft", "without_text", "without_image")
    configs = [make_trial(method, "lora" if method in adapted else None) for method in methods]
    assert len({stage_one_key(config, "data") for config in configs}) == len(methods)


@pytest.mark.parametrize("key", [trial_key, stage_one_key])
def test_other_data_or_another_encoder_is_trained_anew(key, make_trial):
    config = make_trial()
    assert key(config, "data and encoder") != key(config, "other data or encoder")
