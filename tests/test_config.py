"""Configuration: what is refused and how, what a trial keeps, and its identity."""

import dataclasses
import os
import re
import subprocess
import sys
from typing import Any, cast

import pytest

from perpeft_ray.config import (
    METHODS,
    VARIANTS,
    DataSettings,
    GroupingSettings,
    LossSettings,
    Method,
    ModelSettings,
    PeftSettings,
    SearchSettings,
    StudyConfig,
    TrainSettings,
    TrialConfig,
    Variant,
    canonical_hash,
    exists,
)
from perpeft_ray.errors import InputError

LORA = TrialConfig(
    dataset="toyshop",
    split="time",
    test_share=0.2,
    min_interactions=2,
    sample_users=100,
    sample_seed=1,
    encoder="toyshop-clip",
    method="perpeft",
    variant="lora",
    rank=4,
    last_layers=None,
    bottleneck=None,
    adapter_dropout=0.1,
    groups=8,
    conditioning_weight=0.5,
    seed=0,
    learning_rate=1e-3,
    weight_decay=0.01,
    peft_lr_scale=0.5,
    id_lr_scale=0.1,
    batch_size=64,
    stage1_epochs=12,
    stage3_epochs=9,
    validate_every=3,
    patience=0,
    mode="sequential",
    dtype="auto",
    hidden_units=32,
    sequence_length=10,
    blocks=2,
    heads=4,
    dropout=0.3,
    multimodal_weight=0.5,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "perfept"}, "`method` must be one of popularity, .*, but is perfept"),
        ({"mode": "both"}, "`train.mode` must be one of sequential, parallel, but is both"),
        ({"dtype": "float16"}, "`train.dtype` must be one of auto, .*, but is float16"),
        ({"rank": 0}, "`peft.rank` must be a whole number of at least 1, but is 0"),
        ({"rank": None}, "`peft.rank` must be given for this method and variant, but is None"),
        ({"rank": 2.0}, "`peft.rank` must be a whole number of at least 1, but is 2.0"),
        ({"last_layers": 0}, "`peft.last_layers` must be a whole number of at least 1, but is 0"),
        (
            {"variant": "iisan", "rank": None, "adapter_dropout": None, "bottleneck": 32}
            | {"last_layers": 1},
            "`peft.last_layers` must be None for this method and variant, but is 1",
        ),
        ({"bottleneck": 32}, "`peft.bottleneck` must be None for this method and variant"),
        ({"groups": 0}, "`grouping.groups` must be a whole number of at least 1, but is 0"),
        ({"groups": True}, "`grouping.groups` must be a whole number of at least 1, but is True"),
        (
            {"conditioning_weight": 1.1},
            "`loss.conditioning_weight` must be between 0 and 1, but is 1.1",
        ),
        (
            {"conditioning_weight": float("nan")},
            "`loss.conditioning_weight` must be between 0 and 1, but is nan",
        ),
        ({"adapter_dropout": -0.1}, "`peft.dropout` must be between 0 and 1, but is -0.1"),
        ({"dropout": 1.5}, "`model.dropout` must be between 0 and 1, but is 1.5"),
        ({"seed": -1}, "`seed` must be a whole number of at least 0, but is -1"),
        ({"learning_rate": 0.0}, "`train.lr` must be a positive number, but is 0.0"),
        ({"learning_rate": float("inf")}, "`train.lr` must be a positive number, but is inf"),
        ({"weight_decay": -1.0}, "`train.weight_decay` must be at least 0, but is -1.0"),
        ({"multimodal_weight": -1.0}, "`model.multimodal_weight` must be at least 0, but is -1.0"),
        ({"batch_size": 0}, "`train.batch_size` must be a whole number of at least 1, but is 0"),
        ({"stage1_epochs": 0}, "`train.epochs` must be a whole number of at least 1, but is 0"),
        (
            {"heads": 5},
            r"`model.hidden_units` must be a multiple of `model.heads` \(5\), but is 32",
        ),
    ],
)
def test_a_bad_trial_is_refused_in_one_line(change, message):
    with pytest.raises(InputError, match=message) as refused:
        dataclasses.replace(LORA, **change)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"gpus_per_worker": 1.5},
            "`gpus_per_worker` must be a whole number above 1, or a fraction of one, but is 1.5",
        ),
        ({"start_timeout_s": 0.0}, "`start_timeout_s` must be a positive number, but is 0.0"),
        (
            {"log": ("mlflow", "mlflow")},
            "`log` must not repeat a value, but is",
        ),
        ({"workers": -1}, "`workers` must be a whole number of at least 1, but is -1"),
        ({"study": "../up"}, "`study` must be a plain folder name, but is '../up'"),
        ({"study": ""}, "`study` must be a plain folder name, but is ''"),
        ({"seeds": ()}, "`seeds` must have at least one value, but is empty"),
        ({"seeds": (1, 1)}, r"`seeds` must not repeat a value, but is \(1, 1\)"),
        ({"seeds": (0, -1)}, "`seeds` must be a whole number of at least 0, but is -1"),
        ({"methods": ("global", "globl")}, "`method` must be one of .*, but is globl"),
        ({"search": SearchSettings(trials=0)}, "`search.trials` must be a whole number of at"),
        (
            {"search": SearchSettings(ranks=(4, 0))},
            "`search.ranks` must be .* at least 1, but is 0",
        ),
        (
            {"search": SearchSettings(conditioning_weights=(0.5, 2.0))},
            "`search.conditioning_weights` must be between 0 and 1, but is 2.0",
        ),
        (
            {"search": SearchSettings(learning_rates=(1e-3, -1e-3))},
            "`search.learning_rates` must be a positive number, but is -0.001",
        ),
        (
            {"peft": PeftSettings(variant=cast(Variant, "adapter"))},
            "`peft.variant` must be one of lora, ia3, iisan, rslora, .*, but is adapter",
        ),
        ({"peft": PeftSettings(variant="ia3", rank=0)}, "`peft.rank` must be .*, but is 0"),
        ({"grouping": GroupingSettings(groups=0)}, "`grouping.groups` must be .*, but is 0"),
        ({"loss": LossSettings(conditioning_weight=-0.5)}, "`loss.conditioning_weight` .* -0.5"),
        ({"model": ModelSettings(hidden_units=30)}, "multiple of `model.heads`"),
    ],
)
def test_a_bad_study_is_refused_before_anything_runs(settings, message):
    with pytest.raises(InputError, match=message) as refused:
        StudyConfig(**settings)
    assert "\n" not in str(refused.value)


