"""What is trained once and read again: every setting that changes the result changes its key."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from perpeft_ray.config import TrialConfig
from perpeft_ray.encoder import foundation
from perpeft_ray.train.build import computed_with
from perpeft_ray.train.cache import stage_one_key, trial_key

CPU = "float32-cpu"
FIELDS = [field.name for field in dataclasses.fields(TrialConfig)]
BY_CONTENT = {"dataset", "encoder", "dtype"}
"""Named by what they are called; what they are is in the fingerprint, or in `computed`."""
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
        "split": "time",
        "sample_users": 5,
    }.get(field)
    if other is None:
        other = value + 1 if isinstance(value, int) else value * 0.5
    assert other != value
    with_it: Any = {"split": {"test_share": 0.1}, "sample_users": {"sample_seed": 0}}
    return dataclasses.replace(config, **{field: other, **with_it.get(field, {})})


@pytest.fixture(params=FIELDS)
def pair(request, make_trial):
    """A field, a trial, and the trial with another value of that field."""
    variant = "iisan" if request.param == "bottleneck" else "lora"
    config = make_trial("perpeft", variant)
    needed: Any = {
        "test_share": {"split": "time", "test_share": 0.1},
        "sample_seed": {"sample_users": 5, "sample_seed": 0},
    }
    config = dataclasses.replace(config, **needed.get(request.param, {}))
    return request.param, config, _changed(config, request.param)


def test_a_trained_trial_is_read_only_for_its_own_settings(pair):
    field, config, other = pair
    same = trial_key(config, "data", CPU) == trial_key(other, "data", CPU)
    assert same == (field in BY_CONTENT)


def test_stage_one_is_shared_only_where_it_is_the_same(pair):
    field, config, other = pair
    same = stage_one_key(config, "data", CPU) == stage_one_key(other, "data", CPU)
    # Grouping at random begins only after stage 1.
    assert same == (field in BY_CONTENT | ONLY_LATER_STAGES | {"method"})


def test_methods_without_half_of_the_content_have_their_own_stage_one(make_trial):
    methods = ("perpeft", "without_text", "without_image", "frozen_mm", "without_mm")
    adapted = ("perpeft", "without_text", "without_image")
    configs = [make_trial(method, "lora" if method in adapted else None) for method in methods]
    assert len({stage_one_key(config, "data", CPU) for config in configs}) == len(methods)


@pytest.mark.parametrize("key", [trial_key, stage_one_key])
def test_other_data_or_another_encoder_is_trained_anew(key, make_trial):
    config = make_trial()
    assert key(config, "data and encoder", CPU) != key(config, "other data or encoder", CPU)


@pytest.mark.parametrize("key", [trial_key, stage_one_key])
@pytest.mark.parametrize("other", ["bfloat16-cpu", "float32-cuda"])
def test_another_dtype_or_device_is_trained_anew(key, other, make_trial):
    config = make_trial()
    assert key(config, "data", CPU) != key(config, "data", other)


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_the_dtype_that_it_means_here(native, dtype, monkeypatch):
    able = {"avx512_bf16": native, "amx_tile": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(foundation, "_width", lambda path: 512)
    cpu = torch.device("cpu")
    found = computed_with("toyshop-clip", "auto", cpu)
    assert found == computed_with("toyshop-clip", dtype, cpu) == f"{dtype}-cpu"


def test_plain_and_fast_results_are_kept_apart(monkeypatch):
    cpu = torch.device("cpu")
    by_fast = computed_with("toyshop-clip", "float32", cpu)
    monkeypatch.setenv("PERPEFT_FAST", "0")
    assert computed_with("toyshop-clip", "float32", cpu) != by_fast
