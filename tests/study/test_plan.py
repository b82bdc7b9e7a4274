"""Which trials are planned: fairness, choice by validation, order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

from perpeft_ray.config import (
    METHODS,
    PERSONAL_METHODS,
    SIMPLE_METHODS,
    SearchSettings,
    StudyConfig,
)
from perpeft_ray.study.plan import (
    TrialSpec,
    ablation_trials,
    baseline_trials,
    best_configs,
    best_of,
    count_later_trials,
    is_one_of,
    other_mode_trials,
    ready_trials,
    search_trials,
)


def best_for(study: StudyConfig) -> dict:
    """Some best config of every method and variant: the last planned of each."""
    best = {("perpeft", s.config.variant): s.config for s in search_trials(study)}
    sweep = baseline_trials(study, best)
    return best | {(s.config.method, s.config.variant): s.config for s in sweep}


def test_best_is_by_score_and_the_first_of_equals() -> None:
    specs = search_trials(StudyConfig())[:3]
    keys = [spec.config.config_hash for spec in specs]
    assert best_of(specs, {keys[0]: 0.1, keys[1]: 0.3, keys[2]: 0.3}) is specs[1]
    assert best_of(specs, {keys[2]: 0.0}) is specs[2]
    assert best_of(specs, {}) is None


def test_best_of_each_method_and_variant() -> None:
    specs = search_trials(StudyConfig())
    lora = [spec for spec in specs if spec.config.variant == "lora"]
    iisan = [spec for spec in specs if spec.config.variant == "iisan"]
    scores = {lora[3].config.config_hash: 0.2, lora[5].config.config_hash: 0.4}
    scores[iisan[1].config.config_hash] = 0.1
    assert best_configs(specs, scores) == {
        ("perpeft", "lora"): lora[5].config,
        ("perpeft", "iisan"): iisan[1].config,
    }


def test_trials_are_ready_when_what_they_need_has_ended() -> None:
    study = StudyConfig()
    scores: dict[str, float] = {}
    ended: set[tuple[str, str]] = set()

    def ready(*, searching: bool = False) -> Counter:
        specs = ready_trials(study, scores, ended, searching=searching)
        new = (spec for spec in specs if spec.key not in ended)
        return Counter((spec.phase, spec.config.method) for spec in new)

    def end(specs: list[TrialSpec]) -> None:
        ended.update(spec.key for spec in specs)
        scores.update({s.config.config_hash: s.config.learning_rate for s in specs})

    # While the search goes on, only what has no variant.
    rates = len(study.values("learning_rate"))
    without_variant = {
        ("ablation", "popularity"): 1,
        ("ablation", "item_knn"): 1,
        ("search", "without_mm"): rates,
        ("search", "frozen_mm"): rates,
    }
    end([spec for spec in search_trials(study) if spec.config.variant != "ia3"])
    assert ready(searching=True) == without_variant
    # Then all but the ablation of baselines whose learning rates have not been tried.
    personal = {
        ("ablation", method): 2
        for method in ("perpeft", "random_grouping", "without_group_negatives")
    }
    assert ready() == {**without_variant, ("search", "global"): 2 * rates, **personal}
    sweep = [s for s in ready_trials(study, scores, ended, searching=False) if s.phase == "search"]
    end([spec for spec in sweep if spec.config.variant != "lora"])
    assert ready() == {
        ("ablation", "popularity"): 1,
        ("ablation", "item_knn"): 1,
        ("search", "global"): rates,
        ("ablation", "without_mm"): 1,
        ("ablation", "frozen_mm"): 1,
        ("ablation", "global"): 1,
        **personal,
    }
    ablation = [s for s in ready_trials(study, scores, ended, searching=False) if s.test]
    chosen = {s.config.learning_rate for s in ablation if s.config.method == "without_mm"}
    assert chosen == {max(study.values("learning_rate"))}


def test_one_learning_rate_needs_no_sweep() -> None:
    study = replace(StudyConfig(), train=replace(StudyConfig().train, lr=0.01))
    specs = ready_trials(study, {}, set(), searching=False)
    assert [(s.phase, s.config.method) for s in specs] == [
        ("ablation", "popularity"),
        ("ablation", "item_knn"),
        ("ablation", "without_mm"),
        ("ablation", "frozen_mm"),
    ]


def test_the_number_of_later_trials_is_known_before_the_search() -> None:
    search = SearchSettings(learning_rates=(5e-3, 1e-2))
    study = StudyConfig(seeds=(0, 1), parallel_workers=2, search=search)
    # 2 learning rates of 2 + 3 baselines; (2 + 4·3) methods and one more in parallel, two seeds;
    # 2 methods without training.
    assert count_later_trials(study) == 2 * (2 + 3) + 2 * (2 + 4 * 3 + 1) + 2


def test_every_baseline_is_tried_with_every_learning_rate_of_perpeft() -> None:
    rates = (1e-3, 5e-3, 1e-2)
    study = StudyConfig(search=SearchSettings(learning_rates=rates))
    sweep = baseline_trials(study, best_for(study))
    tried = {}
    for spec in sweep:
        assert spec.phase == "search"
        assert not spec.test
        tried.setdefault((spec.config.method, spec.config.variant), []).append(
            spec.config.learning_rate
        )
    assert set(tried) == {
        ("without_mm", None),
        ("frozen_mm", None),
        ("global", "lora"),
        ("global", "ia3"),
        ("global", "iisan"),
    }
    assert all(sorted(values) == sorted(rates) for values in tried.values())


def test_global_takes_the_rank_of_perpeft() -> None:
    study = StudyConfig()
    best = best_for(study)
    for spec in baseline_trials(study, best):
        if spec.config.method == "global":
            assert spec.config.rank == best["perpeft", spec.config.variant].rank


def test_methods_with_one_module_take_the_size_and_groups_of_perpeft() -> None:
    study = StudyConfig(methods=METHODS)
    best = best_for(study)
    sweep = [spec.config for spec in baseline_trials(study, best)]
    assert {c.method for c in sweep} == set(METHODS) - PERSONAL_METHODS - SIMPLE_METHODS
    for config in sweep:
        perpeft = best.get(("perpeft", config.variant))
        if config.method in ("group_level_1", "group_level_2"):
            assert config.groups == perpeft.groups
        if config.method == "large_global" and config.variant == "lora":
            assert config.rank == perpeft.rank * perpeft.groups
        if config.method == "large_global" and config.variant == "iisan":
            assert config.bottleneck == perpeft.bottleneck * perpeft.groups
    assert not any(c.method == "large_global" and c.variant == "ia3" for c in sweep)


def test_every_method_can_be_given_its_own_learning_rate() -> None:
    study = StudyConfig(methods=METHODS, search=SearchSettings(every_method=True))
    sweep = baseline_trials(study, best_for(study))
    assert {spec.config.method for spec in sweep} == set(METHODS) - SIMPLE_METHODS - {"perpeft"}
    ablation = ablation_trials(study, best_for(study))
    assert {spec.config.method for spec in ablation} == set(METHODS)
    changed = [s.config for s in sweep if s.config.method == "without_group_negatives"]
    assert all(config.conditioning_weight == 0.0 for config in changed)


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


def test_the_other_mode_is_parallel_on_ray_train_workers() -> None:
    study = StudyConfig(seeds=(0, 1), parallel_workers=2)
    config = search_trials(study)[0].config
    specs = other_mode_trials(study, config)
    assert [(s.config.mode, s.config.seed, s.workers) for s in specs] == [
        ("parallel", 0, 2),
        ("parallel", 1, 2),
    ]
    assert {s.config.step_batches for s in specs} == {config.groups}
    assert not other_mode_trials(replace(study, parallel_workers=0), config)
    assert not other_mode_trials(replace(study, methods=("global",)), config)


def test_parallel_studies_run_perpeft_sequentially_as_the_other_mode() -> None:
    study = StudyConfig(workers=2, parallel_workers=2)
    config = search_trials(study)[0].config
    assert config.mode == "parallel"
    [spec] = other_mode_trials(study, config)
    assert (spec.config.mode, spec.config.step_batches, spec.workers) == ("sequential", 1, 2)


def test_a_trial_is_known_by_its_id() -> None:
    first, other = search_trials(StudyConfig())[:2]
    assert is_one_of(first.trial_id, {first.key, other.key})
    assert not is_one_of(first.trial_id, {other.key, ("ablation", first.config.config_hash)})
