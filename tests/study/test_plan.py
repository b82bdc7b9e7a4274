"""Which trials are planned: the space, fairness, choice by validation, order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

from perpeft_ray.config import (
    METHODS,
    SIMPLE_METHODS,
    Method,
    SearchSettings,
    StudyConfig,
    TrialConfig,
)
from perpeft_ray.config.presets import preset
from perpeft_ray.store.record import Searched
from perpeft_ray.study.plan import (
    Cell,
    TrialSpec,
    ablation_trials,
    all_settings,
    best_configs,
    count_trials,
    ready_trials,
    search_budget,
    search_trial,
    searching_methods,
    variants_of,
)
from tests.study.fakes import search_trials

TWO_RATES = SearchSettings(learning_rates=(5e-3, 1e-2))


def ended(spec: TrialSpec, score: float | None) -> Searched:
    return Searched(spec.config, "PRUNED" if score is None else "COMPLETE", score, 1, [])


def best_for(study: StudyConfig) -> dict[Cell, TrialConfig]:
    """Some best config of every method and variant that is searched: the last of each."""
    return {
        (method, spec.config.variant): spec.config
        for method in searching_methods(study)
        for spec in search_trials(study, method)
    }


def test_all_settings_are_counted_and_distinct() -> None:
    search = SearchSettings(
        ranks=(2, 4, 8),
        groups=(4, 6, 8),
        conditioning_weights=(0.25, 0.5, 0.75, 1.0),
        learning_rates=(5e-3, 1e-2),
    )
    trials = search_trials(StudyConfig(search=search))
    # lora has 3 ranks, the two others none; 3 group counts, 4 weights, 2 learning rates.
    assert len({spec.key for spec in trials}) == len(trials) == (3 + 1 + 1) * 3 * 4 * 2


def test_paper_preset_searches_only_the_variant() -> None:
    trials = search_trials(preset("paper"))
    assert not any(spec.test for spec in trials)
    assert [spec.config.variant for spec in trials] == ["lora", "ia3", "iisan"]
    config = trials[0].config
    assert (config.learning_rate, config.batch_size, config.groups) == (1e-4, 16, 8)
    assert (config.stage1_epochs, config.stage3_epochs, config.validate_every) == (10, 20, 1)


def test_best_of_each_method_and_variant_is_the_first_with_the_highest_score() -> None:
    specs = search_trials(StudyConfig())
    lora = [spec for spec in specs if spec.config.variant == "lora"]
    iisan = [spec for spec in specs if spec.config.variant == "iisan"]
    rows = [
        ended(lora[3], 0.2),
        ended(lora[5], 0.4),
        ended(lora[6], 0.4),
        ended(lora[7], None),
        ended(iisan[1], 0.0),
    ]
    assert best_configs(rows) == {
        ("perpeft", "lora"): lora[5].config,
        ("perpeft", "iisan"): iisan[1].config,
    }


def test_trials_wait_for_the_search_whose_settings_they_take() -> None:
    study = StudyConfig(search=TWO_RATES)
    rows = [
        ended(search_trials(study, method)[0], 0.1)
        for method in ("perpeft", "global", "without_mm", "frozen_mm")
    ]

    def ready(*searching: Method) -> set[str]:
        return {spec.config.method for spec in ready_trials(study, rows, searching)}

    everything = {*study.methods}
    of_perpeft = {"perpeft", "random_grouping", "without_group_negatives"}
    assert ready() == everything
    assert ready("global") == everything - {"global"}
    assert ready("perpeft", "without_mm") == everything - of_perpeft - {"without_mm"}


def test_a_baseline_with_one_setting_needs_no_search() -> None:
    study = StudyConfig(train=replace(StudyConfig().train, lr=0.01))
    assert "frozen_mm" not in searching_methods(study)
    specs = ready_trials(study, [], ["perpeft", "global"])
    assert {spec.config.method for spec in specs} == {
        "popularity",
        "item_knn",
        "without_mm",
        "frozen_mm",
    }


def test_a_baseline_has_as_many_trials_per_variant_as_perpeft() -> None:
    study = StudyConfig(search=replace(TWO_RATES, trials=12, multimodal_weights=(0.1, 0.5, 1.0)))
    assert search_budget(study, "perpeft") == 12
    assert search_budget(study, "global") == 12
    assert search_budget(study, "frozen_mm") == 4
    assert search_budget(study, "without_mm") == 2  # it has only the two learning rates


def test_baselines_choose_from_perpefts_values_of_what_applies_to_them() -> None:
    study = StudyConfig(search=replace(TWO_RATES, multimodal_weights=(0.1, 0.5)))

    def tried(method: Method, name: str) -> set[object]:
        return {getattr(spec.config, name) for spec in search_trials(study, method)}

    for name in ("learning_rate", "multimodal_weight", "rank", "weight_decay"):
        assert tried("global", name) == tried("perpeft", name)
    assert tried("frozen_mm", "multimodal_weight") == {0.1, 0.5}
    assert tried("without_mm", "multimodal_weight") == {0.0}
    assert tried("group_level_1", "groups") == tried("perpeft", "groups")


def test_large_global_has_the_size_of_all_groups() -> None:
    study = StudyConfig(methods=("perpeft", "large_global"))
    assert variants_of(study, "large_global") == ["lora", "iisan"]
    settings = all_settings(study, "large_global")
    assert settings is not None
    for setting in settings:
        config = search_trial(study, "large_global", setting).config
        if config.variant == "lora":
            assert config.rank == setting["rank"] * setting["groups"]
        else:
            assert config.bottleneck == study.peft.bottleneck * setting["groups"]


def test_the_number_of_trials_is_known_before_the_search() -> None:
    study = StudyConfig(seeds=(0, 1), search=TWO_RATES)
    # Search: 6 of PerPEFT, 2 for each of 3 + 1 + 1 cells. Ablation: 2 + 4 · 3 cells, two seeds; 2
    # methods without training.
    assert count_trials(study) == 6 + 2 * (3 + 1 + 1) + 2 * (2 + 4 * 3) + 2


def test_every_method_can_have_its_own_search() -> None:
    study = StudyConfig(methods=METHODS, search=replace(TWO_RATES, every_method=True))
    assert set(searching_methods(study)) == set(METHODS) - SIMPLE_METHODS
    ablation = ablation_trials(study, best_for(study))
    assert {spec.config.method for spec in ablation} == set(METHODS)
    settings = all_settings(study, "without_group_negatives")
    assert settings is not None
    assert not any("conditioning_weight" in setting for setting in settings)


def test_ablation_is_methods_by_variants_by_seeds() -> None:
    study = StudyConfig(seeds=(3, 5))
    best = best_for(study)
    specs = ablation_trials(study, best)
    count = Counter(spec.config.method for spec in specs)
    simple, without = dict.fromkeys(SIMPLE_METHODS, 1), {"without_mm": 2, "frozen_mm": 2}
    assert count == dict.fromkeys(study.methods, 6) | without | simple
    assert all(spec.test for spec in specs)
    assert len({spec.trial_id for spec in specs}) == len(specs)
    for spec in specs:
        config = spec.config
        perpeft = best.get(("perpeft", config.variant))
        if config.method == "random_grouping":
            assert config == replace(perpeft, method="random_grouping", seed=config.seed)  # type: ignore[type-var]  # found above
        if config.method == "without_group_negatives":
            assert config.conditioning_weight == 0.0
            assert config.learning_rate == perpeft.learning_rate


def test_neighbours_seldom_need_the_same_stage_one() -> None:
    study = StudyConfig(seeds=(0, 1))
    trials = ablation_trials(study, best_for(study))
    specs = [spec for spec in trials if spec.config.method not in SIMPLE_METHODS]

    def stage_one(spec):
        return spec.config.variant, spec.config.seed, spec.config.learning_rate

    assert not any(stage_one(a) == stage_one(b) for a, b in pairwise(specs))
