"""The search space against a plain count of its settings, and Optuna's suggestions from it."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest

from perpeft_ray.config import (
    LossSettings,
    PeftSettings,
    SearchSettings,
    StudyConfig,
    TrainSettings,
)
from perpeft_ray.config.presets import preset
from perpeft_ray.errors import InputError
from perpeft_ray.study.check import check_study
from perpeft_ray.study.plan import search_trial
from perpeft_ray.study.search.space import all_settings, suggest_setting


def suggestions(study: StudyConfig, count: int) -> list[dict[str, object]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler(seed=0)
    trials = optuna.create_study(sampler=sampler)
    return [suggest_setting(study, "perpeft", trials.ask()) for _ in range(count)]


def test_all_settings_are_counted_and_distinct() -> None:
    study = StudyConfig(
        search=SearchSettings(
            ranks=(2, 4, 8),
            groups=(4, 6, 8),
            conditioning_weights=(0.25, 0.5, 0.75, 1.0),
            learning_rates=(5e-3, 1e-2),
        )
    )
    settings = all_settings(study, "perpeft")
    assert settings is not None
    # lora has 3 ranks, the two others none; 3 group counts, 4 weights, 2 learning rates.
    assert len(settings) == (3 + 1 + 1) * 3 * 4 * 2
    hashes = {search_trial(study, "perpeft", setting).config.config_hash for setting in settings}
    assert len(hashes) == len(settings)


def test_rank_is_suggested_only_to_variants_that_have_one() -> None:
    every = all_settings(StudyConfig(), "perpeft")
    assert every is not None
    for setting in suggestions(StudyConfig(), 60):
        assert ("rank" in setting) == (setting["variant"] == "lora")
        assert setting in every


def test_given_values_leave_the_search() -> None:
    study = StudyConfig(
        peft=PeftSettings(variant="lora", rank=4),
        loss=LossSettings(conditioning_weight=1.0),
        train=TrainSettings(lr=0.01),
    )
    trial = optuna.create_study().ask()
    setting = suggest_setting(study, "perpeft", trial)
    assert set(trial.params) == {"groups"}
    assert setting == {
        "variant": "lora",
        "rank": 4,
        "groups": trial.params["groups"],
        "conditioning_weight": 1.0,
        "learning_rate": 0.01,
        "multimodal_weight": study.search.multimodal_weights[0],
        "weight_decay": study.search.weight_decays[0],
        "peft_lr_scale": study.search.peft_lr_scales[0],
    }
    config = search_trial(study, "perpeft", setting).config
    assert (config.method, config.rank, config.learning_rate) == ("perpeft", 4, 0.01)


def test_more_groups_than_users_is_told_with_rule_and_value() -> None:
    study = StudyConfig(grouping=replace(StudyConfig().grouping, groups=2000))
    with pytest.raises(InputError) as told:
        check_study(study, num_users=938, has_images=True)
    assert str(told.value) == (
        "`grouping.groups` must be between 1 and the number of users (938), but is 2000"
    )
    check_study(study, num_users=2000, has_images=True)


def test_every_variant_needs_a_trial() -> None:
    study = StudyConfig(search=replace(StudyConfig().search, trials=2))
    with pytest.raises(InputError, match=r"`search.trials` must be at least .* \(3\), but is 2"):
        check_study(study, num_users=100, has_images=True)


def test_paper_preset_searches_only_the_variant() -> None:
    study = preset("paper")
    settings = all_settings(study, "perpeft")
    assert settings is not None
    assert [setting["variant"] for setting in settings] == ["lora", "ia3", "iisan"]
    config = search_trial(study, "perpeft", settings[0]).config
    assert (config.learning_rate, config.batch_size, config.groups) == (1e-4, 16, 8)
    assert (config.stage1_epochs, config.stage3_epochs, config.validate_every) == (10, 20, 1)


def test_a_modality_is_left_out_only_where_there_are_two() -> None:
    study = StudyConfig(methods=("perpeft", "without_text"))
    check_study(study, num_users=100, has_images=True)
    with pytest.raises(InputError, match="`methods` without_text needs an encoder of titles and"):
        check_study(study, num_users=100, has_images=False)