def trial(method: Method, variant: Variant, **settings: Any) -> TrialConfig:
    return StudyConfig(**settings).trial(
        method,
        seed=3,
        variant=variant,
        rank=8,
        groups=6,
        conditioning_weight=0.75,
        learning_rate=5e-3,
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_a_trial_keeps_what_applies_and_drops_the_rest(method, variant):
    if not exists(method, variant):
        pytest.skip("no such cell")
    config = trial(method, variant, peft=PeftSettings(last_layers=2))
    peft = method not in ("popularity", "item_knn", "without_mm", "frozen_mm")
    one_module = ("global", "large_global", "user_level_1", "user_level_2")
    grouped = peft and method not in one_module
    personal = grouped and not method.startswith("group_level")
    times = 6 if method == "large_global" else 1
    assert config.variant == (variant if peft else None)
    low_rank = {"lora", "rslora", "dora", "vera", "randlora"}
    ranked = low_rank | {"loha", "lokr", "oft"}
    assert config.rank == (8 * times if peft and variant in ranked else None)
    assert config.adapter_dropout == (0.1 if peft and variant in low_rank else None)
    assert config.last_layers == (2 if peft and variant != "iisan" else None)
    assert config.bottleneck == (32 * times if peft and variant == "iisan" else None)
    assert config.groups == (6 if grouped else None)
    weight = {"without_group_negatives": 0.0}.get(method, 0.75 if personal else None)
    assert config.conditioning_weight == weight
    assert config.multimodal_weight == (0.0 if method == "without_mm" else 0.2)
    assert (config.seed, config.learning_rate) == (3, 5e-3)


def test_only_a_module_with_a_size_can_be_made_larger():
    scalable = {"lora", "rslora", "dora", "loha", "iisan"}
    assert {v for v in VARIANTS if exists("large_global", v)} == scalable
    with pytest.raises(InputError, match="needs a variant whose size follows its rank"):
        trial("large_global", "ia3")


def test_only_what_applies_tells_trials_apart():
    """Baselines of different variants, and so on, are one trial: it need not run twice."""
    study = StudyConfig()
    one = study.trial("frozen_mm", seed=0, variant="lora", rank=2, groups=4, learning_rate=1e-2)
    two = study.trial("frozen_mm", seed=0, variant="iisan", groups=8, learning_rate=1e-2)
    assert one == two
    assert one.config_hash == two.config_hash
    assert trial("perpeft", "lora") != trial("perpeft", "ia3")


@pytest.mark.parametrize(
    "data",
    [
        DataSettings(),
        DataSettings(split="time", test_share=0.2),
        DataSettings(min_interactions=5, sample_users=100, sample_seed=3),
    ],
)
def test_a_trial_has_the_data_settings_of_its_study(data):
    config = StudyConfig(data=data).trial("popularity", seed=0)
    assert config.data == data
    assert (config.test_share is None) == (data.split == "leave_one_out")
    assert (config.sample_seed is None) == (data.sample_users is None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"split": "random"}, "`data.split` must be one of leave_one_out, time, but is random"),
        ({"split": "time", "test_share": 0.5}, "`data.test_share` must be above 0 and below 0.5"),
        ({"min_interactions": 0}, "`data.min_interactions` must be a whole number of at least 1"),
        ({"sample_users": 0}, "`data.sample_users` must be a whole number of at least 1"),
        ({"sample_users": 5, "sample_seed": -1}, "`data.sample_seed` must be a whole number"),
    ],
)
def test_rules_of_the_data_settings(data, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        StudyConfig(data=DataSettings(**data))


def test_the_mode_follows_the_workers_unless_given():
    assert StudyConfig(workers=1).mode == "sequential"
    assert StudyConfig(workers=2).mode == "parallel"
    assert StudyConfig(workers=1, train=TrainSettings(mode="parallel")).mode == "parallel"
    assert trial("perpeft", "lora", workers=2).mode == "parallel"
    assert trial("global", "lora", workers=2).mode == "parallel"


def test_in_parallel_mode_every_method_sees_as_many_users_a_step():
    study = StudyConfig(workers=2, search=SearchSettings(groups=(4, 6)))
    given = {"seed": 0, "variant": "lora", "rank": 4, "learning_rate": 1e-3, "groups": 4}
    assert study.trial("perpeft", conditioning_weight=0.5, **given).step_batches == 4
    assert study.trial("global", **given).step_batches == 4
    assert study.trial("without_mm", seed=0, learning_rate=1e-3).step_batches == 6
    assert StudyConfig().trial("global", **given).step_batches == 1  # sequential


def test_every_field_is_in_the_hash():
    other: dict[str, Any] = {
        "method": "random_grouping",
        "mode": "parallel",
        "dtype": "float32",
        "heads": 8,
        "last_layers": 2,
        "dataset": "toyshop:1",
        "encoder": "text:x",
    }
    hashes = {LORA.config_hash}
    fields = [f.name for f in dataclasses.fields(TrialConfig)]
    for name in fields:
        value = getattr(LORA, name)
        if name in ("variant", "bottleneck"):
            changed = dataclasses.replace(
                LORA, variant="iisan", rank=None, adapter_dropout=None,
                bottleneck=16 if name == "bottleneck" else 32,
            )  # fmt: skip
        elif name in ("split", "sample_users"):
            alone = {"split": "test_share", "sample_users": "sample_seed"}[name]
            default = "leave_one_out" if name == "split" else None
            changed = dataclasses.replace(LORA, **{name: default, alone: None})
        elif isinstance(value, float):
            changed = dataclasses.replace(LORA, **{name: value / 2})
        else:
            changed = dataclasses.replace(
                LORA, **{name: other[name] if name in other else value * 4 + 4}
            )
        hashes.add(changed.config_hash)
    assert len(hashes) == 1 + len(fields)
    assert all(len(h) == 16 and set(h) <= set("0123456789abcdef") for h in hashes)


def test_the_order_of_fields_is_not_in_the_hash():
    values = dataclasses.asdict(LORA)
    assert canonical_hash(dict(reversed(values.items()))) == LORA.config_hash
    assert TrialConfig(**dict(reversed(values.items()))).config_hash == LORA.config_hash


def test_the_hash_is_the_same_in_another_process():
    """Unlike `hash`, which Python salts; a rerun must find the trials that are finished."""
    code = "from perpeft_ray.config import *; import sys; print(eval(sys.argv[1]).config_hash)"
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, repr(LORA)]
    printed = subprocess.check_output(command, env=environment, text=True)
    assert printed.strip() == LORA.config_hash


def test_a_number_that_json_cannot_say_has_no_hash():
    with pytest.raises(ValueError, match="JSON"):
        canonical_hash({"learning_rate": float("nan")})
